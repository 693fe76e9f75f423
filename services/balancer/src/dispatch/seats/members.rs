//! The nodes of one app and which seats are theirs. In: what nodes report of their workers and of what other balancers lack,
//! that they leave or are gone. Out: seats that are taken, open or vacant. Pure.

use super::Seats;
use crate::{
    dispatch::{
        EndpointView, NodeView, Over, Yielded,
        seat::{Seat, Tally},
        yielding::Lack,
    },
    endpoint::{Endpoint, EndpointId, Node, WorkerState, WorkerView},
};
use std::{sync::Arc, time::Duration};

#[derive(Debug)]
pub(super) struct Member {
    node: Arc<Node>,
    live: bool,
    draining: bool,
    seats: Vec<u32>,
    /// What other balancers lack there.
    lack: Lack,
}

impl Seats {
    /// The whole truth about one node's workers: what is not listed is gone.
    pub(in crate::dispatch) fn apply(&mut self, node: &Arc<Node>, workers: &[WorkerView]) {
        let member = self.nodes.entry(node.instance.clone()).or_insert_with(|| Member {
            node: Arc::clone(node),
            live: true,
            draining: false,
            seats: Vec::new(),
            lack: Lack::default(),
        });
        if !Arc::ptr_eq(&member.node, node) {
            member.node = Arc::clone(node);
            member.draining = false;
        }
        member.live = true;
        member.lack.overrule();
        let mut seats = std::mem::take(&mut member.seats);
        let mut listed = vec![false; seats.len()];
        for worker in workers {
            let known = seats.iter().position(|seat| self.at(*seat).endpoint.is(node, worker));
            match known {
                Some(at) => {
                    listed[at] = true;
                    self.change(seats[at], |seat| {
                        seat.yielding |= worker.grant < seat.worker.grant;
                        seat.yielding &= seat.held > worker.grant;
                        seat.worker = worker.clone();
                    });
                }
                None => {
                    seats.push(self.sit(node, worker));
                    listed.push(true);
                }
            }
        }
        for (seat, listed) in seats.iter().zip(listed) {
            self.change(*seat, |seat| seat.listed = listed);
        }
        self.nodes.get_mut(&node.instance).expect("the member was just there").seats = seats;
        self.review(&node.instance);
    }

    /// Other balancers lack something at some node.
    pub(in crate::dispatch) fn is_lacked(&self) -> bool {
        self.lacked > 0
    }

    pub(in crate::dispatch) fn renew_lack(&mut self, instance: &str, permits: u32, wait: Duration) {
        let Some(member) = self.nodes.get_mut(instance) else { return };
        let before = usize::from(member.lack.is_any());
        member.lack.renew(permits, wait);
        self.lacked = self.lacked + usize::from(member.lack.is_any()) - before;
    }

    /// The node's endpoints with a free permit.
    pub(in crate::dispatch) fn free_of(&self, instance: &str) -> Vec<EndpointId> {
        let free = self.seats_of(instance).filter(|seat| seat.held < seat.limit());
        free.map(|seat| seat.endpoint.id).collect()
    }

    pub(in crate::dispatch) fn take_yielded(&mut self, instance: &str) -> Vec<Yielded> {
        self.nodes.get_mut(instance).map(|member| member.lack.take()).unwrap_or_default()
    }

    /// Gives a free permit of this endpoint back to its node, if what others lack comes first. `own`: how long requests have
    /// to wait here.
    pub(in crate::dispatch) fn give_up(&mut self, id: EndpointId, own: Option<Duration>) -> bool {
        let free = |seat: &Seat| seat.held < seat.limit();
        let seat = self.seats.get(id.seat as usize).and_then(Option::as_ref);
        let Some(seat) = seat.filter(|seat| seat.endpoint.id == id && free(seat)) else { return false };
        let Some(member) = self.nodes.get_mut(&seat.endpoint.node.instance) else { return false };
        if !member.lack.comes_before(own) {
            return false;
        }
        let (position, generation) = (seat.worker.position, seat.worker.generation);
        member.lack.give(Yielded { position, generation, permits: 1 });
        self.lacked -= usize::from(!member.lack.is_any());
        self.change(id.seat, |seat| {
            seat.worker.grant -= 1;
            seat.open &= seat.worker.grant > 0;
        });
        true
    }

    /// Nothing new for this node's workers.
    pub(in crate::dispatch) fn drain_node(&mut self, instance: &str) {
        if let Some(member) = self.nodes.get_mut(instance) {
            member.draining = true;
            self.review(instance);
        }
    }

    /// Forgets the node and its workers, but for those with permits held.
    pub(in crate::dispatch) fn remove_node(&mut self, instance: &str) {
        let Some(member) = self.nodes.get_mut(instance) else { return };
        member.live = false;
        self.lacked -= usize::from(std::mem::take(&mut member.lack).is_any());
        for seat in member.seats.clone() {
            self.change(seat, |seat| seat.listed = false);
        }
        self.review(instance);
    }

    /// Unsettled permits by endpoint, with the number of slots that its worker says are orphaned; `None`: the worker has
    /// ended, as its own node says.
    pub(in crate::dispatch) fn unsettled(&self, instance: &str) -> Vec<(Vec<u64>, Option<u32>)> {
        if self.unsettled == 0 {
            return Vec::new();
        }
        let live = self.nodes.get(instance).is_some_and(|member| member.live);
        let owing = self.seats_of(instance).filter(|seat| !seat.unsettled.is_empty());
        owing
            .map(|seat| {
                let orphaned = if live { seat.listed.then_some(seat.worker.orphaned) } else { Some(0) };
                (seat.unsettled.clone(), orphaned)
            })
            .collect()
    }

    /// The nodes that are not there any more, but for permits that are still out.
    pub(in crate::dispatch) fn lost_nodes(&self) -> Vec<String> {
        let lost = self.nodes.iter().filter(|(_, member)| !member.live && self.unsettled > 0);
        lost.map(|(instance, _)| instance.clone()).collect()
    }

    /// Permits of requests at the node, also of workers it has ceased to report.
    pub(in crate::dispatch) fn in_flight(&self, instance: &str) -> u32 {
        let requests = |seat: &Seat| seat.held - u32::try_from(seat.unsettled.len()).unwrap_or(seat.held);
        self.seats_of(instance).map(requests).sum()
    }

    /// The workers in the node's newest report that have more permits held than they were lowered to.
    pub(in crate::dispatch) fn over(&self, instance: &str) -> Vec<Over> {
        let yielding = self.seats_of(instance).filter(|seat| seat.listed && seat.yielding);
        let over =
            |seat: &Seat| Over { position: seat.worker.position, generation: seat.worker.generation, held: seat.held };
        yielding.map(over).collect()
    }

    /// What the node's seats add to the sums.
    pub(in crate::dispatch) fn sum_of(&self, instance: &str) -> Tally {
        let mut sum = Tally::default();
        self.seats_of(instance).for_each(|seat| sum.replace(Tally::default(), seat.tally()));
        sum
    }

    /// The live nodes, by instance.
    pub(in crate::dispatch) fn nodes(&self) -> Vec<NodeView> {
        let live = self.nodes.values().filter(|member| member.live);
        live.map(|member| {
            let seats = member.seats.iter().map(|seat| self.at(*seat));
            let mut endpoints: Vec<EndpointView> = seats
                .filter(|seat| seat.listed || seat.held > 0)
                .map(|seat| EndpointView {
                    worker: seat.worker.clone(),
                    held: seat.held,
                    unsettled: u32::try_from(seat.unsettled.len()).unwrap_or(u32::MAX),
                    ejected: seat.open && seat.health.is_out(),
                    free: seat.limit().saturating_sub(seat.held),
                    picked: seat.endpoint.picked(),
                })
                .collect();
            endpoints.sort_by_key(|endpoint| (endpoint.worker.position, endpoint.worker.generation));
            NodeView { node: Arc::clone(&member.node), draining: member.draining, endpoints }
        })
        .collect()
    }

    fn seats_of(&self, instance: &str) -> impl Iterator<Item = &Seat> {
        let seats = self.nodes.get(instance).map_or(&[][..], |member| &member.seats);
        seats.iter().map(|seat| self.at(*seat))
    }

    /// Gives a new endpoint a seat, out of rotation until `review`.
    fn sit(&mut self, node: &Arc<Node>, worker: &WorkerView) -> u32 {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.seats.push(None);
            u32::try_from(self.seats.len() - 1).expect("the registry bounds nodes and workers far below this")
        });
        self.numbers += 1;
        let endpoint = Endpoint::new(EndpointId { number: self.numbers, seat: index }, node, worker);
        self.seats[index as usize] = Some(Seat::new(endpoint, worker));
        self.account(index, Tally::default());
        index
    }

    /// Brings a node's seats in line with what is known of the node, and clears those that nobody needs.
    fn review(&mut self, instance: &str) {
        let Some(member) = self.nodes.get(instance) else { return };
        let (live, stays) = (member.live, member.live && !member.draining);
        for index in member.seats.clone() {
            self.change(index, |seat| {
                seat.open = stays && seat.listed && seat.worker.state == WorkerState::Ready && seat.worker.grant > 0;
                seat.endpoint.list(seat.listed, live);
            });
            self.vacate_if_done(index);
        }
        if self.nodes.get(instance).is_some_and(|member| !member.live && member.seats.is_empty()) {
            self.nodes.remove(instance);
        }
    }

    pub(super) fn vacate_if_done(&mut self, index: u32) {
        let done = |seat: &mut Seat| !seat.listed && seat.held == 0;
        let Some(seat) = self.seats[index as usize].take_if(done) else { return };
        self.sum.replace(seat.tally(), Tally::default());
        self.vacant.push(index);
        let instance = &seat.endpoint.node.instance;
        if let Some(member) = self.nodes.get_mut(instance) {
            member.seats.retain(|other| *other != index);
            if !member.live && member.seats.is_empty() {
                self.nodes.remove(instance);
            }
        }
    }
}
