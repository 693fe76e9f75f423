//! What a process costs. In: its number. Out: the memory it holds and the processor time it has used, as the kernel
//! counts them. It keeps nothing: rates are made by who remembers the last sample.

use procfs::process::Process;
use std::time::Duration;

/// One sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Resident memory, to a few hundred KiB; what it shares with other processes is counted for each of them.
    pub(crate) rss_bytes: u64,
    /// In user space and in the kernel together, over all threads and since its start.
    pub(crate) cpu: Duration,
}

impl Usage {
    /// `None` when it is gone, reaped or not. Three small reads of `/proc`: some tens of microseconds.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
        if matches!(stat.state, 'Z' | 'X') {
            return None;
        }
        let ticks = stat.utime.saturating_add(stat.stime);
        let per_second = procfs::ticks_per_second().max(1);
        let rest = (ticks % per_second).saturating_mul(1_000_000_000) / per_second;
        Some(Self {
            rss_bytes: stat.rss.saturating_mul(procfs::page_size()),
            cpu: Duration::from_secs(ticks / per_second) + Duration::from_nanos(rest),
        })
    }

    /// Cores in use since `earlier`, which was taken `elapsed` ago: 1.5 is one and a half.
    pub(crate) fn cores_since(&self, earlier: &Self, elapsed: Duration) -> f64 {
        if elapsed.is_zero() {
            return 0.0;
        }
        self.cpu.saturating_sub(earlier.cpu).as_secs_f64() / elapsed.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{hint::black_box, process::Command, time::Instant};

    #[test]
    fn memory_and_processor_time_grow_as_they_are_used() {
        let before = Usage::of(std::process::id()).unwrap();
        let held = black_box(vec![1_u8; 64 << 20]);
        let started = Instant::now();
        // other tests of this process may only add to it
        let after = loop {
            let now = Usage::of(std::process::id()).unwrap();
            if now.cpu >= before.cpu + Duration::from_millis(50) || started.elapsed() > Duration::from_secs(20) {
                break now;
            }
            black_box(held.iter().map(|byte| u64::from(*byte)).sum::<u64>());
        };
        assert!(after.cpu > before.cpu);
        // half of it: the others may give some back meanwhile
        assert!(after.rss_bytes > before.rss_bytes + (32 << 20), "{before:?} {after:?}");
        drop(held);
    }

    #[test]
    fn nothing_is_said_of_the_dead() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        assert!(Usage::of(pid).is_some());
        drop(child.stdin.take());
        rustix::process::waitid(
            rustix::process::WaitId::Pid(rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap()),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        assert_eq!(Usage::of(pid), None, "a zombie");
        child.wait().unwrap();
        assert_eq!(Usage::of(pid), None);
        assert_eq!(Usage::of(u32::MAX), None);
    }

    #[test]
    fn a_rate_is_cores() {
        let at = |millis| Usage { rss_bytes: 0, cpu: Duration::from_millis(millis) };
        let rate = at(1600).cores_since(&at(100), Duration::from_secs(1));
        assert!((rate - 1.5).abs() < 1e-9, "{rate}");
        // a fresh worker under the old one's position
        assert!(at(0).cores_since(&at(100), Duration::from_secs(1)).abs() < 1e-9);
        assert!(at(1).cores_since(&at(0), Duration::ZERO).abs() < 1e-9);
    }
}
