//! Pictures of the endpoints and of what is held of them, for the status page, the metrics and the nodes. Plain data.

use super::Dispatch;
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

impl<W> Dispatch<W> {
    /// Permits of requests at the node, also of workers it has ceased to report.
    pub fn in_flight(&self, instance: &str) -> u32 {
        self.seats.in_flight(instance)
    }

    /// The workers in the node's newest report that have more permits held than they were lowered to.
    pub fn over(&self, instance: &str) -> Vec<Over> {
        self.seats.over(instance)
    }

    /// Whether anything is in rotation.
    pub fn has_endpoints(&self) -> bool {
        let sum = self.seats.sum();
        // or it is the others' turn to use it
        sum.open > 0 || sum.elsewhere > 0
    }

    /// The most slots that one of the workers has.
    pub fn widest(&self) -> Option<u32> {
        self.seats.widest()
    }

    pub fn queue_depth(&self) -> usize {
        self.line.len()
    }

    /// Permits held in all, the unsettled ones with them.
    pub fn held(&self) -> u64 {
        self.seats.held()
    }

    /// Of those, the ones whose request is over and whose slot may be busy.
    pub fn unsettled(&self) -> u64 {
        self.seats.unsettled_in_all()
    }

    /// Ejections so far, by `Reason`.
    pub fn ejections(&self) -> [u64; 2] {
        self.seats.ejections()
    }

    /// The live nodes, by instance.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.seats.nodes()
    }
}
