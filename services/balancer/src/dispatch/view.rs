//! Pictures of the endpoints, for the status page, the metrics and the nodes. Plain data.

use crate::endpoint::{Node, WorkerView};
use std::sync::Arc;

/// One node and its endpoints, for `App::view`.
#[derive(Clone, Debug)]
pub struct NodeView {
    pub node: Arc<Node>,
    /// Asked to leave, by itself or by us.
    pub draining: bool,
    pub endpoints: Vec<EndpointView>,
}

#[derive(Clone, Debug)]
pub struct EndpointView {
    pub worker: WorkerView,
    /// Permits held by this balancer's requests, ...
    pub held: u32,
    /// ... of which so many have no request any more, and their slots may be busy.
    pub unsettled: u32,
    /// Permits that could be handed out.
    pub free: u32,
    /// It takes nothing, or a probe, though its node says that it is ready.
    pub ejected: bool,
    /// Requests given to this endpoint since it was first reported.
    pub picked: u64,
}

/// A worker that has more permits held than it was lowered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    pub position: u32,
    pub generation: u64,
    pub held: u32,
}

/// A permit that was given back because others lack it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Yielded {
    pub position: u32,
    pub generation: u64,
    pub permits: u32,
}
