//! Keeps one child process running: starts it, starts it again when it ends, drains or kills it when told.

use super::{output, plan::Member, say};
use crate::parent;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    env, io,
    process::{self, ExitStatus},
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// How long to wait for the last words of a child that has ended; a grandchild may hold the pipe open.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What a child has to do, in the only order in which it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    Run,
    Drain,
    Kill,
}

/// A child that is kept running until it is ordered to drain. Dropping this kills it.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) member: Member,
    order: watch::Sender<Order>,
    /// How often it was told to read its configuration again, or what SIGHUP means to it.
    hangups: watch::Sender<u32>,
    /// How often it was told to open its log files anew.
    reopens: watch::Sender<u32>,
    /// How often it has ended by itself.
    ends: watch::Receiver<u32>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Spawns the task that owns the child; call it on the thread that lives as long as this process.
    pub(super) fn spawn(member: Member) -> Self {
        let (order, orders) = watch::channel(Order::Run);
        let (hangups, heard) = watch::channel(0);
        let (reopens, moved) = watch::channel(0);
        let (ended, ends) = watch::channel(0);
        let task = tokio::spawn(keep(member.clone(), orders, [heard, moved], ended));
        Self { member, order, hangups, reopens, ends, task }
    }

    /// Returns once the child has ended by itself at least once.
    pub(super) async fn ended(&self) {
        let mut ends = self.ends.clone();
        // an error means that the task is over: the child has ended for good
        let _ = ends.wait_for(|ends| *ends > 0).await;
    }

    /// Orders only grow stricter.
    pub(super) fn order(&self, order: Order) {
        self.order.send_if_modified(|current| {
            let stricter = order > *current;
            *current = order.max(*current);
            stricter
        });
    }

    /// Passes SIGHUP on. A child that is about to be started reads its configuration anyway.
    pub(super) fn hang_up(&self) {
        self.hangups.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Passes SIGUSR1 on. A child that is about to be started opens its files anyway.
    pub(super) fn reopen(&self) {
        self.reopens.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Returns when the child is gone and will not come back; order a drain or a kill first.
    pub(super) async fn gone(&mut self) {
        // the task does not panic; if it did, its child was killed with it
        let _ = (&mut self.task).await;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort(); // drops the child, which kills it
    }
}

async fn keep(
    member: Member,
    mut orders: watch::Receiver<Order>,
    [mut hangups, mut reopens]: [watch::Receiver<u32>; 2],
    ends: watch::Sender<u32>,
) {
    let mut patience = Patience::default();
    while *orders.borrow() == Order::Run {
        let started = Instant::now();
        let end = match start(&member) {
            Ok(mut running) => {
                hangups.mark_unchanged();
                reopens.mark_unchanged();
                let end = loop {
                    tokio::select! {
                        status = running.child.wait() => {
                            break Some(status.map_or_else(|error| error.to_string(), describe));
                        }
                        _ = orders.wait_for(|order| *order > Order::Run) => break None,
                        Ok(()) = hangups.changed() => running.signal(Signal::HUP),
                        Ok(()) = reopens.changed() => running.signal(Signal::USR1),
                    }
                };
                let Some(end) = end else { return stop(&member, running, orders).await };
                running.last_words().await;
                end
            }
            Err(error) => format!("could not be started: {error}"),
        };
        let wait = patience.after(started.elapsed());
        say(&format!("{} {end}; starting it again in {} ms", member.name, wait.as_millis()));
        ends.send_modify(|ends| *ends += 1);
        tokio::select! {
            () = sleep(wait) => {}
            _ = orders.wait_for(|order| *order > Order::Run) => {}
        }
    }
}

/// A child and the task that copies what it writes.
struct Running {
    child: Child,
    output: Option<JoinHandle<()>>,
}

impl Running {
    /// One that has ended this moment does not hear it.
    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }

    /// What a child wrote before it ended comes before what is said of its end.
    async fn last_words(&mut self) {
        if let Some(output) = &mut self.output {
            let _ = timeout(LAST_WORDS, output).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(output) = &self.output {
            output.abort();
        }
    }
}

fn start(member: &Member) -> io::Result<Running> {
    let mut command = Command::new(env::current_exe()?);
    command
        .args(&member.arguments)
        .env(parent::VARIABLE, process::id().to_string())
        .stdin(process::Stdio::null())
        .stderr(process::Stdio::piped())
        .process_group(0) // Ctrl-C is ours to pass on, in order
        .kill_on_drop(true);
    if env::var_os("SERVERY_LOG").is_none() {
        command.env("SERVERY_LOG", "warn"); // the terminal is a person's
    }
    let mut child = command.spawn()?;
    let pipe = child.stderr.take();
    let name = member.name.clone();
    let output = pipe.map(|pipe| tokio::spawn(async move { output::copy(&name, pipe).await }));
    Ok(Running { child, output })
}

/// SIGTERM, patience, SIGKILL.
async fn stop(member: &Member, mut running: Running, mut orders: watch::Receiver<Order>) {
    let drain = *orders.borrow() == Order::Drain;
    if drain && running.child.id().is_some() {
        running.signal(Signal::TERM);
        let ended = tokio::select! {
            ended = timeout(member.grace, running.child.wait()) => Some(ended.is_ok()),
            _ = orders.wait_for(|order| *order == Order::Kill) => None,
        };
        match ended {
            Some(true) => return running.last_words().await,
            Some(false) => {
                say(&format!("{} did not drain within {} s and is killed", member.name, member.grace.as_secs()));
            }
            None => {}
        }
    }
    let _ = running.child.kill().await;
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// How long to wait before a child is started again: nearly at once the first time, doubling while it keeps dying
/// young.
#[derive(Debug, Default)]
struct Patience {
    deaths: u32,
}

impl Patience {
    const FIRST: Duration = Duration::from_millis(50);
    const CAP: Duration = Duration::from_secs(5);
    /// A run this long forgives what was before.
    const GOOD_RUN: Duration = Duration::from_secs(30);

    fn after(&mut self, run: Duration) -> Duration {
        if run >= Self::GOOD_RUN {
            self.deaths = 0;
        }
        let wait = Self::FIRST.saturating_mul(1 << self.deaths.min(16)).min(Self::CAP);
        self.deaths += 1;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_keeps_dying_waits_longer_and_is_forgiven() {
        let mut patience = Patience::default();
        let young = Duration::from_secs(1);
        let waits: Vec<_> = (0..10).map(|_| patience.after(young).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        assert_eq!(patience.after(Patience::GOOD_RUN).as_millis(), 50);
    }

    #[test]
    fn orders_only_grow_stricter() {
        assert!(Order::Run < Order::Drain && Order::Drain < Order::Kill);
    }
}
