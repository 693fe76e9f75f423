//! Workers that may share a fate. In: a node at which a request lost its worker. Out: the endpoints that it is kept from
//! while another node could take it. Pure.

use super::{Dispatch, seats::Seats};
use crate::endpoint::EndpointId;

impl<W> Dispatch<W> {
    /// What has killed one worker of a node may be about to kill the others (no memory is left, somebody stops them), and a
    /// request that is there again when it does would look guilty. None where no other node has a usable endpoint.
    pub fn companions(&self, instance: &str) -> Vec<EndpointId> {
        self.seats.companions(instance)
    }
}

impl Seats {
    fn companions(&self, instance: &str) -> Vec<EndpointId> {
        let (here, elsewhere): (Vec<_>, Vec<_>) = self.all().partition(|seat| seat.endpoint.node.instance == instance);
        let usable = elsewhere.iter().any(|seat| seat.limit() > 0);
        here.iter().filter(|_| usable).map(|seat| seat.endpoint.id).collect()
    }
}
