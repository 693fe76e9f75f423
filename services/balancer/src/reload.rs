//! The configuration, read again. In: SIGHUP, and somebody who reads file, variables and flags as at the start. Out: a
//! new snapshot for what comes from now on, or every mistake in the log and the old one in force. It touches no open
//! connection, no queue, no permit, and binds nothing: what only a start can change is kept, and named.

use crate::{
    Config, Shared,
    certificates::{OwnFiles, files::FileError},
    fixed::{Groups, Wanted},
    registry::Directory,
    tls,
};
use chassis::{
    config::{self, Problems},
    lifecycle::{Command, Commands, Lifecycle, Phase},
};
use metrics::{counter, gauge};
use std::sync::Arc;

/// Reads the balancer's section, and what every role is told, from all layers. It may block on the file.
pub type Reread = Arc<dyn Fn() -> Result<(Config, config::Shared), Problems> + Send + Sync>;

/// Puts newer configurations in force.
pub(crate) struct Reloader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) directory: Arc<Directory>,
    /// What the process was started with.
    pub(crate) common: config::Shared,
    pub(crate) reread: Reread,
    pub(crate) own: Arc<OwnFiles>,
    pub(crate) upstreams: Arc<Groups>,
    pub(crate) lifecycle: Lifecycle,
}

impl Reloader {
    /// Obeys until the process drains: from then on nothing new comes that a configuration could be for.
    pub(crate) async fn obey(self, mut commands: Commands) {
        count_versions(1);
        let mut version = 1_u32;
        let mut next = commands.recv().await;
        while let Some(command) = next {
            next = None;
            if command == Command::Reload {
                // two quick ones ask for the same: the file as it is now
                next = std::iter::from_fn(|| commands.try_recv().ok()).find(|next| *next != Command::Reload);
            }
            if command == Command::Reopen {
                let log = Arc::clone(&self.shared.log);
                if let Err(error) = tokio::task::spawn_blocking(move || log.reopen()).await {
                    tracing::error!(%error, "opening the access log anew failed; going on with the old one");
                }
            } else if command != Command::Reload {
                tracing::info!(?command, "this process has nothing to do for this signal");
            } else if self.lifecycle.phase() >= Phase::Draining {
                tracing::info!("SIGHUP: draining, so the configuration is not read again");
            } else if self.reload().await {
                version += 1;
                count_versions(version);
            }
            if next.is_none() {
                next = commands.recv().await;
            }
        }
    }

    /// Whether the file was good.
    async fn reload(&self) -> bool {
        let (reread, own) = (Arc::clone(&self.reread), Arc::clone(&self.own));
        let read = tokio::task::spawn_blocking(move || {
            let all = |problems: Problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
            let (config, common) = reread().map_err(all)?;
            let opened = own.open(&config.certificates);
            let all = |errors: Vec<FileError>| {
                errors.iter().map(|e| format!("balancer.certificate: {e}")).collect::<Vec<_>>()
            };
            let opened = opened.map_err(all)?;
            let wanted = Wanted::read(&config.routes).map_err(|error| vec![format!("balancer.route: {error}")])?;
            Ok::<_, Vec<String>>((config, common, opened, wanted))
        });
        let (config, common, opened, wanted) = match read.await {
            Ok(Ok(sections)) => sections,
            Ok(Err(problems)) => {
                for problem in problems {
                    tracing::error!("{problem}");
                }
                tracing::error!("SIGHUP: the configuration has these mistakes; the old one stays in force");
                return refused();
            }
            Err(error) => {
                tracing::error!(%error, "SIGHUP: reading the configuration failed; the old one stays in force");
                return refused();
            }
        };
        self.serve_with(self.own.watch(opened));
        let kept = self.put_in_force(config);
        // behind the routes: nothing new is sent to an upstream that goes
        self.upstreams.follow(wanted);
        for key in kept.into_iter().chain(differences(&common, &self.common)) {
            tracing::warn!(key, "SIGHUP: this cannot change while the process runs; it waits for the next start");
        }
        counter!("servery_balancer_config_reloads_total", "result" => "ok").increment(1);
        tracing::info!("SIGHUP: the configuration was read again and is in force");
        true
    }

    /// Where there were none and are none, nothing is said of what is served.
    fn serve_with(&self, own: Vec<tls::Entry>) {
        let had_some = self.shared.certificates.load().entries().iter().any(|entry| entry.from_file);
        if had_some || !own.is_empty() {
            self.shared.offer(|offers| offers.own = own);
        }
    }

    /// Limits first, then the snapshot, then the routes that lead to it: a request between two of these sees the new
    /// limits of an app a moment before its new routes. The result: keys that stay as they were.
    fn put_in_force(&self, mut config: Config) -> Vec<&'static str> {
        let old = self.shared.config.load_full();
        let kept = config.keep_what_is_bound(&old);
        config.carry_reserves_over(&old);
        self.shared.resize(old.max_connections, config.max_connections);
        self.shared.apps.retune(config.limits(), config.reserves());
        self.shared.config.store(Arc::new(config));
        self.directory.republish();
        kept
    }
}

fn refused() -> bool {
    counter!("servery_balancer_config_reloads_total", "result" => "refused").increment(1);
    false
}

fn count_versions(version: u32) {
    gauge!("servery_balancer_config_version").set(f64::from(version));
}

/// The keys outside of any section that a start would take over.
fn differences(new: &config::Shared, old: &config::Shared) -> Vec<&'static str> {
    let pairs = [
        ("cluster", new.cluster != old.cluster),
        ("data", new.data != old.data),
        ("token_file", new.token_file != old.token_file),
        ("sidecar", new.sidecar != old.sidecar),
        ("nameservers", new.nameservers != old.nameservers),
    ];
    pairs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
}

#[cfg(test)]
mod tests;
