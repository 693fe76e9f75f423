//! What the balancers have in this worker, as the numbers of their connections show it. Come in the first request of each
//! connection, the slots that its requests take and its end; go out the numbers of those that have ended with no slot
//! left, each once, and for each balancer how many connections and slots it has. What an application keeps of a request,
//! its body say, holds nothing back. A request's way through here takes no lock.

use crate::counts::Counts;
use http::HeaderMap;
use proto::worker::Presence;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

/// Most balancers at once. The connections of a further one go without: it hears of none.
const MOST_BALANCERS: usize = 256;

/// Most numbers that wait to be told. Further ones are never told: a balancer looks after them by itself.
const MOST_SETTLED: usize = 4096;

/// Most numbers in one heartbeat, which has to fit into a frame of the control socket; the others go with the next.
const TOLD_AT_ONCE: usize = 1024;

/// In a connection's state, above the number of slots that its requests hold: it is open.
const OPEN: u32 = 1 << 31;

/// It may carry further requests: it is open and no tunnel.
const CARRIES: u32 = 1 << 30;

const SLOTS: u32 = CARRIES - 1;

/// Of all balancers.
#[derive(Debug)]
pub(crate) struct Presences {
    balancers: Mutex<Vec<Arc<Balancer>>>,
    settled: Mutex<VecDeque<u64>>,
    counts: Arc<Counts>,
}

/// What one balancer has here.
#[derive(Debug)]
struct Balancer {
    /// The upper half of its connections' numbers.
    half: u32,
    connections: AtomicU32,
    busy: AtomicU32,
    /// Below zero, which wraps, for an instant when a connection's end and its request's cross.
    orphaned: AtomicU32,
}

/// A connection that has carried a request and has a number.
#[derive(Debug)]
pub(crate) struct Numbered {
    number: u64,
    /// [`OPEN`], [`CARRIES`], and the slots.
    state: AtomicU32,
    balancer: Arc<Balancer>,
    presences: Arc<Presences>,
}

/// One slot of a numbered connection's request, until it is dropped.
#[derive(Debug)]
pub(crate) struct Occupied(Arc<Numbered>);

/// The number in a request's fields. `None`: there is none, or something else.
pub(crate) fn number(headers: &HeaderMap) -> Option<u64> {
    let mut given = headers.get_all(proto::CONNECTION_HEADER).iter();
    let (Some(given), None) = (given.next(), given.next()) else { return None };
    let digits = given.to_str().ok().filter(|text| text.len() == 16)?;
    let plain = digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(digits, 16).ok().filter(|_| plain)
}

impl Presences {
    pub(crate) fn new(counts: Arc<Counts>) -> Arc<Self> {
        Arc::new(Self { balancers: Mutex::default(), settled: Mutex::default(), counts })
    }

    /// A connection with its first request. `None`: there are too many balancers.
    pub(crate) fn enter(self: &Arc<Self>, number: u64) -> Option<Arc<Numbered>> {
        let half = u32::try_from(number >> 32).ok()?;
        let mut balancers = self.balancers();
        let balancer = match balancers.iter().find(|balancer| balancer.half == half) {
            Some(balancer) => Arc::clone(balancer),
            None => {
                if balancers.len() == MOST_BALANCERS {
                    balancers.retain(|balancer| balancer.is_present());
                }
                if balancers.len() == MOST_BALANCERS {
                    return None;
                }
                let balancer = Arc::new(Balancer::new(half));
                balancers.push(Arc::clone(&balancer));
                balancer
            }
        };
        // before the lock goes: one that has nothing here is forgotten
        balancer.connections.fetch_add(1, Ordering::Relaxed);
        drop(balancers);
        Some(Arc::new(Numbered {
            number,
            state: AtomicU32::new(OPEN | CARRIES),
            balancer,
            presences: Arc::clone(self),
        }))
    }

    /// What there is to tell of each balancer that has anything here.
    pub(crate) fn tell(&self) -> Vec<Presence> {
        let mut balancers = self.balancers();
        balancers.retain(|balancer| balancer.is_present());
        balancers.iter().map(|balancer| balancer.presence()).collect()
    }

    /// The numbers that are to be told now. Where there are more, somebody is woken to ask again.
    pub(crate) fn take_settled(&self) -> Vec<u64> {
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        let now = settled.len().min(TOLD_AT_ONCE);
        let told = settled.drain(..now).collect();
        if !settled.is_empty() {
            self.counts.touch();
        }
        told
    }

    fn settle(&self, number: u64) {
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if settled.len() < MOST_SETTLED {
            settled.push_back(number);
        }
    }

    fn balancers(&self) -> MutexGuard<'_, Vec<Arc<Balancer>>> {
        self.balancers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Balancer {
    fn new(half: u32) -> Self {
        Self { half, connections: AtomicU32::new(0), busy: AtomicU32::new(0), orphaned: AtomicU32::new(0) }
    }

    fn presence(&self) -> Presence {
        let orphaned = self.orphaned.load(Ordering::Relaxed);
        Presence {
            balancer: self.half,
            connections: self.connections.load(Ordering::Relaxed),
            busy: self.busy.load(Ordering::Relaxed),
            orphaned: if orphaned > SLOTS { 0 } else { orphaned },
        }
    }

    /// A slot is only taken by a request on a connection that is counted, so who has neither gets neither back.
    fn is_present(&self) -> bool {
        self.connections.load(Ordering::Acquire) > 0 || self.busy.load(Ordering::Relaxed) > 0
    }
}

impl Numbered {
    /// A request of this connection has got a slot.
    pub(crate) fn occupy(self: &Arc<Self>) -> Occupied {
        self.state.fetch_add(1, Ordering::Relaxed);
        self.balancer.busy.fetch_add(1, Ordering::Relaxed);
        Occupied(Arc::clone(self))
    }

    /// The application takes the connection over: no request comes on it any more. Its end comes later.
    pub(crate) fn become_tunnel(&self) {
        let before = self.state.fetch_and(!CARRIES, Ordering::AcqRel);
        self.discount(before);
    }

    /// The connection has ended; what its requests hold is orphaned.
    pub(crate) fn end(&self) {
        let before = self.state.fetch_and(SLOTS, Ordering::AcqRel);
        if before & OPEN == 0 {
            return;
        }
        self.discount(before);
        match before & SLOTS {
            0 => self.presences.settle(self.number),
            slots => {
                self.balancer.orphaned.fetch_add(slots, Ordering::Relaxed);
            }
        }
        self.presences.counts.touch();
    }

    /// No longer one of the connections that may carry requests, if it was one `before`.
    fn discount(&self, before: u32) {
        if before & CARRIES != 0 {
            // with what its requests have taken, for who sees it gone
            self.balancer.connections.fetch_sub(1, Ordering::Release);
            self.presences.counts.touch();
        }
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        let Numbered { number, state, balancer, presences } = &*self.0;
        let before = state.fetch_sub(1, Ordering::AcqRel);
        balancer.busy.fetch_sub(1, Ordering::Relaxed);
        if before & OPEN != 0 {
            return;
        }
        balancer.orphaned.fetch_sub(1, Ordering::Relaxed);
        if before == 1 {
            presences.settle(*number);
        }
        presences.counts.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST_BALANCERS, MOST_SETTLED, Presences, TOLD_AT_ONCE, number};
    use crate::frames::Frames;
    use bytes::BytesMut;
    use futures_util::FutureExt;
    use http::{HeaderMap, HeaderValue};
    use proto::worker::{
        CodeCount, Durations, FromSupervisor, FromWorker, Heartbeat, Presence, from_worker::Message as News,
    };
    use std::sync::{Arc, Barrier};
    use tokio_util::codec::Encoder;

    const ONE: u64 = 0x0000_0001_0000_0001;
    const SAME_BALANCERS: u64 = 0x0000_0001_0000_0002;
    const ANOTHERS: u64 = 0x0000_0002_0000_0001;

    fn presences() -> Arc<Presences> {
        Presences::new(Arc::default())
    }

    fn presence(balancer: u32, connections: u32, busy: u32, orphaned: u32) -> Presence {
        Presence { balancer, connections, busy, orphaned }
    }

    #[test]
    fn a_number_is_sixteen_lower_case_digits_said_once() {
        let said = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(proto::CONNECTION_HEADER, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            number(&headers)
        };
        assert_eq!(said(&["0123456789abcdef"]), Some(0x0123_4567_89ab_cdef));
        assert_eq!(said(&["ffffffffffffffff"]), Some(u64::MAX));
        for wrong in
            ["", "1", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF", "+123456789abcdef", "é123456789abcde"]
        {
            assert_eq!(said(&[wrong]), None, "{wrong}");
        }
        assert_eq!(said(&[]), None);
        assert_eq!(said(&["0123456789abcdef", "0123456789abcdef"]), None);
    }

    #[test]
    fn a_connection_that_ends_without_a_slot_is_named_once() {
        let presences = presences();
        let connection = presences.enter(ONE).unwrap();
        drop(connection.occupy());
        assert_eq!(presences.take_settled(), [0; 0], "it is open");
        assert_eq!(presences.tell(), [presence(1, 1, 0, 0)]);
        connection.end();
        connection.end();
        assert_eq!(presences.take_settled(), [ONE]);
        assert_eq!(presences.take_settled(), [0; 0]);
        assert_eq!(presences.tell(), []);
    }

    #[test]
    fn a_connection_is_not_named_while_one_of_its_requests_holds_a_slot() {
        let presences = presences();
        let connection = presences.enter(ONE).unwrap();
        let (first, second) = (connection.occupy(), connection.occupy());
        assert_eq!(presences.tell(), [presence(1, 1, 2, 0)]);
        connection.end();
        assert_eq!(presences.tell(), [presence(1, 0, 2, 2)]);
        drop(first);
        assert_eq!(presences.tell(), [presence(1, 0, 1, 1)]);
        assert_eq!(presences.take_settled(), [0; 0]);
        drop(second);
        assert_eq!((presences.tell(), presences.take_settled()), (vec![], vec![ONE]));
    }

    #[test]
    fn each_balancer_is_told_apart_with_all_its_connections() {
        let presences = presences();
        let all = [ONE, SAME_BALANCERS, ANOTHERS].map(|number| presences.enter(number).unwrap());
        let slot = all[2].occupy();
        assert_eq!(presences.tell(), [presence(1, 2, 0, 0), presence(2, 1, 1, 0)]);
        all[1].end();
        all[2].end();
        assert_eq!(presences.tell(), [presence(1, 1, 0, 0), presence(2, 0, 1, 1)]);
        assert_eq!(presences.take_settled(), [SAME_BALANCERS]);
        drop(slot);
        assert_eq!(presences.take_settled(), [ANOTHERS]);
    }

    #[test]
    fn a_tunnel_is_no_connection_that_requests_may_come_on_and_is_named_when_it_ends() {
        let presences = presences();
        let connection = presences.enter(ONE).unwrap();
        let slot = connection.occupy();
        connection.become_tunnel();
        assert_eq!(presences.tell(), [presence(1, 0, 1, 0)]);
        drop(slot);
        assert_eq!((presences.tell(), presences.take_settled()), (vec![], vec![]));
        connection.end();
        assert_eq!((presences.tell(), presences.take_settled()), (vec![], vec![ONE]));
    }

    #[test]
    fn what_ends_is_told_soon() {
        let presences = presences();
        let connection = presences.enter(ONE).unwrap();
        let slot = connection.occupy();
        assert!(presences.counts.changed().now_or_never().is_none());
        connection.end();
        assert!(presences.counts.changed().now_or_never().is_some());
        drop(slot);
        assert!(presences.counts.changed().now_or_never().is_some());
    }

    #[test]
    fn a_balancer_too_many_goes_without_until_another_one_has_left() {
        let presences = presences();
        let number = |balancer: usize| (balancer as u64) << 32;
        let all: Vec<_> = (0..MOST_BALANCERS).map(|balancer| presences.enter(number(balancer)).unwrap()).collect();
        assert!(presences.enter(number(MOST_BALANCERS)).is_none());
        assert!(presences.enter(number(7) + 1).is_some(), "one that is known");
        let slot = all[3].occupy();
        all[3].end();
        assert!(presences.enter(number(MOST_BALANCERS)).is_none(), "its request runs");
        drop(slot);
        assert!(presences.enter(number(MOST_BALANCERS)).is_some());
        assert_eq!(presences.tell().len(), MOST_BALANCERS);
    }

    #[test]
    fn of_many_names_a_part_is_told_at_once_the_next_ones_soon_and_too_many_never() {
        let presences = presences();
        for count in 0..=MOST_SETTLED {
            presences.enter(ONE + count as u64).unwrap().end();
        }
        assert!(presences.counts.changed().now_or_never().is_some());
        let mut told = Vec::new();
        for _ in 1..MOST_SETTLED / TOLD_AT_ONCE {
            told.extend(presences.take_settled());
            assert!(presences.counts.changed().now_or_never().is_some(), "there is more");
        }
        told.extend(presences.take_settled());
        assert!(presences.counts.changed().now_or_never().is_none());
        assert_eq!(told, (0..MOST_SETTLED as u64).map(|count| ONE + count).collect::<Vec<_>>());
    }

    #[test]
    fn the_longest_heartbeat_fits_into_a_frame() {
        let most = u32::from(u16::MAX);
        let heartbeat = Heartbeat {
            busy: most,
            served: u64::MAX,
            codes: vec![CodeCount { code_class: 5, count: u64::MAX }; 5],
            denied: u64::MAX,
            refused: u64::MAX,
            waiting: u32::MAX,
            durations: Some(Durations { counts: vec![u64::MAX; proto::DURATION_BOUNDS_S.len() + 1], sum_s: 1.0 }),
            settled: vec![u64::MAX; TOLD_AT_ONCE],
            presences: vec![presence(u32::MAX, most, most, most); MOST_BALANCERS],
            service_us: u32::MAX,
            on_deck: u32::MAX,
        };
        let message = FromWorker { message: Some(News::Heartbeat(heartbeat)) };
        assert!(Frames::<FromSupervisor, FromWorker>::new().encode(message, &mut BytesMut::new()).is_ok());
    }

    #[test]
    fn ends_that_cross_name_a_connection_once_and_leave_nothing_behind() {
        let presences = presences();
        for _ in 0..2000 {
            let connection = presences.enter(ONE).unwrap();
            let slots = [connection.occupy(), connection.occupy()];
            let start = Barrier::new(3);
            std::thread::scope(|scope| {
                for slot in slots {
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        drop(slot);
                    });
                }
                start.wait();
                connection.end();
            });
            assert_eq!(presences.take_settled(), [ONE]);
            assert_eq!(presences.tell(), []);
        }
    }
}
