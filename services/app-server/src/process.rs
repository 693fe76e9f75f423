//! One worker process: comes in a program and a place to listen, goes out a running child with its control socket, and
//! a share of its listening socket that outlives it. It decides nothing about the worker's life.
//!
//! The child is a process group of its own, so that Ctrl-C at a terminal reaches the supervisor alone, and asks the
//! kernel to be killed when the thread that started it ends: so the supervisor must start children from a thread that
//! lives as long as it does.

use crate::reaper::{Awaited, awaited};
use chassis::listen::ListenAddr;
use command_fds::{CommandFdExt, FdMapping};
use proto::worker::{FromSupervisor, FromWorker};
use rustix::{
    fs::{Access, access},
    process::{Pid, Signal, kill_process_group},
};
use servery_worker::supervision::Frames;
use std::{
    env,
    ffi::OsString,
    io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{self, Stdio},
};
use tokio::{
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
};
use tokio_util::codec::{FramedRead, FramedWrite};

/// The descriptors' numbers in the child.
const LISTEN_FD: i32 = 3;
const CONTROL_FD: i32 = 4;

/// Variables of the service manager's (sd_notify(3), sd_listen_fds(3)).
const NOT_FOR_WORKERS: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// How many ports from the first one on are tried.
const PORTS: u16 = 1000;

/// What a worker says.
pub(crate) type News = FramedRead<OwnedReadHalf, Frames<FromWorker, FromSupervisor>>;
/// What it is told.
pub(crate) type Orders = FramedWrite<OwnedWriteHalf, Frames<FromWorker, FromSupervisor>>;

/// What runs in a worker process.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    /// Where its stderr goes already, to be opened anew when it is told to.
    log_file: Option<PathBuf>,
}

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No such file, in the PATH neither.
    #[error("there is no program {0}: name an executable file with --exec, such as ./target/release/my-app")]
    Missing(PathBuf),
    /// A directory, say.
    #[error("{0} is not a file: name an executable file with --exec")]
    NotAFile(PathBuf),
    /// No permission to run it.
    #[error("{0} is not executable: make it so with `chmod +x {0}`")]
    NotExecutable(PathBuf),
    /// The path of the running program cannot be had.
    #[error("cannot find the path of the servery program itself: {0}")]
    Ourselves(#[source] io::Error),
}

impl Program {
    /// The demo application in the worker role of this very program.
    pub(crate) fn built_in() -> Result<Self, ProgramError> {
        let path = env::current_exe().map_err(ProgramError::Ourselves)?;
        Ok(Self { path, arguments: vec!["worker".into()], log_file: None })
    }

    /// A user's own program: as a shell would find it.
    pub(crate) fn of_user(name: &Path) -> Result<Self, ProgramError> {
        let path = if name.components().count() > 1 || name.is_absolute() {
            name.to_path_buf()
        } else {
            let directories = env::var_os("PATH").unwrap_or_default();
            let found = env::split_paths(&directories).map(|directory| directory.join(name));
            found.into_iter().find(|path| path.is_file()).ok_or_else(|| ProgramError::Missing(name.to_path_buf()))?
        };
        let metadata = path.metadata().map_err(|_| ProgramError::Missing(path.clone()))?;
        if !metadata.is_file() {
            return Err(ProgramError::NotAFile(path));
        }
        if access(&path, Access::EXEC_OK).is_err() {
            return Err(ProgramError::NotExecutable(path));
        }
        Ok(Self { path, arguments: Vec::new(), log_file: None })
    }

    #[cfg(test)]
    pub(crate) fn of_test(path: PathBuf, arguments: Vec<OsString>) -> Self {
        Self { path, arguments, log_file: None }
    }

    /// The supervisor's stderr, which it inherits, is this file.
    pub(crate) fn logging_to(self, log_file: &Path) -> Self {
        Self { log_file: Some(log_file.to_owned()), ..self }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A listening socket for one worker: at `first`, or at the next port after it that nobody has.
pub(crate) fn bind(first: ListenAddr) -> io::Result<TcpListener> {
    let start = first.port().unwrap_or(0);
    let mut refused = None;
    for port in start..start.saturating_add(PORTS) {
        let here = match first {
            ListenAddr::At(address) => ListenAddr::At(SocketAddr::new(address.ip(), port)),
            ListenAddr::All(_) | ListenAddr::Off => ListenAddr::All(port),
        };
        match here.bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && start != 0 => refused = Some(error),
            bound => return bound,
        }
    }
    Err(refused.unwrap_or_else(|| io::Error::from(io::ErrorKind::AddrInUse)))
}

/// A child, killed with its process group when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid: u32,
    _awaited: Option<Awaited>,
}

impl Process {
    /// Starts the program with a share of `listener`. Must be called on a thread that lives as long as the children may.
    pub(crate) fn spawn(program: &Program, listener: BorrowedFd<'_>) -> io::Result<(Self, News, Orders)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = process::Command::new(&program.path);
        command
            .args(&program.arguments)
            .env("SERVERY_LISTEN_FD", LISTEN_FD.to_string())
            .env("SERVERY_CONTROL_FD", CONTROL_FD.to_string())
            .env("SERVERY_PARENT", process::id().to_string())
            .stdin(Stdio::null())
            .process_group(0);
        if let Some(log_file) = &program.log_file {
            command.env("SERVERY_LOG_FILE", log_file);
        }
        // what the service manager says is said to the supervisor
        for name in NOT_FOR_WORKERS {
            command.env_remove(name);
        }
        command
            .fd_mappings(vec![
                FdMapping { parent_fd: listener.try_clone_to_owned()?, child_fd: LISTEN_FD },
                FdMapping { parent_fd: OwnedFd::from(theirs), child_fd: CONTROL_FD },
            ])
            .map_err(io::Error::other)?;
        let mut command = Command::from(command);
        let (child, awaited) = awaited(|| command.kill_on_drop(true).spawn(), Child::id)?;
        // the command holds the child's ends: while they are open here, the control socket would never close
        drop(command);
        let pid = child.id().ok_or_else(|| io::Error::other("the child ended while it was started"))?;
        let (read, write) = UnixStream::from_std(ours)?.into_split();
        Ok((
            Self { child, pid, _awaited: awaited },
            FramedRead::new(read, Frames::new()),
            FramedWrite::new(write, Frames::new()),
        ))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Until it has ended; how, in words for the log.
    pub(crate) async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => format!("unknown: {error}"),
        }
    }

    /// Kills it and every process that it has started and not put into a group of its own.
    pub(crate) fn kill(&self) {
        // `None` once it has been reaped: the number may be another process's by now
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // it may be ending just now
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::{Program, ProgramError, bind};
    use chassis::listen::ListenAddr;
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    #[test]
    fn a_program_that_cannot_be_run_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("app");
        assert!(matches!(Program::of_user(&file), Err(ProgramError::Missing(_))));
        assert!(matches!(Program::of_user(Path::new("no-such-program-in-the-path")), Err(ProgramError::Missing(_))));
        assert!(matches!(Program::of_user(directory.path()), Err(ProgramError::NotAFile(_))));
        fs::write(&file, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        // root may run what anybody may run, so this one nobody may
        assert!(matches!(Program::of_user(&file), Err(ProgramError::NotExecutable(_))));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Program::of_user(&file).unwrap().path(), file);
        assert!(Program::of_user(Path::new("sh")).unwrap().path().is_absolute());
    }

    #[test]
    fn each_worker_takes_the_next_free_port() {
        let first = bind(ListenAddr::At("127.0.0.1:0".parse().unwrap())).unwrap();
        let taken = first.local_addr().unwrap();
        if taken.port() > 60_000 {
            return; // too near the end of the ports to look for one after it
        }
        let second = bind(ListenAddr::At(taken)).unwrap();
        assert!(second.local_addr().unwrap().port() > taken.port());
    }
}
