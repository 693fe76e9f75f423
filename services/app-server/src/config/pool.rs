//! How many workers there are, and when one is replaced although nothing is wrong with it.

use chassis::config::{ByteSize, Mismatch, Reader, Toml, Value};
use std::time::Duration;

/// A worker that lived shorter would be replaced for most of its life.
const LIFETIME_MIN: Duration = Duration::from_secs(1);

/// Less is a typing error: no process fits.
const RSS_MIN: u64 = 1 << 20;

/// `auto`, or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WorkerCount {
    /// As many as the process may use cores.
    Auto,
    Count(u32),
}

/// When a worker is replaced by a fresh one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recycling {
    /// After so many requests. 0: never.
    pub max_requests: u64,
    /// Up to so many more, drawn anew for each worker, so that not all are replaced together.
    pub max_requests_jitter: u64,
    /// After so much time, and up to a tenth more.
    pub max_lifetime: Option<Duration>,
    /// When it holds so many bytes of memory: replaced as soon as the fresh one is ready.
    pub max_rss: Option<u64>,
    /// When it holds so many bytes of memory: killed at once.
    pub max_rss_hard: Option<u64>,
}

impl WorkerCount {
    pub(super) fn or_cores(self, cores: u32) -> u32 {
        match self {
            Self::Auto => cores,
            Self::Count(count) => count,
        }
    }
}

impl Recycling {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let max_requests = reader.read("app_server.max_requests", 0);
        let rss = |size: ByteSize| size.as_u64();
        Self {
            max_requests,
            max_requests_jitter: reader.read("app_server.max_requests_jitter", max_requests / 10),
            max_lifetime: reader.optional("app_server.max_lifetime"),
            max_rss: reader.optional("app_server.max_rss").map(rss),
            max_rss_hard: reader.optional("app_server.max_rss_hard").map(rss),
        }
    }

    pub(super) fn check(&self, reader: &mut Reader<'_>) {
        if self.max_requests_jitter > self.max_requests {
            let message = "the jitter comes on top of max_requests and is at most as much";
            reader.refuse("app_server.max_requests_jitter", message);
        }
        if self.max_lifetime.is_some_and(|lifetime| lifetime < LIFETIME_MIN) {
            reader.refuse("app_server.max_lifetime", "a worker lives for a second at least");
        }
        for (key, limit) in [("app_server.max_rss", self.max_rss), ("app_server.max_rss_hard", self.max_rss_hard)] {
            if limit.is_some_and(|limit| limit < RSS_MIN) {
                reader.refuse(key, "a worker needs 1MiB at least");
            }
        }
        if let (Some(soft), Some(hard)) = (self.max_rss, self.max_rss_hard)
            && soft >= hard
        {
            let message = "a worker is replaced at max_rss and killed at max_rss_hard, so that is the larger one";
            reader.refuse("app_server.max_rss_hard", message);
        }
    }
}

impl Value for WorkerCount {
    const EXPECTED: &'static str = "a number of workers, or \"auto\"";

    fn from_text(text: &str) -> Option<Self> {
        if text == "auto" { Some(Self::Auto) } else { text.parse().ok().map(Self::Count) }
    }

    fn from_toml(value: &Toml) -> Result<Self, Mismatch> {
        match value {
            Toml::Text(text) => Self::from_text(text),
            Toml::Integer(count) => u32::try_from(*count).ok().map(Self::Count),
            _ => None,
        }
        .ok_or_else(|| Mismatch::toml::<Self>(value))
    }
}
