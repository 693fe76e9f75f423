//! The control socket `<data>/control.sock` (0600): one line of JSON in, one line of JSON out. Both ends of it: the
//! server that the cert-sidecar runs, and the functions that `servery certs` calls.

use crate::{config::Right, trust::Trust};
use chassis::identity::Role;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};

/// The longest question; answers may list every instance.
const MAX_QUESTION: u64 = 64 << 10;
const MAX_ANSWER: u64 = 64 << 20;
const LIMIT: Duration = Duration::from_secs(5);
/// Questions at once; more wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
enum Question {
    Root,
    List,
    Token { role: String, app: Option<String>, prefixes: Vec<String>, rotate: bool },
    Deny { instance: String },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ok(Value),
    Error(String),
}

/// Why the cert-sidecar did not answer, or what it said.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no cert-sidecar answers at {path}: {source}. Is it running, and is this its data directory?")]
    Unreachable { path: PathBuf, source: io::Error },
    #[error("the cert-sidecar at {0} did not answer in time")]
    Late(PathBuf),
    #[error("the cert-sidecar's answer is not understood: {0}")]
    Garbled(String),
    #[error("{0}")]
    Refused(String),
}

/// The internal root, PEM.
pub async fn root(data: &Path) -> Result<String, ControlError> {
    text(&ask(data, &Question::Root).await?)
}

/// Certificates, tokens (without secrets), instances, what is denied.
pub async fn list(data: &Path) -> Result<Value, ControlError> {
    ask(data, &Question::List).await
}

/// The join token for a role, made where there is none. `rotate`: a new one, and the old one enrols nobody any more.
pub async fn token(
    data: &Path,
    role: Role,
    app: Option<String>,
    prefixes: Vec<String>,
    rotate: bool,
) -> Result<String, ControlError> {
    text(&ask(data, &Question::Token { role: role.to_string(), app, prefixes, rotate }).await?)
}

/// Shuts an instance out.
pub async fn deny(data: &Path, instance: &str) -> Result<(), ControlError> {
    ask(data, &Question::Deny { instance: instance.to_owned() }).await.map(drop)
}

fn text(value: &Value) -> Result<String, ControlError> {
    value.as_str().map(str::to_owned).ok_or_else(|| ControlError::Garbled(value.to_string()))
}

async fn ask(data: &Path, question: &Question) -> Result<Value, ControlError> {
    let path = socket(data);
    let exchange = async {
        let short = Short::of(data)?;
        let mut stream = UnixStream::connect(short.socket()).await?;
        let mut line = serde_json::to_vec(question).map_err(io::Error::other)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut answer).await?;
        Ok(answer)
    };
    let answer = timeout(LIMIT, exchange).await.map_err(|_| ControlError::Late(path.clone()))?;
    let answer = answer.map_err(|source| ControlError::Unreachable { path, source })?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Ok(value)) => Ok(value),
        Ok(Answer::Error(message)) => Err(ControlError::Refused(message)),
        Err(error) => Err(ControlError::Garbled(error.to_string())),
    }
}

fn socket(data: &Path) -> PathBuf {
    data.join("control.sock")
}

/// The data directory under a name that is short: a socket's path has room for 107 bytes only (unix(7)).
struct Short(File);

impl Short {
    fn of(data: &Path) -> io::Result<Self> {
        File::open(data).map(Self)
    }

    fn socket(&self) -> PathBuf {
        socket(&PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())))
    }
}

/// Binds the socket. The store's lock is held by now: what is there is a dead process's.
pub(crate) fn bind(data: &Path) -> io::Result<UnixListener> {
    let path = socket(data);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(Short::of(data)?.socket())?; // before the mode is set, is_ours() keeps others out
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until dropped.
pub(crate) async fn serve(listener: UnixListener, trust: Arc<Trust>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) if !is_ours(&stream) => {
                    tracing::warn!("refused another user at the control socket");
                }
                Ok((stream, _)) => {
                    let trust = Arc::clone(&trust);
                    connections.spawn(async move {
                        // late, garbled or gone: the asker's loss, nobody else's
                        let _ = timeout(LIMIT, converse(stream, &trust)).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "control socket");
                    tokio::time::sleep(Duration::from_secs(1)).await; // out of descriptors, most likely
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Of our own user, or root.
fn is_ours(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == ours || peer.uid() == 0)
}

async fn converse(stream: UnixStream, trust: &Trust) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_QUESTION)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(question) => match answer(question, trust, SystemTime::now()) {
            Ok(value) => Answer::Ok(value),
            Err(message) => Answer::Error(message),
        },
        Err(error) => Answer::Error(format!("not a question: {error}")),
    };
    let mut line = serde_json::to_vec(&answer).map_err(io::Error::other)?;
    line.push(b'\n');
    write.write_all(&line).await?;
    write.shutdown().await
}

fn answer(question: Question, trust: &Trust, now: SystemTime) -> Result<Value, String> {
    match question {
        Question::Root => Ok(trust.root_pem().into()),
        Question::List => {
            let mut list = trust.describe();
            list["certificates"] = crate::status::certificates(trust);
            Ok(list)
        }
        Question::Token { role, app, prefixes, rotate } => {
            let role: Role = role.parse().map_err(|_| format!("`{role}` is no role: balancer or app_server"))?;
            let any_prefixes = prefixes.is_empty();
            let right = Right::new(role, app, prefixes).map_err(|error| error.to_string())?;
            let token = trust.token(&right, any_prefixes, rotate, now).map_err(|error| error.to_string())?;
            tracing::info!(right = right.slot(), rotate, "gave a join token to the control socket");
            Ok(token.into())
        }
        Question::Deny { instance } => {
            if !trust.knows(&instance) && !trust.is_denied(&instance) {
                return Err(format!("no instance is called `{instance}`; see `servery certs list`"));
            }
            trust.deny(&instance, now).map_err(|error| error.to_string())?;
            tracing::warn!(instance, "denied an instance");
            Ok(Value::Null)
        }
    }
}
