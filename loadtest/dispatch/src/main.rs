//! Runs what the command line asks for and prints it as Markdown.

use anyhow::Context as _;
use dispatch_sim::{
    cli::{self, Task},
    cost, table,
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

/// The system's allocator, counted: `cost` tells how often a permit needs it.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[expect(unsafe_code, reason = "an allocator cannot be written without; every call is passed on as it came")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller promises us what the system's allocator asks for
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: it came from `alloc` with this layout, as the caller promises
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> anyhow::Result<()> {
    let task = cli::task(std::env::args()).unwrap_or_else(|error| error.exit());
    let cost = || cost::cost(|| ALLOCATIONS.load(Ordering::Relaxed));
    match task {
        Task::Run { scenario, policies, out } => {
            let shown = table::one(&scenario, &policies);
            print!("{}", shown.markdown);
            if let Some(out) = out {
                fs::write(&out, shown.svg).with_context(|| format!("cannot write {}", out.display()))?;
            }
        }
        Task::Table { seed, threads, folder } => {
            let mut shown = table::all(seed, threads);
            shown.markdown.push_str(&table::costs(&cost()?));
            for (name, text) in [("RESULTS.md", shown.markdown), ("waits.svg", shown.svg)] {
                let path = folder.join(name);
                fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Task::Cost => print!("{}", cost()?),
    }
    Ok(())
}
