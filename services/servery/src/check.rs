//! `servery check FILE`: every mistake of a configuration file in one run, with its line.

use crate::{USAGE, role::Sections};
use clap::ArgMatches;
use std::{path::PathBuf, process::ExitCode};

/// Exit 0 and "ok", or 64 and every problem. Variables and defaults count as they would for a role.
pub(crate) fn run(given: &ArgMatches) -> ExitCode {
    let file = given.get_one::<PathBuf>("file").map(PathBuf::as_path);
    match Sections::load(file, Vec::new()) {
        Ok(_) => {
            println!("{}: ok", file.unwrap_or_else(|| "configuration".as_ref()).display());
            ExitCode::SUCCESS
        }
        Err(problems) => {
            eprintln!("{problems}");
            ExitCode::from(USAGE)
        }
    }
}
