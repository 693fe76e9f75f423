//! Connections on which nothing happens, on one core. In: one that waits for its client, and about how many bytes it holds
//! meanwhile. Out, when all together hold more than they may, or when a newcomer needs a place: who has to go. That is the
//! connection that has waited longest of the client that holds most, so that nobody pays for another's crowd. Nothing is
//! asked of a connection while it is used: it comes here only once it is idle.

use crate::client::Client;
use metrics::{Counter, counter};
use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{io::ReadBuf, net::TcpStream, task::yield_now};
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

/// What one client may hold and be as good as any other, in bytes: a browser's six connections over TLS. Below it, who has
/// waited longest goes first, whoever it is.
const USUAL: u64 = 128 * 1024;

/// How long nothing happens on a connection of HTTP/1.1 until it is taken down to what it needs to wait: long enough for
/// a busy one never to pay for it, ...
const QUIET: Duration = Duration::from_millis(100);
/// ... and where many are idle already, short enough for more that come together.
const CROWDED: Duration = Duration::from_millis(20);

/// A stream that can tell whether there is something to read without reading it, so that nobody has to keep room for it.
pub trait Readable {
    /// Whether it is TLS.
    const SECURE: bool;

    /// May be ready when there is nothing; then reading says so. An error: there never will be.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Readable for TcpStream {
    const SECURE: bool = false;

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // a new socket counts as ready until somebody has looked
        let peeked = self.poll_peek(cx, &mut ReadBuf::new(&mut [0]));
        // thousands may leave at once, and nothing has to be made for one that only leaves
        peeked.map(|read| if read? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
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
    /// By client, and in the order in which they became idle.
    places: BTreeMap<(Client, u64), Held>,
    /// What each holds. Never 0.
    clients: HashMap<Client, u64>,
    /// The last one's oldest place is the next to go.
    ranks: BTreeMap<Rank, Client>,
    next: u64,
    bytes: u64,
    most: u64,
}

#[derive(Debug)]
struct Held {
    bytes: u64,
    waker: Option<Waker>,
}

/// What a client holds, `USUAL` at least, and its oldest place.
type Rank = (u64, Reverse<u64>);

impl Waiting {
    fn add(&mut self, client: Client, bytes: u64) -> u64 {
        let number = self.next;
        self.next += 1;
        self.change(client, |waiting| {
            waiting.places.insert((client, number), Held { bytes, waker: None });
            *waiting.clients.entry(client).or_default() += bytes;
        });
        self.bytes += bytes;
        number
    }

    fn remove(&mut self, client: Client, number: u64) -> Option<Held> {
        let held = self.change(client, |waiting| {
            let held = waiting.places.remove(&(client, number))?;
            let bytes = waiting.clients.get_mut(&client)?;
            *bytes -= held.bytes;
            if *bytes == 0 {
                waiting.clients.remove(&client);
            }
            Some(held)
        })?;
        self.bytes -= held.bytes;
        Some(held)
    }

    /// Keeps the client's rank true.
    fn change<T>(&mut self, client: Client, change: impl FnOnce(&mut Self) -> T) -> T {
        if let Some(rank) = self.rank(client) {
            self.ranks.remove(&rank);
        }
        let result = change(self);
        if let Some(rank) = self.rank(client) {
            self.ranks.insert(rank, client);
        }
        result
    }

    fn rank(&self, client: Client) -> Option<Rank> {
        let bytes = *self.clients.get(&client)?;
        let (&(_, oldest), _) = self.places.range((client, 0)..).next()?;
        Some((bytes.max(USUAL), Reverse(oldest)))
    }

    /// Sends one away. `false`: there is none.
    fn shorten(&mut self) -> bool {
        let Some((&(_, Reverse(oldest)), &client)) = self.ranks.last_key_value() else { return false };
        if let Some(Held { waker: Some(waker), .. }) = self.remove(client, oldest) {
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
        let waiting = Waiting {
            places: BTreeMap::new(),
            clients: HashMap::new(),
            ranks: BTreeMap::new(),
            next: 0,
            bytes: 0,
            most,
        };
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

    /// A connection of this client's is idle from now on, and holds so many bytes (not 0).
    pub(crate) fn enter(self: &Rc<Self>, client: Client, bytes: u64) -> Place {
        let mut waiting = self.waiting.borrow_mut();
        let number = waiting.add(client, bytes);
        let sent = waiting.fit();
        if sent > 0 {
            self.closed.increment(sent);
        }
        drop(waiting);
        Place { idle: Rc::clone(self), client, number }
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
    client: Client,
    number: u64,
}

impl Place {
    /// Whether the connection has to go.
    pub(crate) fn is_lost(&self) -> bool {
        !self.idle.waiting.borrow().places.contains_key(&(self.client, self.number))
    }

    fn poll_lost(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.idle.waiting.borrow_mut().places.get_mut(&(self.client, self.number)) {
            Some(Held { waker: Some(waker), .. }) if waker.will_wake(cx.waker()) => Poll::Pending,
            Some(held) => {
                held.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }

    /// Until the connection has to go, and whatever has come on it by then has been noticed.
    pub(crate) async fn lost(&self) {
        poll_fn(|cx| self.poll_lost(cx)).await;
        // goes on only after the runtime has looked at its sockets once more
        yield_now().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.idle.waiting.borrow_mut().remove(self.client, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    const KB: u64 = 1024;

    #[derive(Clone, Debug)]
    enum Step {
        Enter(u8, u64),
        Leave(usize),
        Resize(u64),
        MakeRoom,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..4_u8, 1..100 * KB).prop_map(|(client, bytes)| Step::Enter(client, bytes)),
            3 => any::<usize>().prop_map(Step::Leave),
            1 => (0..800 * KB).prop_map(Step::Resize),
            1 => Just(Step::MakeRoom),
        ]
    }

    fn client(number: u8) -> Client {
        IpAddr::from(Ipv4Addr::new(192, 0, 2, number)).into()
    }

    /// Of connections, the oldest first, the one that has to go: found without an index.
    fn victim(here: &[(Place, u64)]) -> usize {
        let held = |whose: Client| -> u64 {
            here.iter().filter(|(place, _)| place.client == whose).map(|(_, bytes)| bytes).sum()
        };
        let most = here.iter().map(|(place, _)| held(place.client).max(USUAL)).max();
        here.iter().position(|(place, _)| Some(held(place.client).max(USUAL)) == most).unwrap()
    }

    #[test]
    fn a_crowd_is_taken_down_sooner() {
        let idle = Idle::new(800);
        let one = idle.enter(client(1), 100);
        assert_eq!(idle.after(), QUIET);
        let _two = idle.enter(client(2), 1);
        assert_eq!(idle.after(), CROWDED);
        drop(one);
        assert_eq!(idle.after(), QUIET);
    }

    #[tokio::test]
    async fn a_stream_tells_who_speaks_from_who_leaves() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        client.try_write(b"a").unwrap();
        poll_fn(|cx| stream.poll_readable(cx)).await.unwrap();
        stream.try_read(&mut [0]).unwrap();
        drop(client);
        poll_fn(|cx| stream.poll_readable(cx)).await.unwrap_err();
    }

    #[test]
    fn who_holds_most_makes_room_for_the_others() {
        let idle = Idle::new(100 * BETWEEN);
        let others: Vec<_> = (0..10).map(|number| idle.enter(client(number), BETWEEN)).collect();
        let crowd: Vec<_> = (0..200).map(|_| idle.enter(client(10), BETWEEN)).collect();
        let newcomer = idle.enter(client(11), BETWEEN);
        assert!(!others.iter().any(Place::is_lost) && !newcomer.is_lost());
        let lost: Vec<_> = crowd.iter().map(Place::is_lost).collect();
        assert_eq!(lost, [[true; 111].as_slice(), &[false; 89]].concat(), "its oldest");
    }

    proptest! {
        #[test]
        fn they_hold_no_more_than_they_may_and_who_has_waited_longest_of_the_largest_goes_first(
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let idle = Idle::new(400 * KB);
            // those who wait by right, the oldest first
            let (mut here, mut most) = (Vec::new(), 400 * KB);
            let mut gone = Vec::new();
            for step in steps {
                match step {
                    Step::Enter(whose, bytes) => here.push((idle.enter(client(whose), bytes), bytes)),
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
                            gone.push(here.remove(victim(&here)));
                        }
                    }
                }
                while here.len() > 1 && here.iter().map(|(_, bytes)| bytes).sum::<u64>() > most {
                    gone.push(here.remove(victim(&here)));
                }
                prop_assert!(!here.iter().any(|(place, _)| place.is_lost()));
                prop_assert!(gone.iter().all(|(place, _)| place.is_lost()));
                let waiting = idle.waiting.borrow();
                prop_assert_eq!(waiting.bytes, here.iter().map(|(_, bytes)| bytes).sum::<u64>());
                prop_assert_eq!(waiting.ranks.len(), waiting.clients.len());
            }
            drop((here, gone));
            let waiting = idle.waiting.borrow();
            prop_assert!(waiting.places.is_empty() && waiting.clients.is_empty() && waiting.ranks.is_empty());
            prop_assert_eq!(waiting.bytes, 0);
        }
    }
}
