//! Connections on which nothing happens, on one core. In: one that waits for its client, and about how many bytes it holds
//! meanwhile. Out, to those that wait longest: that they have to go, when all together hold more than they may, or when a
//! newcomer needs their place. Nothing is asked of a connection while it is used: it comes here only once it is idle.

use metrics::{Counter, counter};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{io::ReadBuf, net::TcpStream};
use tokio_rustls::server::TlsStream;

/// What a connection holds while it waits, in bytes, as measured (`loadtest/bench/attacks`, RSS per connection): before its
/// client's first word, ...
pub(crate) const SILENT: u64 = 2 * 1024;
/// ... between two requests of HTTP/1.1, besides its TLS: 4 KiB, and more than twice as much once thousands have come
/// together and their buffers have gone again, as nothing else fits where those were, ...
pub(crate) const BETWEEN: u64 = 9 * 1024;
/// ... TLS, ...
pub(crate) const TLS: u64 = 10 * 1024;
/// ... and HTTP/2.
pub(crate) const HTTP2: u64 = 32 * 1024;

/// How long nothing happens on a connection of HTTP/1.1 until it is taken down to what it needs to wait: long enough for
/// a busy one never to pay for it, ...
const QUIET: Duration = Duration::from_millis(100);
/// ... and where many are idle already, short enough for more that come together.
const CROWDED: Duration = Duration::from_millis(20);

/// A stream that can tell whether there is something to read without reading it, so that nobody has to keep room for it.
pub trait Readable {
    /// Whether it is TLS.
    const SECURE: bool;

    /// May be ready when there is nothing; then reading says so.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Readable for TcpStream {
    const SECURE: bool = false;

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // a new socket counts as ready until somebody has looked
        self.poll_peek(cx, &mut ReadBuf::new(&mut [0])).map_ok(|_| ())
    }
}

impl Readable for Box<TlsStream<TcpStream>> {
    const SECURE: bool = true;

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (stream, session) = self.get_ref();
        // what came with the last read is not in the socket any more
        if session.wants_read() { stream.poll_readable(cx) } else { Poll::Ready(Ok(())) }
    }
}

/// Who waits.
#[derive(Debug)]
pub(crate) struct Idle {
    waiting: RefCell<Waiting>,
    closed: Counter,
}

#[derive(Debug)]
struct Waiting {
    /// In the order in which they became idle.
    places: BTreeMap<u64, Held>,
    next: u64,
    bytes: u64,
    most: u64,
}

#[derive(Debug)]
struct Held {
    bytes: u64,
    waker: Option<Waker>,
}

impl Waiting {
    /// Sends the one away that has waited longest. `false`: there is none.
    fn shorten(&mut self) -> bool {
        let Some((_, held)) = self.places.pop_first() else { return false };
        self.bytes -= held.bytes;
        if let Some(waker) = held.waker {
            waker.wake();
        }
        true
    }

    /// One may always be there: alone it is no crowd.
    fn fit(&mut self) -> u64 {
        let mut sent = 0;
        while self.bytes > self.most && self.places.len() > 1 && self.shorten() {
            sent += 1;
        }
        sent
    }
}

impl Idle {
    /// `most`: bytes of all that are idle.
    pub(crate) fn new(most: u64) -> Rc<Self> {
        let waiting = Waiting { places: BTreeMap::new(), next: 0, bytes: 0, most };
        let closed = counter!("servery_balancer_idle_connections_closed_total");
        Rc::new(Self { waiting: RefCell::new(waiting), closed })
    }

    pub(crate) fn resize(&self, most: u64) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.most = most;
        self.closed.increment(waiting.fit());
    }

    /// How soon a connection of HTTP/1.1 comes here.
    pub(crate) fn after(&self) -> Duration {
        let waiting = self.waiting.borrow();
        if waiting.bytes > waiting.most / 8 { CROWDED } else { QUIET }
    }

    /// A connection is idle from now on, and holds so many bytes.
    pub(crate) fn enter(self: &Rc<Self>, bytes: u64) -> Place {
        let mut waiting = self.waiting.borrow_mut();
        let number = waiting.next;
        waiting.next += 1;
        waiting.bytes += bytes;
        waiting.places.insert(number, Held { bytes, waker: None });
        let sent = waiting.fit();
        if sent > 0 {
            self.closed.increment(sent);
        }
        drop(waiting);
        Place { idle: Rc::clone(self), number }
    }

    /// There are as many connections as there may be, and here comes one.
    pub(crate) fn make_room(&self) {
        if self.waiting.borrow_mut().shorten() {
            self.closed.increment(1);
        }
    }
}

/// An idle connection's.
#[derive(Debug)]
pub(crate) struct Place {
    idle: Rc<Idle>,
    number: u64,
}

impl Place {
    /// Ready when the connection has to go.
    pub(crate) fn poll_lost(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.idle.waiting.borrow_mut().places.get_mut(&self.number) {
            Some(Held { waker: Some(waker), .. }) if waker.will_wake(cx.waker()) => Poll::Pending,
            Some(held) => {
                held.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }

    pub(crate) async fn lost(&self) {
        poll_fn(|cx| self.poll_lost(cx)).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.idle.waiting.borrow_mut();
        if let Some(held) = waiting.places.remove(&self.number) {
            waiting.bytes -= held.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Enter(u64),
        Leave(usize),
        Resize(u64),
        MakeRoom,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (1..100_u64).prop_map(Step::Enter),
            3 => any::<usize>().prop_map(Step::Leave),
            1 => (0..500_u64).prop_map(Step::Resize),
            1 => Just(Step::MakeRoom),
        ]
    }

    #[test]
    fn a_crowd_is_taken_down_sooner() {
        let idle = Idle::new(800);
        let one = idle.enter(100);
        assert_eq!(idle.after(), QUIET);
        let _two = idle.enter(1);
        assert_eq!(idle.after(), CROWDED);
        drop(one);
        assert_eq!(idle.after(), QUIET);
    }

    proptest! {
        #[test]
        fn they_hold_no_more_than_they_may_and_who_has_waited_longest_goes_first(
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let idle = Idle::new(300);
            // those who wait by right, the oldest first
            let (mut here, mut most) = (Vec::new(), 300);
            let mut gone = Vec::new();
            for step in steps {
                match step {
                    Step::Enter(bytes) => here.push((idle.enter(bytes), bytes)),
                    Step::Leave(at) if !here.is_empty() => {
                        here.remove(at % here.len());
                    }
                    Step::Leave(_) => {}
                    Step::Resize(to) => {
                        most = to;
                        idle.resize(to);
                    }
                    Step::MakeRoom => {
                        idle.make_room();
                        if !here.is_empty() {
                            gone.push(here.remove(0));
                        }
                    }
                }
                while here.len() > 1 && here.iter().map(|(_, bytes)| bytes).sum::<u64>() > most {
                    gone.push(here.remove(0));
                }
                prop_assert!(here.iter().all(|(place, _)| place.lost().now_or_never().is_none()));
                prop_assert!(gone.iter().all(|(place, _)| place.lost().now_or_never().is_some()));
                prop_assert_eq!(idle.waiting.borrow().bytes, here.iter().map(|(_, bytes)| bytes).sum::<u64>());
            }
            drop((here, gone));
            prop_assert!(idle.waiting.borrow().places.is_empty());
            prop_assert_eq!(idle.waiting.borrow().bytes, 0);
        }
    }
}
