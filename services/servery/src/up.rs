//! `servery up`: a whole cluster on this machine. Plans the roles as child processes, keeps them alive, tells a person
//! where to look, and drains them in the order in which requests flow. Serves nothing itself.

use crate::{USAGE, cli};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::{io::Write as _, path::PathBuf, process::ExitCode};

mod child;
mod cluster;
mod home;
mod output;
mod plan;
mod ports;
mod table;

use home::Home;
pub(crate) use home::default_home;
use plan::{Options, Settings};

/// The subcommand and its flags.
pub(crate) fn command() -> Command {
    let value = |name: &'static str, value: &'static str| Arg::new(name).long(name).value_name(value);
    Command::new("up")
        .about("Runs a whole cluster on this machine: certificate authority, balancer, nodes")
        .arg(Arg::new("APP").help("A WSGI application as module:callable (not there yet)"))
        .arg(
            value("nodes", "N")
                .default_value("2")
                .value_parser(value_parser!(u16).range(1..=64))
                .help("App-server nodes"),
        )
        .arg(value("workers", "N").help("Worker processes of each node, or `auto` [number of cores]"))
        .arg(value("http", "PORT").help("Plain HTTP: a port of this machine only, or `:80` for every address [8080]"))
        .arg(value("https", "PORT").help("HTTPS, likewise [8443]"))
        .arg(
            value("admin", "PORT")
                .default_value("9180")
                .value_parser(value_parser!(u16).range(1..=65000))
                .help("The balancer's metrics and status; the others take the ports after it"),
        )
        .arg(
            Arg::new("http-only")
                .long("http-only")
                .action(ArgAction::SetTrue)
                .conflicts_with("https")
                .help("Serve plain HTTP, no TLS towards clients"),
        )
        .arg(value("exec", "PROGRAM").help("Your own worker program [the built-in demo application]"))
        .arg(
            value("data", "DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Where the cluster keeps its state [$XDG_STATE_HOME/servery, else ~/.local/state/servery]"),
        )
        .arg(cli::config())
        .arg(value("threads", "N").help("WSGI threads (not there yet)"))
        .arg(value("domain", "NAME").help("A public name with a certificate by ACME (not there yet)"))
        .arg(value("email", "ADDR").help("Contact for the ACME account (not there yet)"))
        .arg(
            Arg::new("reload")
                .long("reload")
                .action(ArgAction::SetTrue)
                .help("Restart on changed sources (not there yet)"),
        )
}

/// Runs the cluster until Ctrl-C or SIGTERM has drained it.
pub(crate) fn run(given: &ArgMatches) -> ExitCode {
    if let Err(message) = refuse_what_is_not_there(given) {
        say(&message);
        return ExitCode::from(USAGE);
    }
    let options = Options::of(given);
    let settings = match Settings::read(&options) {
        Ok(settings) => settings,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(USAGE);
        }
    };
    match live(&options, &settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn live(options: &Options, settings: &Settings) -> anyhow::Result<()> {
    let home = Home::open(options.data.as_deref())?;
    let plan = settings.plan(options, home.path())?;
    // One thread, this one: children die with the thread that spawned them.
    cli::runtime()?.block_on(cluster::run(&plan, home.path()))?;
    Ok(())
}

/// A line for the person at the terminal. One that is gone does not take the cluster down.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "servery up: {line}");
}

fn refuse_what_is_not_there(given: &ArgMatches) -> Result<(), String> {
    if let Some(app) = given.get_one::<String>("APP") {
        return Err(format!(
            "`{app}` would be a WSGI application, and Python is not there yet. Run a program of your own with \
             `--exec PROGRAM`, or none for the demo application."
        ));
    }
    for (flag, instead) in [
        ("threads", "it is for WSGI applications; see --workers"),
        ("domain", "it needs ACME, which is not there yet either; HTTPS uses the cluster's own authority"),
        ("email", "it needs ACME, which is not there yet either; HTTPS uses the cluster's own authority"),
    ] {
        if given.get_one::<String>(flag).is_some() {
            return Err(format!("`--{flag}` is not there yet: {instead}"));
        }
    }
    if given.get_flag("reload") {
        return Err("`--reload` is not there yet: stop and start `servery up` again".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_yet_is_refused_by_name() {
        for (line, word) in [
            (&["shop:app"][..], "WSGI"),
            (&["--threads", "4"], "--workers"),
            (&["--domain", "shop.example"], "ACME"),
            (&["--email", "me@shop.example"], "ACME"),
            (&["--reload"], "--reload"),
        ] {
            let given = cli::command().try_get_matches_from([&["servery", "up"], line].concat()).unwrap();
            let refusal = refuse_what_is_not_there(given.subcommand_matches("up").unwrap()).unwrap_err();
            assert!(refusal.contains(word), "{refusal}");
        }
    }
}
