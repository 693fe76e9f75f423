//! The life of the cluster: authority first, then balancer and nodes together, a table, a signal, the drain.

use super::{
    child::{Keeper, Order},
    plan::{Member, Plan},
    say, table,
};
use crate::ask;
use cert_sidecar::{
    Right,
    control::{self, ControlError},
};
use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep},
};

/// How long a child may take to be ready at the start.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How often a starting child is asked, and how long it may take to answer.
const ASK_EVERY: Duration = Duration::from_millis(15);
const ASK_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(super) enum ClusterError {
    #[error("{0} could not start; its own message is above")]
    Ended(String),
    #[error("{name} is not ready after {} s: {answer}", START_LIMIT.as_secs())]
    Late { name: String, answer: String },
    #[error(transparent)]
    Authority(#[from] ControlError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs the cluster until a signal; a second one kills it.
pub(super) async fn run(plan: &Plan, home: &Path) -> Result<(), ClusterError> {
    let mut signals = Signals::install()?;
    let mut keepers = Vec::new();
    let started = tokio::select! {
        started = start(plan, home, &mut keepers) => started.map(|()| true),
        () = signals.end() => Ok(false),
    };
    match &started {
        Ok(true) => {
            let _ = write!(io::stderr(), "{}", table::render(plan, home));
            loop {
                match signals.next().await {
                    Asked::End => break,
                    Asked::Reload => {
                        say("SIGHUP: the balancer reads its configuration again, the nodes replace their workers");
                        // the authority has nothing to read again
                        keepers[1..].iter().for_each(Keeper::hang_up);
                    }
                    Asked::Reopen => {
                        say("SIGUSR1: the balancer and the nodes open their log files anew");
                        keepers[1..].iter().for_each(Keeper::reopen);
                    }
                }
            }
            say("draining; Ctrl-C again stops at once");
        }
        Ok(false) => say("interrupted while starting"),
        Err(_) => {}
    }
    drain(keepers, &mut signals).await;
    started.map(|_| ())
}

/// The authority first: without its tokens the others could only wait. Then all at once.
async fn start(plan: &Plan, home: &Path, keepers: &mut Vec<Keeper>) -> Result<(), ClusterError> {
    let began = Instant::now();
    let milestone = |what: &str| say(&format!("{what} ({} ms)", began.elapsed().as_millis()));

    keepers.push(Keeper::spawn(plan.cert_sidecar.clone()));
    ready(&keepers[0]).await?;
    let sidecar = home.join("cert-sidecar");
    fs::write(home.join("root.pem"), control::root(&sidecar).await?)?;
    for (right, file) in &plan.tokens {
        hand_out(right, file, &sidecar).await?;
    }
    milestone("certificate authority ready");

    keepers.push(Keeper::spawn(plan.balancer.clone()));
    keepers.extend(plan.nodes.iter().cloned().map(Keeper::spawn));
    for keeper in &keepers[1..] {
        ready(keeper).await?;
        milestone(&format!("{} ready", keeper.member.name));
    }
    Ok(())
}

/// Puts the join token of `right` into `file`, 0600, for the children to read.
async fn hand_out(right: &Right, file: &Path, sidecar: &Path) -> Result<(), ClusterError> {
    let (app, prefixes) = match right {
        Right::Balancer => (None, Vec::new()),
        Right::AppServer { app, prefixes } => (Some(app.clone()), prefixes.clone()),
    };
    let token = control::token(sidecar, right.role(), app, prefixes, false).await?;
    if let Some(directory) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    file.write_all(token.as_bytes())?;
    Ok(())
}

/// Waits until the child says that it is ready, and no longer than it lives.
async fn ready(keeper: &Keeper) -> Result<(), ClusterError> {
    let Member { name, admin, .. } = &keeper.member;
    let deadline = Instant::now() + START_LIMIT;
    let asking = async {
        loop {
            let answer = match ask::get(*admin, "/readyz", ASK_LIMIT).await {
                Ok((200, _)) => return Ok(()),
                Ok((_, reasons)) => String::from_utf8_lossy(&reasons).into_owned(),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                return Err(ClusterError::Late { name: name.clone(), answer });
            }
            sleep(ASK_EVERY).await;
        }
    };
    tokio::select! {
        ready = asking => ready,
        () = keeper.ended() => Err(ClusterError::Ended(name.clone())),
    }
}

/// In the direction of the requests: the balancer finishes what it took while the nodes still serve, then the nodes,
/// then the authority.
async fn drain(mut keepers: Vec<Keeper>, signals: &mut Signals) {
    let orderly = async {
        let nodes = 2.min(keepers.len());
        let (first, last) = keepers.split_at_mut(nodes);
        let (authority, balancer) = first.split_at_mut(1.min(first.len()));
        for group in [balancer, last, authority] {
            for keeper in &*group {
                keeper.order(Order::Drain);
            }
            for keeper in group {
                keeper.gone().await;
            }
        }
    };
    let interrupted = tokio::select! {
        () = orderly => false,
        () = signals.end() => true,
    };
    if interrupted {
        say("stopping at once");
        drop(keepers); // kills every child
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Ctrl-C, SIGTERM, a terminal that closed.
    End,
    /// SIGHUP while the terminal is there, or where there never was one.
    Reload,
    /// SIGUSR1: log files were moved away.
    Reopen,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    moved: Signal,
    /// This process was started at a terminal.
    at_terminal: bool,
}

/// The process has a controlling terminal. One that closes is taken from its processes before they are sent SIGHUP.
fn has_terminal() -> bool {
    File::options().read(true).write(true).open("/dev/tty").is_ok()
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            moved: signal(SignalKind::user_defined1())?,
            at_terminal: has_terminal(),
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::End,
            _ = self.terminate.recv() => Asked::End,
            _ = self.moved.recv() => Asked::Reopen,
            _ = self.hangup.recv() => if self.at_terminal && !has_terminal() { Asked::End } else { Asked::Reload },
        }
    }

    /// While nothing can be reloaded: the first one that asks for the end.
    async fn end(&mut self) {
        while self.next().await != Asked::End {}
    }
}
