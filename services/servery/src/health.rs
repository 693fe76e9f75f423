//! `servery health`: is the process in this container alive, or ready? For container health checks, which have no shell
//! and no curl.

use crate::{USAGE, ask, cli};
use clap::ArgMatches;
use std::{process::ExitCode, time::Duration};

/// For all addresses together.
const LIMIT: Duration = Duration::from_secs(2);

/// Exit 0 when `/livez` (with `--ready`: `/readyz`) answers 200, else 1 with the reasons on stderr.
///
/// A container runs one role and its configuration may name all three with ports of their own: whoever answers is it.
pub(crate) fn run(given: &ArgMatches) -> ExitCode {
    let roles = [cli::Role::Balancer, cli::Role::App, cli::Role::CertSidecar];
    let addresses = match ask::addresses(given, &roles) {
        Ok(addresses) => addresses,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(USAGE);
        }
    };
    let path = if given.get_flag("ready") { "/readyz" } else { "/livez" };
    let runtime = match cli::runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("servery health: {error}");
            return ExitCode::FAILURE;
        }
    };
    for address in &addresses {
        let limit = LIMIT / u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        match runtime.block_on(ask::get(*address, path, limit)) {
            Ok((200, _)) => return ExitCode::SUCCESS,
            Ok((status, body)) => {
                let body = String::from_utf8_lossy(&body);
                eprintln!("servery health: {path} of {address} answers {status}: {}", body.trim_end());
                return ExitCode::FAILURE;
            }
            Err(error) => eprintln!("servery health: {address} does not answer: {error}"),
        }
    }
    ExitCode::FAILURE
}
