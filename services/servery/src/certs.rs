//! `servery certs …`: asks the cert-sidecar of a data directory over its Unix socket (0600: whoever may use it is its owner).

use crate::cli;
use cert_sidecar::{Right, control};
use chassis::identity::Role;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// In the data directory of a cert-sidecar that has run.
const SOCKET: &str = "control.sock";

/// The subcommand and its words.
pub(crate) fn command() -> Command {
    let role = Arg::new("role").value_name("ROLE").required(true).value_parser(["balancer", "app_server"]);
    Command::new("certs")
        .about("The internal CA and its certificates, on the machine of the cert-sidecar")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(cli::config().global(true))
        .arg(
            Arg::new("data")
                .long("data")
                .value_name("DIR")
                .global(true)
                .value_parser(value_parser!(PathBuf))
                .help("Data directory of the cert-sidecar, or of `servery up` [/var/lib/servery, else that of `up`]"),
        )
        .subcommand(Command::new("root").about("Prints the internal root, for browsers and clients to trust"))
        .subcommand(Command::new("list").about("Prints certificates, tokens, identities and what is denied, as JSON"))
        .subcommand(
            Command::new("token")
                .about("Prints the join token of a role, making it if there is none")
                .arg(role)
                .arg(Arg::new("app").long("app").value_name("NAME").help("The app that a node may serve"))
                .arg(
                    Arg::new("prefix")
                        .long("prefix")
                        .value_name("PATH")
                        .action(ArgAction::Append)
                        .help("A route prefix that the app may claim [/]"),
                )
                .arg(
                    Arg::new("rotate")
                        .long("rotate")
                        .action(ArgAction::SetTrue)
                        .help("Make a new one; the old one enrols nobody any more, members stay"),
                ),
        )
        .subcommand(
            Command::new("deny")
                .about("Shuts an instance out: no renewal, and every balancer ends its registration")
                .arg(Arg::new("instance").value_name("INSTANCE").required(true)),
        )
}

/// Does what was asked; exit 1 with the sidecar's words where it refuses.
pub(crate) fn run(given: &ArgMatches) -> ExitCode {
    let Some((word, inner)) = given.subcommand() else { return ExitCode::from(crate::USAGE) };
    let data = match data_directory(inner) {
        Ok(data) => data,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(crate::USAGE);
        }
    };
    if let Err(error) = right(word, inner) {
        eprintln!("servery certs {word}: {error}");
        return ExitCode::from(crate::USAGE);
    }
    match ask(word, inner, &data) {
        Ok(text) => {
            cli::print(&format!("{}\n", text.trim_end()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("servery certs {word}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether what `token` is asked for is a right at all; the cert-sidecar judges again.
fn right(word: &str, given: &ArgMatches) -> anyhow::Result<()> {
    if word == "token" {
        let (role, app, prefixes) = asked(given)?;
        Right::new(role, app, prefixes)?;
    }
    Ok(())
}

fn asked(given: &ArgMatches) -> anyhow::Result<(Role, Option<String>, Vec<String>)> {
    let role = given.get_one::<String>("role").map_or("", String::as_str).parse()?;
    let prefixes = given.get_many::<String>("prefix").into_iter().flatten().cloned().collect();
    Ok((role, given.get_one("app").cloned(), prefixes))
}

/// What `--data` or the configuration says; where that is no cert-sidecar's, the one of `servery up` under it or, if
/// nothing was said, in `up`'s own place.
fn data_directory(given: &ArgMatches) -> Result<PathBuf, chassis::config::Problems> {
    let file = given.get_one::<PathBuf>("config").map(PathBuf::as_path);
    let (data, fallback) = match given.get_one::<PathBuf>("data") {
        Some(data) => (data.clone(), Some(data.clone())),
        None => (crate::role::Sections::load(file, Vec::new())?.shared.data, crate::up::default_home()),
    };
    let of_up = fallback.map(|home| home.join("cert-sidecar")).filter(|_| !data.join(SOCKET).exists());
    Ok(of_up.filter(|of_up| of_up.join(SOCKET).exists()).unwrap_or(data))
}

fn ask(word: &str, given: &ArgMatches, data: &Path) -> anyhow::Result<String> {
    let runtime = cli::runtime()?;
    Ok(match word {
        "root" => runtime.block_on(control::root(data))?,
        "list" => serde_json::to_string_pretty(&runtime.block_on(control::list(data))?)?,
        "token" => {
            let (role, app, prefixes) = asked(given)?;
            runtime.block_on(control::token(data, role, app, prefixes, given.get_flag("rotate")))?
        }
        _ => {
            let instance = given.get_one::<String>("instance").map_or("", String::as_str);
            runtime.block_on(control::deny(data, instance))?;
            format!("{instance} is denied")
        }
    })
}
