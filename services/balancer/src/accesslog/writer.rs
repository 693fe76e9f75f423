//! The thread that writes the access log, and what it writes into. In: batches of lines. Out: stdout, or a file that is
//! opened anew when it was moved away. What cannot be written is lost and counted: it never stops a request, and it never
//! leaves half a line before a whole one.

use super::settings::Place;
use metrics::Counter;
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

/// Batches that wait for the writer; beyond that lines are lost. 8 MiB in all.
const BATCHES: usize = 256;

/// Somebody else may have made the pipe behind stdout non-blocking: how often, and for how long, a full one is waited for.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// The group may read it; log lines are nobody else's business.
const MODE: u32 = 0o640;

/// Whole lines.
#[derive(Debug)]
pub struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) lines: u64,
}

/// The file cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the access log {path}: {source}; its directory has to be there and writable")]
pub struct OpenError {
    path: PathBuf,
    source: io::Error,
}

/// Where the log goes.
#[derive(Debug)]
pub struct Destination {
    place: Place,
    /// The file under the old name, opened, and not taken over by the thread yet.
    anew: Mutex<Option<File>>,
}

impl Destination {
    pub fn new(place: Place) -> Arc<Self> {
        Arc::new(Self { place, anew: Mutex::new(None) })
    }

    /// `None`: nothing is to be written.
    pub fn open(&self) -> Result<Option<Box<dyn Write + Send>>, OpenError> {
        match &self.place {
            Place::Off => Ok(None),
            Place::Stdout => {
                // a descriptor of its own: std's stdout is line-buffered behind a lock
                let stdout = io::stdout().as_fd().try_clone_to_owned();
                let failed = |source| OpenError { path: "stdout".into(), source };
                Ok(Some(Box::new(File::from(stdout.map_err(failed)?))))
            }
            Place::File(path) => Ok(Some(Box::new(open(path)?))),
        }
    }

    /// The file has been moved: the batches after this go into a new one of its name. One that cannot be opened leaves
    /// everything as it is. Blocks on the file system.
    pub fn reopen(&self) {
        let Place::File(path) = &self.place else {
            tracing::info!("the access log is no file, so there is nothing to open anew");
            return;
        };
        match open(path) {
            Ok(file) => {
                *self.anew.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
                tracing::info!(path = %path.display(), "opened the access log anew");
            }
            Err(error) => tracing::error!("{error}; going on with the old one"),
        }
    }

    fn take_anew(&self) -> Option<File> {
        self.anew.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn open(path: &PathBuf) -> Result<File, OpenError> {
    let opened = OpenOptions::new().append(true).create(true).mode(MODE).open(path);
    opened.map_err(|source| OpenError { path: path.clone(), source })
}

/// The thread that writes.
#[derive(Debug)]
pub struct Writer {
    thread: thread::JoinHandle<()>,
}

impl Writer {
    /// Waits until everything is written; blocks.
    pub fn join(self) {
        drop(self.thread.join());
    }
}

/// Starts the thread. It ends when every clone of the sender is gone. `lost` counts lines.
pub fn spawn_writer(
    out: Box<dyn Write + Send>,
    destination: Arc<Destination>,
    lost: Counter,
) -> io::Result<(SyncSender<Batch>, Writer)> {
    let (sink, batches): (_, Receiver<Batch>) = sync_channel(BATCHES);
    let thread = thread::Builder::new().name("access-log".to_owned()).spawn(move || {
        let mut sheet = Sheet::new(out);
        for batch in batches {
            if let Some(file) = destination.take_anew() {
                sheet = Sheet { failing: sheet.failing, ..Sheet::new(Box::new(file)) };
            }
            lost.increment(sheet.put(&batch));
        }
    })?;
    Ok((sink, Writer { thread }))
}

/// What is written into just now.
struct Sheet {
    out: Box<dyn Write + Send>,
    /// The last line has no end.
    torn: bool,
    /// Lines lost since the last batch that was written whole.
    failing: u64,
}

impl Sheet {
    fn new(out: Box<dyn Write + Send>) -> Self {
        Self { out, torn: false, failing: 0 }
    }

    /// Lines that were lost.
    fn put(&mut self, batch: &Batch) -> u64 {
        if self.torn {
            match self.write(b"\n") {
                Ok(()) => self.torn = false,
                Err((error, _)) => return self.lose(&error, batch.lines),
            }
        }
        match self.write(&batch.bytes) {
            Ok(()) => {
                if std::mem::take(&mut self.failing) > 0 {
                    tracing::info!("the access log can be written again");
                }
                0
            }
            Err((error, written)) => {
                let (before, after) = batch.bytes.split_at(written);
                self.torn = before.last().is_some_and(|byte| *byte != b'\n');
                let lines = after.iter().filter(|byte| **byte == b'\n').count();
                self.lose(&error, lines as u64)
            }
        }
    }

    /// A disk that is full stays so for a while: it is said once.
    fn lose(&mut self, error: &io::Error, lines: u64) -> u64 {
        if self.failing == 0 {
            tracing::error!(%error, "the access log cannot be written: lines are lost until it can");
        }
        self.failing += lines.max(1);
        lines
    }

    /// Everything, or how much of it.
    fn write(&mut self, bytes: &[u8]) -> Result<(), (io::Error, usize)> {
        let (mut written, mut tries) = (0, 0);
        while written < bytes.len() {
            match self.out.write(&bytes[written..]) {
                Ok(0) => return Err((io::ErrorKind::WriteZero.into(), written)),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < TRIES => {
                    tries += 1;
                    thread::sleep(PAUSE);
                }
                Err(error) => return Err((error, written)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::VecDeque, fs};

    /// A disk with room for so many bytes each time.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, VecDeque<usize>)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let room = disk.1.pop_front().unwrap_or(usize::MAX).min(bytes.len());
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.0.extend_from_slice(&bytes[..room]);
            Ok(room)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn batch(text: &str) -> Batch {
        Batch { bytes: text.as_bytes().to_vec(), lines: text.lines().count() as u64 }
    }

    #[test]
    fn a_full_disk_loses_lines_but_never_half_of_one_before_another() {
        let disk = Disk::default();
        let mut sheet = Sheet::new(Box::new(disk.clone()));
        disk.0.lock().unwrap().1 = [3, 4, 0, 0, 1, 0].into();
        assert_eq!(sheet.put(&batch("aaa\nbbb\nccc\n")), 2, "the second is torn, the third not begun");
        assert_eq!(sheet.put(&batch("ddd\neee\n")), 2, "not even its end");
        assert_eq!(sheet.put(&batch("fff\n")), 1, "only that");
        assert_eq!(sheet.put(&batch("ggg\n")), 0);
        assert_eq!(String::from_utf8(disk.0.lock().unwrap().0.clone()).unwrap(), "aaa\nbbb\nggg\n");
    }

    #[test]
    fn a_pipe_that_does_not_block_is_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        let writer = std::os::fd::OwnedFd::from(writer);
        socket2::SockRef::from(&writer).set_nonblocking(true).unwrap();
        let mut sheet = Sheet::new(Box::new(File::from(writer)));
        // more than a pipe holds
        let text = "0123456789abcde\n".repeat(64 * 1024);
        let wanted = text.len();
        let read = thread::spawn(move || {
            let mut bytes = vec![0; wanted];
            io::Read::read_exact(&mut reader, &mut bytes).unwrap();
            bytes
        });
        assert_eq!(sheet.put(&batch(&text)), 0);
        assert_eq!(read.join().unwrap(), text.as_bytes());
    }

    #[test]
    fn a_device_without_room_stops_nobody() {
        let full = Destination::new(Place::File("/dev/full".into()));
        let mut sheet = Sheet::new(full.open().unwrap().unwrap());
        assert_eq!((sheet.put(&batch("a\nb\n")), sheet.put(&batch("c\n"))), (2, 1));
        assert_eq!(sheet.failing, 3);
    }

    fn write(sink: &SyncSender<Batch>, text: &str) {
        sink.send(batch(text)).unwrap();
    }

    #[test]
    fn a_file_that_was_moved_is_followed_by_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("access.log"), directory.path().join("access.log.1"));
        fs::write(&path, "of an earlier run\n").unwrap();
        let destination = Destination::new(Place::File(path.clone()));
        let out = destination.open().unwrap().unwrap();
        let (sink, writer) = spawn_writer(out, Arc::clone(&destination), Counter::noop()).unwrap();
        write(&sink, "one\n");
        while fs::read_to_string(&path).unwrap() != "of an earlier run\none\n" {
            thread::yield_now();
        }
        fs::rename(&path, &moved).unwrap();
        destination.reopen();
        assert_eq!(fs::read_to_string(&path).unwrap(), "", "it is there at once");
        write(&sink, "two\n");
        drop(sink);
        writer.join();
        assert_eq!(fs::read_to_string(&moved).unwrap(), "of an earlier run\none\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions()) & 0o007, 0);
    }

    #[test]
    fn where_no_new_file_can_be_made_the_old_one_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let (old, gone) = (directory.path().join("logs"), directory.path().join("gone"));
        fs::create_dir(&old).unwrap();
        let destination = Destination::new(Place::File(old.join("access.log")));
        let out = destination.open().unwrap().unwrap();
        let (sink, writer) = spawn_writer(out, Arc::clone(&destination), Counter::noop()).unwrap();
        fs::rename(&old, &gone).unwrap();
        destination.reopen();
        write(&sink, "one\n");
        drop(sink);
        writer.join();
        assert_eq!(fs::read_to_string(gone.join("access.log")).unwrap(), "one\n");
        let error = destination.open().err().unwrap().to_string();
        assert!(error.contains("logs/access.log") && error.contains("directory"), "{error}");
    }
}
