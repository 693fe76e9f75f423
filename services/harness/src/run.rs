//! A command run to its end: comes in words and variables, goes out the exit code and what it said. For what answers and ends;
//! what stays is a [`Process`](crate::Process).

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a command may take: generous, a loaded machine is no bug.
const LIMIT: Duration = Duration::from_secs(30);

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// What it printed; panics unless it ended with 0.
    pub fn printed(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout.trim_end().to_owned()
    }
}

/// Runs `binary` with these words, and of the `SERVERY_*` variables with these only.
pub async fn run(binary: impl AsRef<Path>, words: &[&str], variables: &[(&str, &str)]) -> Ended {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(binary.as_ref());
    forget_servery(&mut command);
    command.args(words).envs(variables.iter().copied()).stdin(Stdio::null());
    // Into files: whole when the process has ended, and never full as a pipe is.
    let [out, err] = ["out", "err"].map(|name| directory.path().join(name));
    command.stdout(File::create(&out).expect("a file below the temporary directory"));
    command.stderr(File::create(&err).expect("a file below the temporary directory"));
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn().expect("spawn the binary under test");
    let status = tokio::time::timeout(LIMIT, child.wait()).await;
    let [stdout, stderr] = [out, err].map(|file| std::fs::read_to_string(file).expect("text"));
    let Ok(status) = status else { panic!("{words:?} still runs after {LIMIT:?}; it said {stdout}{stderr}") };
    let status = status.expect("this task alone waits for the child");
    println!("{words:?}: {status}\n{stdout}{stderr}");
    Ended { code: status.code().unwrap_or_else(|| panic!("{words:?} died: {status}")), stdout, stderr }
}

/// What the tests' own environment says about Servery is not for the processes under test.
pub fn forget_servery(command: &mut Command) {
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("SERVERY_") {
            command.env_remove(variable);
        }
    }
}
