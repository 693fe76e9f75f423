//! Which balancers this node knows, and how it stands with each: come in what the diallers do, go out the list for
//! `/status` and metrics, and the rule that a balancer has one stream, however many addresses it has.

use crate::ledger::Demand;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{sync::watch, time::timeout};

/// How a node stands with the balancer at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamState {
    /// Being dialled, or between two tries.
    Connecting,
    Registered,
    /// Told that the node leaves.
    Leaving,
    /// Another address of a balancer that is registered with.
    Spare,
}

impl StreamState {
    pub(crate) const ALL: [Self; 4] = [Self::Connecting, Self::Registered, Self::Leaving, Self::Spare];

    /// As in metrics and `/status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Registered => "registered",
            Self::Leaving => "leaving",
            Self::Spare => "spare",
        }
    }
}

/// One address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StreamRow {
    pub(crate) address: SocketAddr,
    /// Who is there, once that is known and as long as this address has or wants the stream to it.
    pub(crate) instance: Option<String>,
    pub(crate) state: StreamState,
    pub(crate) since: SystemTime,
    /// What this balancer lacks.
    pub(crate) demand: Demand,
    /// Permits that it was granted, of all workers.
    pub(crate) granted: u64,
}

/// The list. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    rows: Arc<watch::Sender<BTreeMap<SocketAddr, StreamRow>>>,
}

/// The row of one address, gone when this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    streams: Streams,
    address: SocketAddr,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self { rows: Arc::new(watch::Sender::new(BTreeMap::new())) }
    }

    pub(crate) fn rows(&self) -> Vec<StreamRow> {
        self.rows.borrow().values().cloned().collect()
    }

    /// How many there are of each state.
    pub(crate) fn counts(&self) -> [(&'static str, usize); 4] {
        let rows = self.rows.borrow();
        StreamState::ALL.map(|state| (state.as_str(), rows.values().filter(|row| row.state == state).count()))
    }

    /// Requests that wait at any balancer.
    pub(crate) fn demand(&self) -> u64 {
        self.rows.borrow().values().map(|row| u64::from(row.demand.waiting)).sum()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<BTreeMap<SocketAddr, StreamRow>> {
        self.rows.subscribe()
    }

    /// `None`: two names lead to this address, and the other one has it.
    pub(super) fn enter(&self, address: SocketAddr) -> Option<Entry> {
        let row = StreamRow {
            address,
            instance: None,
            state: StreamState::Connecting,
            since: SystemTime::now(),
            demand: Demand::default(),
            granted: 0,
        };
        let mut entered = false;
        self.rows.send_if_modified(|rows| {
            if let std::collections::btree_map::Entry::Vacant(place) = rows.entry(address) {
                place.insert(row);
                entered = true;
            }
            entered
        });
        entered.then(|| Entry { streams: self.clone(), address })
    }
}

impl Entry {
    /// Takes the stream to this balancer for this address, unless another address has it: then this one is a spare.
    pub(super) fn claim(&self, instance: &str) -> bool {
        let mut claimed = false;
        self.streams.rows.send_if_modified(|rows| {
            claimed =
                !rows.values().any(|row| row.address != self.address && row.instance.as_deref() == Some(instance));
            if let Some(row) = rows.get_mut(&self.address) {
                let state = if claimed { StreamState::Connecting } else { StreamState::Spare };
                row.instance = claimed.then(|| instance.to_owned());
                if row.state != state {
                    (row.state, row.since) = (state, SystemTime::now());
                }
            }
            true
        });
        claimed
    }

    pub(super) fn set(&self, state: StreamState) {
        self.streams.rows.send_if_modified(|rows| {
            let row = rows.get_mut(&self.address).filter(|row| row.state != state);
            let changed = row.is_some();
            if let Some(row) = row {
                (row.state, row.since) = (state, SystemTime::now());
            }
            changed
        });
    }

    /// Nobody is woken for it: who wants to know asks.
    pub(super) fn demand(&self, demand: Demand) {
        self.note(|row| row.demand = demand);
    }

    /// As with the demand.
    pub(super) fn granted(&self, granted: u64) {
        self.note(|row| row.granted = granted);
    }

    fn note(&self, change: impl FnOnce(&mut StreamRow)) {
        self.streams.rows.send_if_modified(|rows| {
            if let Some(row) = rows.get_mut(&self.address) {
                change(row);
            }
            false
        });
    }

    /// The stream is gone.
    pub(super) fn release(&self) {
        self.streams.rows.send_modify(|rows| {
            if let Some(row) = rows.get_mut(&self.address) {
                (row.instance, row.demand, row.granted) = (None, Demand::default(), 0);
                if row.state != StreamState::Connecting {
                    (row.state, row.since) = (StreamState::Connecting, SystemTime::now());
                }
            }
        });
    }

    /// Until no other address has this balancer, or the time is over.
    pub(super) async fn unclaimed(&self, instance: &str, at_most: Duration) {
        let mut rows = self.streams.rows.subscribe();
        let free = rows.wait_for(|rows| !rows.values().any(|row| row.instance.as_deref() == Some(instance)));
        let _ = timeout(at_most, free).await;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.streams.rows.send_modify(|rows| {
            rows.remove(&self.address);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{StreamState, Streams};
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_balancer_has_one_stream_and_its_other_address_waits() {
        let streams = Streams::new();
        let (one, two) = ("192.0.2.1:7400".parse().unwrap(), "[2001:db8::1]:7400".parse().unwrap());
        let first = streams.enter(one).unwrap();
        let second = streams.enter(two).unwrap();
        assert!(streams.enter(one).is_none());
        assert!(first.claim("b-1"));
        first.set(StreamState::Registered);
        assert!(!second.claim("b-1"));
        assert_eq!(streams.rows()[1].state, StreamState::Spare);
        assert!(second.claim("b-2"), "another instance at the same address is another matter");
        assert!(!second.claim("b-1"));

        let waiting = tokio::spawn(async move {
            second.unclaimed("b-1", Duration::from_secs(5)).await;
            second.claim("b-1")
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        first.release();
        assert!(waiting.await.unwrap());
        drop(first);
        assert!(streams.rows().is_empty());
    }
}
