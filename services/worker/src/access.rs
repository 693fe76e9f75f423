//! The access log of a worker that clients reach by themselves: comes in each request's end, goes out one JSON line, in
//! batches, by a thread of its own, so that a slow reader of the log stops no request: then lines are lost and counted.

use crate::{Error, Placement, conversation::Conversation, held::Asked, pass::Seldom};
use http::{HeaderValue, Request, StatusCode, Version, header};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, SystemTime},
};
use tokio::{sync::Notify, time::Instant};

mod line;

use line::Line;

/// A batch is handed over when it is this long.
const BATCH: usize = 32 * 1024;
/// Or this old.
const LATENESS: Duration = Duration::from_millis(250);
/// Batches that wait for the thread; beyond that lines are lost. 2 MiB in all.
const BATCHES: usize = 64;

/// A write of at most this size is not torn by the other workers' into the same pipe (PIPE_BUF).
const WHOLE_WRITE: usize = 4096;

/// A client that left before it was answered, as nginx has it.
const CLIENT_LEFT: u16 = 499;

/// Where the lines go.
#[derive(Clone, Debug)]
enum Target {
    Stdout,
    File(PathBuf),
}

/// What the thread is told.
enum Task {
    Write { bytes: Vec<u8>, lines: u64 },
    Reopen,
}

/// Shared by the connections of a worker.
#[derive(Debug)]
pub(crate) struct AccessLog {
    /// The end of every line: which worker it is.
    place: String,
    batch: Mutex<Batch>,
    begun: Notify,
    lost: Seldom,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
    date: line::Date,
    /// `None` once the log has been finished.
    sink: Option<SyncSender<Task>>,
}

/// One request, from its head to the end of its answer. Dropping it writes its line.
#[derive(Debug)]
pub(crate) struct Entry {
    log: Arc<AccessLog>,
    conversation: Arc<Conversation>,
    began: Instant,
    asked: Asked,
    client: Option<IpAddr>,
    host: Option<HeaderValue>,
    version: Version,
    status: Option<StatusCode>,
    queue: Duration,
    bytes_out: u64,
}

impl AccessLog {
    /// Opens the file, or stdout for `-`, and starts the thread.
    pub(crate) fn start(path: &str, placement: &Placement) -> Result<Arc<Self>, Error> {
        let target = if path == "-" { Target::Stdout } else { Target::File(path.into()) };
        let failed = |error| Error::AccessLog { path: path.to_owned(), error };
        let out = target.open().map_err(failed)?;
        let (sink, tasks) = sync_channel(BATCHES);
        let thread = thread::Builder::new().name("access-log".to_owned());
        let thread = thread.spawn(move || write_all(&target, out, &tasks)).map_err(failed)?;
        Ok(Arc::new(Self {
            place: line::place(placement),
            batch: Mutex::new(Batch { bytes: Vec::new(), lines: 0, date: line::Date::default(), sink: Some(sink) }),
            begun: Notify::new(),
            lost: Seldom::default(),
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// A request whose head is here.
    pub(crate) fn enter<B>(
        self: &Arc<Self>,
        request: &Request<B>,
        asked: Asked,
        client: Option<IpAddr>,
        conversation: &Arc<Conversation>,
        began: Instant,
    ) -> Box<Entry> {
        Box::new(Entry {
            log: Arc::clone(self),
            conversation: Arc::clone(conversation),
            began,
            asked,
            client,
            host: request.headers().get(header::HOST).cloned(),
            version: request.version(),
            status: None,
            queue: Duration::ZERO,
            bytes_out: 0,
        })
    }

    /// The file has been moved: what comes from now on goes into a new one of its name.
    pub(crate) fn reopen(&self) {
        let mut batch = self.lock();
        self.hand_over(&mut batch);
        if batch.sink.as_ref().is_some_and(|sink| sink.try_send(Task::Reopen).is_err()) {
            tracing::warn!("the access log is too far behind to be opened anew: say it again");
        }
    }

    /// Hands over what is old enough, for ever; sleeps while there is nothing.
    pub(crate) async fn keep_flushed(self: Arc<Self>) {
        loop {
            self.begun.notified().await;
            tokio::time::sleep(LATENESS).await;
            self.hand_over(&mut self.lock());
        }
    }

    /// Until everything is written; blocks. Lines after that are lost.
    pub(crate) fn finish(&self) {
        let mut batch = self.lock();
        self.hand_over(&mut batch);
        batch.sink = None;
        drop(batch);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(thread.join());
        }
    }

    fn push(&self, line: &Line<'_>, now: SystemTime) {
        let mut batch = self.lock();
        let batch = &mut *batch;
        if batch.bytes.is_empty() {
            self.begun.notify_one();
        }
        line.write(&mut batch.bytes, &mut batch.date, &self.place, now);
        batch.lines += 1;
        if batch.bytes.len() >= BATCH {
            self.hand_over(batch);
        }
    }

    fn hand_over(&self, batch: &mut Batch) {
        if batch.bytes.is_empty() {
            return;
        }
        let bytes = std::mem::replace(&mut batch.bytes, Vec::with_capacity(BATCH + 1024));
        let lines = std::mem::take(&mut batch.lines);
        let Some(sink) = &batch.sink else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = sink.try_send(Task::Write { bytes, lines })
            && let Some(lines) = self.lost.tell(lines, Instant::now())
        {
            tracing::warn!(lines, "the access log cannot be written fast enough: lines are lost");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Target {
    fn open(&self) -> io::Result<Box<dyn Write + Send>> {
        match self {
            Self::Stdout => Ok(Box::new(Unbuffered)),
            Self::File(path) => Ok(Box::new(open_to_append(path)?)),
        }
    }
}

/// A log file, as every process that writes to it opens it.
pub(crate) fn open_to_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Stdout without the lock and the buffer of the standard library's.
struct Unbuffered;

impl Write for Unbuffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(rustix::stdio::stdout(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread: until the log is finished.
fn write_all(target: &Target, mut out: Box<dyn Write + Send>, tasks: &Receiver<Task>) {
    let failed = Seldom::default();
    for task in tasks {
        match task {
            Task::Reopen => match target.open() {
                Ok(anew) => out = anew,
                Err(error) => tracing::error!(%error, ?target, "the access log cannot be opened anew"),
            },
            Task::Write { bytes, lines } => {
                if let Err(error) = pieces(&bytes).try_for_each(|piece| out.write_all(piece))
                    && let Some(lines) = failed.tell(lines, Instant::now())
                {
                    tracing::warn!(%error, lines, "the access log cannot be written: lines are lost");
                }
            }
        }
    }
}

/// Whole lines, as many as fit into one write that is not torn.
fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let newline = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n');
        let ahead = &bytes[..bytes.len().min(WHOLE_WRITE)];
        let end = newline(ahead).map(|at| at + 1);
        // a longer line goes out as it is
        let end = end.or_else(|| bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1));
        let (piece, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        bytes = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

impl Entry {
    /// So long it waited for a slot.
    pub(crate) fn queued(&mut self, queue: Duration) {
        self.queue = queue;
    }

    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// So many bytes of the answer's body went out.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.bytes_out += bytes;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let line = Line {
            request_id: self.asked.id(),
            client: self.client,
            method: &self.asked.method,
            host: self.host.as_ref(),
            uri: &self.asked.uri,
            version: self.version,
            status: self.status.map_or(CLIENT_LEFT, |status| status.as_u16()),
            bytes_in: self.conversation.bytes_in(),
            bytes_out: self.bytes_out,
            duration: self.began.elapsed(),
            queue: self.queue,
        };
        self.log.push(&line, SystemTime::now());
    }
}

#[cfg(test)]
mod tests {
    use super::{WHOLE_WRITE, pieces};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_are_whole_lines_and_nothing_is_lost(lines in prop::collection::vec(0..6000_usize, 0..8)) {
            let bytes: Vec<u8> = lines.iter().flat_map(|length| [vec![b'x'; *length], vec![b'\n']].concat()).collect();
            let cut: Vec<&[u8]> = pieces(&bytes).collect();
            prop_assert_eq!(&cut.concat(), &bytes);
            for piece in cut {
                prop_assert_eq!(piece.last(), Some(&b'\n'));
                let one = piece.iter().filter(|byte| **byte == b'\n').count() == 1;
                prop_assert!(piece.len() <= WHOLE_WRITE || one);
            }
        }
    }
}
