//! What systemd is told of a node (sd_notify(3)). In: the socket that systemd named in the environment, and what happens
//! to the node. Out: datagrams. Without the socket everything here does nothing; a failure is logged, never
//! the end of anything.

use sd_notify::NotifyState;
use std::{env, process, time::Duration};
use tokio::time::{MissedTickBehavior, interval};

/// The variables that systemd means for this process alone: a worker that had them would speak in its name, or take a
/// socket that is not there.
pub(crate) const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Longest text of a status. It is one line.
const STATUS_MAX: usize = 256;

/// The manager's socket, where there is one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Systemd {
    listens: bool,
    /// How often it wants to hear that the node is alive, halved.
    watchdog: Option<Duration>,
}

impl Systemd {
    /// Looks at the environment, once.
    pub(crate) fn of_environment() -> Self {
        let listens = env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty());
        let watchdog = sd_notify::watchdog_enabled().filter(|limit| listens && !limit.is_zero());
        Self { listens, watchdog: watchdog.map(|limit| limit / 2) }
    }

    /// The node serves: for the first time, or again after a reload. `status` as in [`Self::status`].
    pub(crate) fn ready(&self, status: &str) {
        let status = line(status);
        self.tell(&[NotifyState::Ready, NotifyState::Status(&status), NotifyState::MainPid(process::id())]);
    }

    /// All workers are being replaced; [`Self::ready`] ends it.
    pub(crate) fn reloading(&self, status: &str) {
        let status = line(status);
        match NotifyState::monotonic_usec_now() {
            // without the time `Type=notify-reload` takes a later READY for an older one
            Ok(now) => self.tell(&[NotifyState::Reloading, now, NotifyState::Status(&status)]),
            Err(error) => tracing::warn!(%error, "systemd is not told of the reload"),
        }
    }

    /// The node leaves.
    pub(crate) fn stopping(&self, status: &str) {
        let status = line(status);
        self.tell(&[NotifyState::Stopping, NotifyState::Status(&status)]);
    }

    /// What `systemctl status` shows: `4 workers ready`.
    pub(crate) fn status(&self, status: &str) {
        let status = line(status);
        self.tell(&[NotifyState::Status(&status)]);
    }

    /// Says that the node is alive, at half of the time after which systemd would kill it, for as long as this is
    /// polled: by the supervisor's own loop, so that systemd hears nothing when that stands still. Never ends.
    pub(crate) async fn keep_alive(&self) {
        let Some(every) = self.watchdog else { return std::future::pending().await };
        let mut ticks = interval(every.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if self.listens
            && let Err(error) = sd_notify::notify(states)
        {
            tracing::warn!(%error, "systemd cannot be told how this node is");
        }
    }
}

/// A line's end in it would be an assignment of its own.
fn line(text: &str) -> String {
    text.chars().map(|sign| if sign.is_control() { ' ' } else { sign }).take(STATUS_MAX).collect()
}

/// `4 workers ready`, `1 of 4 workers ready`.
pub(crate) fn workers(ready: usize, all: usize) -> String {
    let workers = if all == 1 { "worker" } else { "workers" };
    if ready == all { format!("{all} {workers} ready") } else { format!("{ready} of {all} {workers} ready") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::net::UnixDatagram, process::Command};

    const CHILD: &str = "SERVERY_TEST_NOTIFIES";

    /// Does nothing unless a test below starts it: the environment is the whole process's.
    #[test]
    fn child() {
        if env::var_os(CHILD).is_none() {
            return;
        }
        let systemd = Systemd::of_environment();
        systemd.ready("4 workers ready");
        systemd.reloading("replacing 4 workers");
        systemd.ready("4 workers\nready");
        systemd.status(&workers(1, 4));
        systemd.stopping("draining");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let limit = Duration::from_millis(1250);
            assert!(tokio::time::timeout(limit, systemd.keep_alive()).await.is_err());
        });
    }

    fn run(variables: &[(&str, &str)]) {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "systemd::tests::child", "--nocapture"])
            .env(CHILD, "1")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    #[test]
    fn systemd_hears_of_every_step_and_of_life() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        run(&[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "1000000")]);
        let said: Vec<String> = std::iter::from_fn(|| {
            let mut datagram = [0; 1024];
            let length = manager.recv(&mut datagram).ok()?;
            Some(String::from_utf8(datagram[..length].to_vec()).unwrap())
        })
        .collect();
        assert!(said[0].starts_with("READY=1\nSTATUS=4 workers ready\nMAINPID="), "{said:?}");
        let (reloading, time) = said[1].split_once("\nMONOTONIC_USEC=").unwrap();
        assert_eq!(reloading, "RELOADING=1");
        let (time, status) = time.split_once('\n').unwrap();
        assert!(time.parse::<u64>().unwrap() > 0 && status == "STATUS=replacing 4 workers\n", "{said:?}");
        assert!(said[2].starts_with("READY=1\nSTATUS=4 workers ready\n"), "{said:?}");
        assert_eq!(said[3], "STATUS=1 of 4 workers ready\n");
        assert_eq!(said[4], "STOPPING=1\nSTATUS=draining\n");
        // at 0, 500 and 1000 ms
        assert_eq!(said[5..], ["WATCHDOG=1\n", "WATCHDOG=1\n", "WATCHDOG=1\n"]);
    }

    #[test]
    fn nobody_to_tell_and_a_manager_that_is_gone_change_nothing() {
        run(&[]);
        run(&[("NOTIFY_SOCKET", "/nowhere/notify"), ("WATCHDOG_USEC", "1000000")]);
        run(&[("WATCHDOG_USEC", "1000000"), ("WATCHDOG_PID", "1")]);
    }

    #[test]
    fn workers_are_counted_in_words() {
        assert_eq!(workers(1, 1), "1 worker ready");
        assert_eq!(workers(4, 4), "4 workers ready");
        assert_eq!(workers(0, 4), "0 of 4 workers ready");
    }
}
