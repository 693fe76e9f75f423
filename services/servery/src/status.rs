//! `servery status`: what a balancer knows of its cluster, or a node that serves by itself of its workers: as a table for a
//! person, once or again and again, or as it is for a program.

use crate::{USAGE, ask, cli};
use bytes::Bytes;
use clap::ArgMatches;
use serde_json::Value;
use std::{
    io::{self, IsTerminal as _, Write as _},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

mod table;

use table::table;

/// For one answer.
const LIMIT: Duration = Duration::from_secs(5);

/// An empty screen, and the cursor at its top left (ECMA-48: ED, CUP).
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

/// Exit 0 with the status on stdout, 1 when nobody answers. With `--watch` it goes on until Ctrl-C.
pub(crate) fn run(given: &ArgMatches) -> ExitCode {
    // a machine runs a balancer or a node by itself, and its configuration may name both: whoever answers is it
    let addresses = match ask::addresses(given, &[cli::Role::Balancer, cli::Role::App]) {
        Ok(addresses) => addresses,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(USAGE);
        }
    };
    if addresses.is_empty() {
        eprintln!("servery status: the admin listeners are off: name another process with --admin");
        return ExitCode::from(USAGE);
    }
    let runtime = match cli::runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("servery status: {error}");
            return ExitCode::FAILURE;
        }
    };
    match given.get_one::<u64>("watch") {
        Some(seconds) => runtime.block_on(watch(&addresses, Duration::from_secs(*seconds))),
        None => match runtime.block_on(ask_any(&addresses)) {
            Ok(status) if given.get_flag("json") => cli::print(&format!("{status:#}\n")),
            Ok(status) => cli::print(&table(&status)),
            Err(message) => {
                eprintln!("servery status: {message}");
                return ExitCode::FAILURE;
            }
        },
    }
    ExitCode::SUCCESS
}

/// A fresh table every time; who does not answer may do so next time. Ends with Ctrl-C, or when nobody reads any more.
async fn watch(addresses: &[SocketAddr], every: Duration) {
    let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
    let shown = async {
        loop {
            let text = match ask_any(addresses).await {
                Ok(status) => table(&status),
                Err(message) => format!("{message}\nAsking again every {} s.\n", every.as_secs()),
            };
            let mut stdout = io::stdout().lock();
            if stdout.write_all(format!("{clear}{text}").as_bytes()).and_then(|()| stdout.flush()).is_err() {
                return;
            }
            drop(stdout);
            tokio::time::sleep(every).await;
            if clear.is_empty() && io::stdout().write_all(b"\n").is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = shown => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// The first status of these addresses, or why there is none.
async fn ask_any(addresses: &[SocketAddr]) -> Result<Value, String> {
    let mut reasons = Vec::new();
    for address in addresses {
        match ask::get(*address, "/status", LIMIT).await {
            Ok((200, body)) => return parse(*address, &body),
            Ok((status, _)) => {
                reasons.push(format!("{address} answers {status}: is that a Servery admin address? See --admin."));
            }
            Err(error) => {
                reasons.push(format!("{address} does not answer ({error}). Name the admin address with --admin."));
            }
        }
    }
    Err(reasons.join("\n"))
}

fn parse(address: SocketAddr, body: &Bytes) -> Result<Value, String> {
    serde_json::from_slice(body).map_err(|error| format!("{address} answered no JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use crate::cli;

    #[test]
    fn watching_is_every_two_seconds_unless_told_and_makes_no_json() {
        let watched = |line: &[&str]| {
            let given = cli::command().try_get_matches_from([&["servery", "status"], line].concat())?;
            Ok::<_, clap::Error>(given.subcommand_matches("status").and_then(|given| given.get_one("watch").copied()))
        };
        assert_eq!(watched(&[]).unwrap(), None::<u64>);
        assert_eq!(watched(&["--watch"]).unwrap(), Some(2));
        assert_eq!(watched(&["--watch", "--admin", ":9300"]).unwrap(), Some(2));
        assert_eq!(watched(&["--watch", "10"]).unwrap(), Some(10));
        for wrong in [&["--watch", "0"][..], &["--watch", "soon"], &["--watch", "--json"]] {
            assert!(watched(wrong).is_err(), "{wrong:?}");
        }
    }
}
