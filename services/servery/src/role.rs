//! One role as a process: configuration, telemetry, signals, the role's own `run`, an exit code.

use crate::{USAGE, cli};
use balancer::reload::Reread;
use chassis::{
    config::{Layers, Problems, Reader, Shared},
    lifecycle::{self, Interrupt, Lifecycle},
    log_file, telemetry,
};
use clap::ArgMatches;
use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::time::timeout;

/// What a role gets to put things in order when it is told to stop at once.
const STOPPING: Duration = Duration::from_secs(1);

/// Everything a configuration says. Every role reads all of it, so that an unknown key anywhere is found.
pub(crate) struct Sections {
    pub(crate) shared: Shared,
    pub(crate) balancer: balancer::Config,
    pub(crate) app_server: app_server::Config,
    pub(crate) cert_sidecar: cert_sidecar::Config,
}

impl Sections {
    /// File, variables and `flags` (key, text), in rising order.
    pub(crate) fn load(file: Option<&Path>, flags: Vec<(String, String)>) -> Result<Self, Problems> {
        let layers = Layers::load(file, variables(), flags)?;
        let mut reader = Reader::new(&layers);
        let sections = Self::read(&mut reader);
        reader.finish()?;
        Ok(sections)
    }

    /// For who has questions of its own to the same reader.
    pub(crate) fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            shared: Shared::read(reader),
            balancer: balancer::Config::read(reader),
            app_server: app_server::Config::read(reader),
            cert_sidecar: cert_sidecar::Config::read(reader),
        }
    }
}

/// The environment, as far as it is text: nothing else is configuration.
pub(crate) fn variables() -> impl Iterator<Item = (String, String)> {
    env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
}

/// Runs `role` until a signal has drained it.
pub(crate) fn run(role: cli::Role, given: &ArgMatches) -> ExitCode {
    if let Err(message) = cli::refuse_what_is_not_there(role, given) {
        eprintln!("servery {}: {message}", role.command());
        return ExitCode::from(USAGE);
    }
    let file = given.get_one::<PathBuf>("config").map(PathBuf::as_path);
    let sections = match Sections::load(file, cli::flags(role, given)) {
        Ok(sections) => sections,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(USAGE);
        }
    };
    // before anything is logged, and before there is a child that would inherit another stderr
    let log_file = sections.app_server.log_file.as_deref().filter(|_| role == cli::Role::App);
    if let Some(Err(error)) = log_file.map(log_file::redirect) {
        eprintln!("servery {}: {error}", role.command());
        return ExitCode::FAILURE;
    }
    let (file, flags) = (file.map(Path::to_owned), cli::flags(role, given));
    // flags and variables still win over what the file says by then
    let reread = move || {
        let sections = Sections::load(file.as_deref(), flags.clone())?;
        Ok((sections.balancer, sections.shared))
    };
    let takeover = role == cli::Role::Balancer && given.get_flag("takeover");
    match live(role, sections, Arc::new(reread), takeover) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `reread` and `takeover` are a balancer's: it can change its configuration while it runs, and its process.
fn live(role: cli::Role, sections: Sections, reread: Reread, takeover: bool) -> anyhow::Result<()> {
    let Sections { shared, balancer, app_server, cert_sidecar } = sections;
    let admin = match role {
        cli::Role::Balancer => &balancer.admin,
        cli::Role::App => &app_server.admin,
        cli::Role::CertSidecar => &cert_sidecar.admin,
    };
    let telemetry = telemetry::init(role.id(), !admin.is_off());
    cli::runtime()?.block_on(async {
        // Caught before anybody can learn that this process is ready and stop it again.
        let interrupts = if role == cli::Role::App { Interrupt::Stops } else { Interrupt::Drains };
        let (signals, commands) = lifecycle::install_signals(interrupts)?;
        let lifecycle = Lifecycle::new();
        let ran = async {
            match role {
                cli::Role::App => app_server::run(app_server, shared, telemetry, lifecycle.clone(), commands).await,
                cli::Role::Balancer => {
                    let lifecycle = lifecycle.clone();
                    balancer::run(balancer, shared, telemetry, lifecycle, commands, reread, takeover).await
                }
                cli::Role::CertSidecar => {
                    tokio::spawn(lifecycle::ignore(commands));
                    cert_sidecar::run(cert_sidecar, shared, telemetry, lifecycle.clone()).await
                }
            }
        };
        tokio::pin!(ran);
        tokio::select! {
            ended = &mut ran => return ended,
            // A second signal: what is unfinished is dropped, however long the role would still take.
            () = signals.follow(lifecycle.clone()) => {}
        }
        timeout(STOPPING, ran).await.unwrap_or(Ok(()))
    })
}
