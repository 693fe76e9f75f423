//! What one core has to itself: its upstream connections, its end of the access log, its generator, the tasks it still
//! has to finish. Nothing in here is shared with another core, so nothing in here is locked.

use crate::{
    Shared,
    accesslog::AccessLog,
    app::Permit,
    buffers::Buffers,
    idle::Idle,
    metrics::EdgeMetrics,
    stalls::Stalls,
    trace::{Trace, write_digits},
    upstream::Pool,
    values::Values,
};
use chassis::config::Fraction;
use http::HeaderValue;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

pub struct Edge {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    pub(crate) buffers: Rc<Buffers>,
    pub(crate) stalls: Rc<Stalls>,
    pub(crate) idle: Rc<Idle>,
    pub(crate) log: AccessLog,
    pub(crate) metrics: EdgeMetrics,
    pub(crate) values: Values,
    rng: RefCell<SmallRng>,
    /// The drain is over: what ends from now on was ended by us.
    pub(crate) cutting: Cell<bool>,
    /// Ended with the core's runtime at the latest.
    pub(crate) tasks: TaskTracker,
}

impl Edge {
    pub fn new(shared: Arc<Shared>, log: AccessLog) -> Self {
        Self {
            pool: Pool::new(Arc::clone(&shared)),
            buffers: Buffers::new(shared.config.load().buffers_per_core()),
            stalls: Rc::default(),
            idle: Idle::new(shared.config.load().idle_memory_per_core()),
            shared,
            log,
            metrics: EdgeMetrics::register(),
            values: Values::default(),
            cutting: Cell::new(false),
            rng: RefCell::new(SmallRng::from_rng(&mut rand::rng())),
            tasks: TaskTracker::new(),
        }
    }

    /// 128 random bits in hexadecimal. Not secret: it only has to be met once.
    pub(crate) fn request_id(&self) -> HeaderValue {
        let mut text = [0; 32];
        write_digits(&mut text, self.rng.borrow_mut().random());
        self.values.make(&text)
    }

    /// A trace that begins with this request.
    pub(crate) fn trace(&self) -> Trace {
        let sampled = self.is_within(self.shared.config.load().trace_sample);
        Trace::begin(self.rng.borrow_mut().random(), sampled)
    }

    pub(crate) fn random(&self) -> u64 {
        self.rng.borrow_mut().random()
    }

    /// Whether this one of many is among that share of them.
    pub(crate) fn is_within(&self, share: Fraction) -> bool {
        share == Fraction::ALL || share.has(self.rng.borrow_mut().random())
    }

    /// Gives a permit back later, or as soon as its endpoint is gone. An endpoint that just failed or refused is idle,
    /// so it would be the first choice for everything that comes: this makes it look busy for a moment.
    pub(crate) fn rest(&self, permit: Permit, pause: Duration) {
        self.tasks.spawn_local(async move {
            // Either will do: it is over or there is nothing left to spare.
            let _ = timeout(pause, permit.endpoint().gone()).await;
            drop(permit);
        });
    }
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge").finish_non_exhaustive()
    }
}
