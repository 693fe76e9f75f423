//! The one command. A role, a tool, or a whole cluster (`up`), by its first word.
//!
//! Exit codes: 0 done, 1 could not start or was ended by a fault, 64 wrong usage or configuration.

use std::process::ExitCode;

mod ask;
mod certs;
mod check;
mod cli;
mod health;
mod parent;
mod role;
mod status;
mod up;

/// Every request takes a read buffer of 8 KiB and gives it back: the C library's allocator has its slow way for those, and
/// trims what it keeps for each thread.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Wrong usage or configuration (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let matches = match cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match matches.subcommand() {
        Some(("up", given)) => up::run(given),
        Some(("balancer", given)) => supervised(|| role::run(cli::Role::Balancer, given)),
        Some(("app", given)) => supervised(|| role::run(cli::Role::App, given)),
        Some(("cert-sidecar", given)) => supervised(|| role::run(cli::Role::CertSidecar, given)),
        Some(("worker", _)) => supervised(|| servery_worker::run(app_server::demo::router())),
        Some(("check", given)) => check::run(given),
        Some(("health", given)) => health::run(given),
        Some(("status", given)) => status::run(given),
        Some(("certs", given)) => certs::run(given),
        // clap refuses every other word
        _ => ExitCode::from(USAGE),
    }
}

/// For what somebody may supervise: it does not outlive them. The tools do not ask: an application may run one.
fn supervised(run: impl FnOnce() -> ExitCode) -> ExitCode {
    match parent::die_with_it() {
        Ok(()) => run(),
        Err(error) => {
            eprintln!("servery: {error}");
            ExitCode::FAILURE
        }
    }
}
