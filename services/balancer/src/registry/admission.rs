//! May this Hello come in? In: what a node says, what its certificate says, where its stream comes from. Out: a
//! registration whose parts are all allowed and within bounds, or the refusal. Pure; what other nodes do is judged
//! elsewhere (`directory`).

use super::refusal::Refusal;
use crate::{
    config::is_app_name,
    endpoint::{Node, WorkerState, WorkerView},
    route::{HostPattern, Prefix},
};
use chassis::{config::Network, identity::PeerId};
use proto::{
    PROTOCOL_VERSION,
    registry::{self, Hello, Report},
};
use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

const ROUTES_MAX: usize = 64;
const PREFIX_BYTES_MAX: usize = 1024;
const WORKERS_MAX: usize = 512;
const CAPACITY_MAX: u32 = 65_536;
const CAUSES_MAX: usize = 32;
const CAUSE_BYTES_MAX: usize = 32;
/// Below, heartbeats are a load; above, a silent node would be believed for too long.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);
const PASS_BYTES: usize = 32;
/// Ports below need a privilege to listen on: whoever names one points at another service.
const PORT_MIN: u32 = 1024;

/// A route that a node declares for its app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeclaredRoute {
    pub(crate) host: HostPattern,
    pub(crate) prefix: Prefix,
    pub(crate) strip_prefix: bool,
}

/// A Hello that may come in.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) node: Node,
    pub(crate) app: String,
    pub(crate) routes: Vec<DeclaredRoute>,
    /// Where its workers are; the port is another for each.
    pub(crate) host: SocketAddr,
    pub(crate) workers: Vec<WorkerView>,
    /// Of the report in the Hello, if it has one.
    pub(crate) sequence: Option<u64>,
    /// So long without a word, and the node is given up.
    pub(crate) silence: Duration,
}

/// Judges a Hello from `peer` at `address`. `advertised`: where workers may be besides at the node's own address.
pub(crate) fn admit(
    hello: &Hello,
    peer: &PeerId,
    address: SocketAddr,
    advertised: &[Network],
) -> Result<Registration, Refusal> {
    if hello.protocol_version == 0 || hello.protocol_version.abs_diff(PROTOCOL_VERSION) > 1 {
        return Err(Refusal::Version { theirs: hello.protocol_version, ours: PROTOCOL_VERSION });
    }
    if !is_app_name(&hello.app) {
        return Err(Refusal::AppName);
    }
    if !peer.apps.iter().any(|right| right.app == hello.app) {
        return Err(Refusal::App(hello.app.clone()));
    }
    bounded("the number of routes", hello.routes.len() as u64, 0, ROUTES_MAX as u64)?;
    let routes = hello.routes.iter().map(|route| route_of(route, &hello.app, peer)).collect::<Result<Vec<_>, _>>()?;
    let mut seen = HashSet::new();
    if let Some(twice) = routes.iter().find(|route| !seen.insert((&route.host, &route.prefix))) {
        return Err(Refusal::SameRoute(twice.prefix.as_str().to_owned()));
    }
    bounded("the length of the pass", hello.pass.len() as u64, PASS_BYTES as u64, PASS_BYTES as u64)?;
    let heartbeat = Duration::from_millis(hello.heartbeat_ms.into());
    bounded("heartbeat_ms", hello.heartbeat_ms.into(), millis(HEARTBEAT_MIN), millis(HEARTBEAT_MAX))?;
    let host = host_of(&hello.advertise, address, advertised)?;
    let workers = hello.report.as_ref().map_or(Ok(Vec::new()), |report| workers_of(report, host))?;
    // Any limit will do: the balancer's own is the longest in force.
    let timeout = (hello.timeout_ms > 0).then(|| Duration::from_millis(hello.timeout_ms.into()));
    Ok(Registration {
        node: Node { timeout, ..Node::new(peer.instance.clone(), address, &hello.pass) },
        app: hello.app.clone(),
        routes,
        host,
        workers,
        sequence: hello.report.as_ref().map(|report| report.sequence),
        silence: heartbeat * 2,
    })
}

fn route_of(route: &registry::Route, app: &str, peer: &PeerId) -> Result<DeclaredRoute, Refusal> {
    bounded("the length of a prefix", route.prefix.len() as u64, 1, PREFIX_BYTES_MAX as u64)?;
    let (host, prefix) = (HostPattern::parse(&route.host)?, Prefix::parse(&route.prefix)?);
    if !peer.may_claim(app, prefix.as_str()) {
        return Err(Refusal::Prefix { app: app.to_owned(), prefix: prefix.as_str().to_owned() });
    }
    Ok(DeclaredRoute { host, prefix, strip_prefix: route.strip_prefix })
}

/// The node's own address, or the one it advertises where that is allowed.
fn host_of(advertise: &str, address: SocketAddr, advertised: &[Network]) -> Result<SocketAddr, Refusal> {
    let own = address.ip().to_canonical();
    if advertise.is_empty() {
        // An IPv6 address keeps its scope: without it a link-local one cannot be dialled.
        return Ok(if own == address.ip() { address } else { SocketAddr::new(own, address.port()) });
    }
    let refused = || Refusal::Advertised(advertise.chars().take(64).collect());
    let ip = advertise.parse::<IpAddr>().map_err(|_| refused())?.to_canonical();
    if ip == own {
        return host_of("", address, advertised);
    }
    let one_host = !ip.is_unspecified() && !ip.is_multicast();
    if one_host && advertised.iter().any(|network| network.contains(ip)) {
        Ok(SocketAddr::new(ip, address.port()))
    } else {
        Err(refused())
    }
}

/// The workers of a report at `host`, each within bounds.
pub(crate) fn workers_of(report: &Report, host: SocketAddr) -> Result<Vec<WorkerView>, Refusal> {
    bounded("the number of workers", report.workers.len() as u64, 0, WORKERS_MAX as u64)?;
    let mut places = HashSet::new();
    let mut ports = HashSet::new();
    report
        .workers
        .iter()
        .map(|worker| {
            let port = u16::try_from(worker.port).ok().filter(|_| worker.port >= PORT_MIN);
            let port = port.ok_or(Refusal::Port(worker.port))?;
            bounded("a worker's capacity", worker.capacity.into(), 1, CAPACITY_MAX.into())?;
            bounded("a worker's grant", worker.grant.into(), 0, worker.capacity.into())?;
            if !places.insert((worker.position, worker.generation)) {
                return Err(Refusal::SameWorker("position and generation"));
            }
            if !ports.insert(port) {
                return Err(Refusal::SameWorker("port"));
            }
            let mut address = host;
            address.set_port(port);
            Ok(WorkerView {
                position: worker.position,
                generation: worker.generation,
                address,
                state: state_of(worker.state()),
                pid: worker.pid,
                capacity: worker.capacity,
                grant: worker.grant,
                busy: worker.busy,
                served: worker.served,
                restarts: worker.restarts,
                age: Duration::from_millis(worker.age_ms),
                memory_bytes: worker.memory_bytes,
                cpu_millicores: worker.cpu_millicores,
                restarts_by_cause: Arc::new(causes_of(&worker.causes)),
                orphaned: worker.orphaned,
                service: (worker.service_us > 0).then(|| Duration::from_micros(worker.service_us.into())),
                on_deck: worker.on_deck,
            })
        })
        .collect()
}

/// A state that a newer node has and this balancer does not know takes nothing.
fn state_of(state: registry::WorkerState) -> WorkerState {
    match state {
        registry::WorkerState::Ready => WorkerState::Ready,
        registry::WorkerState::Draining => WorkerState::Draining,
        registry::WorkerState::Stalled => WorkerState::Stalled,
        registry::WorkerState::Starting | registry::WorkerState::Unspecified => WorkerState::Starting,
    }
}

/// What is only shown costs no node its registration: what is out of bounds is not shown.
fn causes_of(causes: &[registry::Restarts]) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for registry::Restarts { cause, count } in
        causes.iter().take(CAUSES_MAX).filter(|restarts| is_cause(&restarts.cause))
    {
        counts.insert(cause.clone(), *count);
    }
    counts
}

fn is_cause(cause: &str) -> bool {
    (1..=CAUSE_BYTES_MAX).contains(&cause.len()) && cause.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'_'))
}

fn bounded(what: &'static str, found: u64, least: u64, most: u64) -> Result<(), Refusal> {
    if (least..=most).contains(&found) { Ok(()) } else { Err(Refusal::Bounds { what, least, most, found }) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
