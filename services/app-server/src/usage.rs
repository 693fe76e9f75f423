//! placeholder
use procfs::process::Process;
use std::time::Duration;
pub(crate) struct Usage {
    pub(crate) rss_bytes: u64,
    pub(crate) cpu: Duration,
}
impl Usage {
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
        let cpu = Duration::from_secs_f64((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64);
        Some(Self { rss_bytes: stat.rss * procfs::page_size(), cpu })
    }
}
