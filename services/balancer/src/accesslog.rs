//! The access log: one line per request. In: `Line`s, from each core into a buffer of its own. Out: one write per batch, at
//! most 100 ms late, by a thread of its own (`writer`), so that a slow reader of the log stops no core: then lines are
//! lost and counted. A `tracing` event would cost 4.5 µs per request, this costs a tenth of it.

use std::{
    cell::{Cell, RefCell},
    sync::mpsc::{SyncSender, TrySendError},
    time::{Duration, SystemTime},
};
use tokio::sync::Notify;

mod line;
mod settings;
mod writer;

pub use line::Line;
pub(crate) use line::TEXT;
pub use settings::{Format, Place, Style};
pub use writer::{Batch, Destination, OpenError, Writer, spawn_writer};

/// A batch is handed over when it is this long.
const BATCH: usize = 32 * 1024;
/// Or this old.
const LATENESS: Duration = Duration::from_millis(100);

/// One core's end.
#[derive(Debug)]
pub struct AccessLog {
    buffer: RefCell<Buffer>,
    /// `None`: nothing is written.
    sink: Option<SyncSender<Batch>>,
    begun: Notify,
    lost: Cell<u64>,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    lines: u64,
    clock: line::Clock,
}

impl AccessLog {
    pub fn new(sink: Option<SyncSender<Batch>>) -> Self {
        Self { buffer: RefCell::default(), sink, begun: Notify::new(), lost: Cell::new(0) }
    }

    pub fn is_off(&self) -> bool {
        self.sink.is_none()
    }

    pub fn push(&self, line: &Line<'_>, style: Style, now: SystemTime) {
        if self.is_off() {
            return;
        }
        let mut buffer = self.buffer.borrow_mut();
        if buffer.bytes.is_empty() {
            self.begun.notify_one();
        }
        let Buffer { bytes, lines, clock } = &mut *buffer;
        line.write(bytes, style, clock, now);
        *lines += 1;
        if buffer.bytes.len() >= BATCH {
            self.hand_over(&mut buffer);
        }
    }

    pub fn flush(&self) {
        let mut buffer = self.buffer.borrow_mut();
        if !buffer.bytes.is_empty() {
            self.hand_over(&mut buffer);
        }
    }

    /// Flushes what is old enough, for ever; sleeps while there is nothing.
    pub async fn keep_flushed(&self) {
        loop {
            self.begun.notified().await;
            tokio::time::sleep(LATENESS).await;
            self.flush();
        }
    }

    /// Lines lost since this was asked last.
    pub fn take_lost(&self) -> u64 {
        self.lost.take()
    }

    fn hand_over(&self, buffer: &mut Buffer) {
        let bytes = std::mem::replace(&mut buffer.bytes, Vec::with_capacity(BATCH + 1024));
        let lines = std::mem::take(&mut buffer.lines);
        let sent = self.sink.as_ref().map(|sink| sink.try_send(Batch { bytes, lines }));
        if let Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) = sent {
            self.lost.set(self.lost.get() + lines);
        }
    }
}

impl Drop for AccessLog {
    /// Records may end after everything else on the core: with its last tasks.
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        line::tests::{JSON, line},
        *,
    };
    use std::sync::mpsc::sync_channel;

    fn push(log: &AccessLog) {
        log.push(&line(), JSON, SystemTime::now());
    }

    #[test]
    fn lines_that_the_writer_cannot_take_are_counted() {
        let (sink, batches) = sync_channel(1);
        let log = AccessLog::new(Some(sink));
        for _ in 0..3 {
            push(&log);
            log.flush();
        }
        assert_eq!(log.take_lost(), 2);
        assert_eq!(batches.try_iter().count(), 1);
    }

    #[test]
    fn where_nothing_is_written_nothing_is_kept_or_lost() {
        let log = AccessLog::new(None);
        push(&log);
        assert_eq!((log.buffer.borrow().bytes.len(), log.take_lost()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_is_at_most_100_ms_late() {
        let (sink, batches) = sync_channel(8);
        let log = AccessLog::new(Some(sink));
        let flusher = log.keep_flushed();
        tokio::pin!(flusher);
        for _ in 0..2 {
            push(&log);
            assert!(tokio::time::timeout(Duration::from_millis(99), &mut flusher).await.is_err());
            assert_eq!(batches.try_iter().count(), 0);
            assert!(tokio::time::timeout(Duration::from_millis(2), &mut flusher).await.is_err());
            assert_eq!(batches.try_iter().count(), 1);
        }
    }
}
