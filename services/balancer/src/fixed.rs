//! Fixed upstreams: servers that the configuration names, and that do not register. In: the configured routes. Out: for each
//! upstream an app whose nodes are the addresses that its servers have just now, so that queue, permits, retries, ejection
//! and metrics are the same as for app-servers. One task per upstream resolves its names again and again and asks its
//! servers whether they are well. It never stands in a request's way: what it knows is in the app.

mod check;
mod group;
mod members;
mod standing;
mod trust;

pub(crate) use trust::TrustError;

use crate::{
    app::Apps,
    config::{RouteConfig, RouteTarget, UpstreamConfig},
};
use chassis::discovery::Discovery;
use futures_util::{FutureExt as _, future::select};
use group::Group;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use trust::Trust;

/// Every fixed upstream of the configuration. They end with it.
#[derive(Debug)]
pub(crate) struct Groups {
    apps: Arc<Apps>,
    discovery: Discovery,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By name.
    running: BTreeMap<String, Running>,
    /// By name, those that linger, or did when this was looked at.
    leaving: BTreeMap<String, Running>,
    /// Of every upstream that there has been, as its app is for ever: held by the task whose addresses the app has. Two of
    /// them could not be told apart.
    turns: BTreeMap<String, Arc<Turn>>,
}

type Turn = tokio::sync::Mutex<()>;

/// The upstreams of a configuration, with everything that they need.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// By name.
    upstreams: BTreeMap<String, Arc<UpstreamConfig>>,
    /// By the file that they come from.
    trusts: BTreeMap<Option<PathBuf>, Trust>,
}

impl Wanted {
    /// Reads the files that the routes name, and may block on them.
    ///
    /// # Errors
    /// Where the certificates that an `https` upstream is to be verified by cannot be had.
    pub(crate) fn read(routes: &[RouteConfig]) -> Result<Self, TrustError> {
        let (mut upstreams, mut trusts) = (BTreeMap::new(), BTreeMap::new());
        for route in routes {
            let RouteTarget::Upstream(settings) = &route.target else { continue };
            if settings.servers.iter().any(|server| server.secure) && !trusts.contains_key(&settings.ca) {
                trusts.insert(settings.ca.clone(), Trust::read(settings.ca.as_deref())?);
            }
            upstreams.insert(settings.name.clone(), Arc::clone(settings));
        }
        Ok(Self { upstreams, trusts })
    }
}

/// One upstream's task. When it ends, by itself or because this is dropped, its addresses take nothing new.
#[derive(Debug)]
struct Running {
    settings: Arc<UpstreamConfig>,
    leave: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// How long an upstream that no route leads to any more serves on: requests may have been routed before, or wait.
const LINGER: Duration = Duration::from_secs(3);

impl Groups {
    pub(crate) fn new(apps: Arc<Apps>, discovery: Discovery) -> Self {
        Self { apps, discovery, inner: Mutex::default() }
    }

    /// From now on there are these upstreams and no others. What stays the same is not touched; what is gone lingers for a
    /// moment and finishes what it has. Starts tasks, so that it needs a runtime.
    pub(crate) fn follow(&self, wanted: Wanted) {
        let Wanted { upstreams: wanted, trusts } = wanted;
        // Every change is a move of plain data; nothing in between can panic.
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { running, leaving, turns } = &mut *inner;
        for (name, group) in running.extract_if(.., |name, _| !wanted.contains_key(name)) {
            group.leave.cancel();
            leaving.insert(name, group);
        }
        leaving.retain(|name, group| !wanted.contains_key(name) && !group.task.is_finished());
        running.retain(|name, group| wanted[name] == group.settings);
        for (name, settings) in wanted {
            if running.contains_key(&name) {
                continue;
            }
            let app = self.apps.obtain(&name);
            let group = Group::new(app, &settings, trusts.get(&settings.ca), self.discovery.clone());
            let turn = Arc::clone(turns.entry(name.clone()).or_default());
            let leave = CancellationToken::new();
            let left = leave.clone();
            let task = tokio::spawn(async move {
                let _turn = turn.lock_owned().await;
                let lingered = left.cancelled().then(|()| sleep(LINGER));
                select(pin!(group.run()), pin!(lingered)).await;
            });
            running.insert(name, Running { settings, leave, task: AbortOnDropHandle::new(task) });
        }
    }
}

#[cfg(test)]
mod tests;
