//! A request's body. It is read from the client by whichever attempt is the newest, and kept up to a bound so that
//! another attempt can begin from its first byte. Where a client's slowness must not hold a slot, it is read before
//! there is an attempt, up to a larger bound.

mod body;
mod kept;

pub use body::RequestBody;

use crate::{
    app::App,
    buffers::Buffers,
    client::Client,
    edge::Edge,
    patience::Patience,
    reject::Reject,
    stalls::{Exchange, Stall, Stalls, Stop},
    trailers,
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use kept::Kept;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::time::Instant;

/// How much of a body is kept for another attempt when it was not read ahead. Kept parts are shared with the
/// connection's buffer unless they are small, and only until the response head is here.
const REPLAY_BYTES: u64 = 64 * 1024;
/// In no more parts than these.
const REPLAY_PARTS: usize = 1024;

/// The limits of request bodies.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    pub bytes: u64,
    /// Between two parts.
    pub stall: Duration,
}

/// Whose body it is, and for which app.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) stalls: Rc<Stalls>,
    pub(crate) client: Client,
    pub(crate) app: Arc<App>,
}

impl Sender {
    pub(crate) fn new(edge: &Edge, client: Client, app: &Arc<App>) -> Self {
        Self { stalls: Rc::clone(&edge.stalls), client, app: Arc::clone(app) }
    }
}

/// A request's body, shared by the attempts of the request.
#[derive(Debug)]
pub struct RequestSource {
    reading: RefCell<Reading>,
    sender: Sender,
    limits: BodyLimits,
    /// `Content-Length`, when there is one.
    length: Option<u64>,
    received: Cell<u64>,
    ended: Cell<bool>,
    /// What came behind it.
    trailers: RefCell<Option<HeaderMap>>,
    /// When the newest part came.
    arrived: Cell<Option<Instant>>,
    /// The next part is wanted, and the client has not sent it.
    awaited: Cell<bool>,
    /// Who awaits it.
    waker: RefCell<Option<Waker>>,
    /// The newest attempt has passed all of it on.
    sent: Cell<bool>,
    /// Why it can never be completed.
    broken: Cell<Option<Reject>>,
    attempt: Cell<u32>,
}

#[derive(Debug)]
struct Reading {
    incoming: Incoming,
    patience: Patience,
    kept: Kept,
}

impl RequestSource {
    /// `None` for a request without a body.
    pub(crate) fn new(
        incoming: Incoming,
        sender: Sender,
        limits: BodyLimits,
        buffers: &Rc<Buffers>,
    ) -> Result<Option<Rc<Self>>, Reject> {
        if incoming.is_end_stream() {
            return Ok(None);
        }
        let length = incoming.size_hint().exact();
        if length.is_some_and(|length| length > limits.bytes) {
            return Err(Reject::BodyTooLarge);
        }
        let kept = Kept { parts: VecDeque::new(), passed: 0, whole: true, share: buffers.share() };
        Ok(Some(Rc::new(Self {
            reading: RefCell::new(Reading { incoming, patience: Patience::new(limits.stall), kept }),
            sender,
            limits,
            length,
            received: Cell::new(0),
            ended: Cell::new(false),
            trailers: RefCell::new(None),
            arrived: Cell::new(None),
            awaited: Cell::new(false),
            waker: RefCell::new(None),
            sent: Cell::new(false),
            broken: Cell::new(None),
            attempt: Cell::new(0),
        })))
    }

    /// Reads before the first attempt: to the body's end, or as much of it as may be kept.
    pub async fn read_ahead(&self) -> Result<(), Reject> {
        poll_fn(|cx| {
            loop {
                if self.ended.get() || self.reading.borrow().kept.share.is_used_up() {
                    return Poll::Ready(Ok(()));
                }
                match ready!(self.poll_new(cx)) {
                    Some(Ok(part)) => self.reading.borrow_mut().kept.push(part),
                    Some(Err(reject)) => return Poll::Ready(Err(reject)),
                    None => return Poll::Ready(Ok(())),
                }
            }
        })
        .await
    }

    /// The whole body once more, for a new attempt; an earlier attempt gets nothing any more.
    pub fn begin(self: &Rc<Self>) -> RequestBody {
        self.attempt.set(self.attempt.get() + 1);
        self.sent.set(false);
        self.reading.borrow_mut().kept.passed = 0;
        RequestBody::of(self)
    }

    /// Nothing of what was received has been thrown away.
    pub fn is_replayable(&self) -> bool {
        self.broken.get().is_none() && self.reading.borrow().kept.whole
    }

    /// There will be no other attempt.
    pub fn forget_kept(&self) {
        self.reading.borrow_mut().kept.forget();
    }

    /// Bytes received from the client.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// When it last was the client's turn to send: now, while a part of the body is awaited.
    pub fn moved(&self) -> Option<Instant> {
        if self.awaited.get() { Some(Instant::now()) } else { self.arrived.get() }
    }

    /// The newest attempt has sent it to its end.
    pub fn is_sent(&self) -> bool {
        self.sent.get()
    }

    pub fn broken(&self) -> Option<Reject> {
        self.broken.get()
    }

    /// The next part for the newest attempt.
    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Reject>>> {
        if let Some(part) = self.reading.borrow_mut().kept.next() {
            return Poll::Ready(Some(Ok(part)));
        }
        let polled = ready!(self.poll_new(cx));
        if let Some(Ok(part)) = &polled {
            let kept = &mut self.reading.borrow_mut().kept;
            if self.received.get() > REPLAY_BYTES || kept.parts.len() >= REPLAY_PARTS {
                kept.forget();
            } else if kept.whole {
                kept.push(part.clone());
                kept.passed += 1;
            }
        }
        Poll::Ready(polled)
    }

    fn await_more(&self, cx: &Context<'_>) {
        self.awaited.set(true);
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// While it awaits the next part it holds its attempt's permit for the client.
    fn stall(self: &Rc<Self>, since: Instant, now: Instant) -> Stall {
        let Sender { stalls, client, app } = &self.sender;
        let stop = Rc::downgrade(self);
        // how long it may last is for `poll_new` to say
        let exchange = Exchange { client: *client, place: Some(Arc::clone(app)), patience: None, stop };
        stalls.begin(exchange, since, now)
    }

    /// The next part that nobody has seen yet.
    fn poll_new(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Reject>>> {
        let mut reading = self.reading.borrow_mut();
        let Reading { incoming, patience, .. } = &mut *reading;
        let broken = |reject| {
            self.broken.set(Some(reject));
            Poll::Ready(Some(Err(reject)))
        };
        if let Some(reject) = self.broken.get() {
            return broken(reject);
        }
        loop {
            let data = match Pin::new(&mut *incoming).poll_frame(cx) {
                Poll::Pending if patience.poll_over(cx).is_ready() => return broken(Reject::BodyTimeout),
                Poll::Pending => {
                    self.await_more(cx);
                    return Poll::Pending;
                }
                Poll::Ready(None) => {
                    self.awaited.set(false);
                    self.ended.set(true);
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(_))) => return broken(Reject::BadBody),
                Poll::Ready(Some(Ok(frame))) => trailers::clean_frame(frame, true).map(Frame::into_data),
            };
            patience.moved();
            self.awaited.set(false);
            self.arrived.set(Some(Instant::now()));
            let data = match data {
                Some(Ok(data)) => data,
                Some(Err(frame)) => {
                    self.trailers.replace(frame.into_trailers().ok());
                    continue;
                }
                None => continue,
            };
            let received = self.received.get() + data.len() as u64;
            self.received.set(received);
            if received > self.limits.bytes {
                return broken(Reject::BodyTooLarge);
            }
            if incoming.is_end_stream() {
                self.ended.set(true);
            }
            return Poll::Ready(Some(Ok(data)));
        }
    }
}

impl Stop for RequestSource {
    /// Then nobody would await it.
    fn has_moved(&self) -> bool {
        false
    }

    fn stop(&self, reason: Reject) {
        self.broken.set(Some(reason));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        app::{Apps, Limits},
        body::BodyError,
    };
    use chassis::config::Percent;
    use http_body_util::BodyExt as _;
    use hyper::{Request, Response, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use std::{convert::Infallible, net::IpAddr};
    use tokio::io::AsyncWriteExt as _;

    const STALL: Duration = Duration::from_secs(10);

    fn sender() -> Sender {
        let share = Percent(50);
        let limits = Limits { queue_length: 1, client_share: share, stalled_share: share, queue_deadline: STALL };
        let client = IpAddr::from([192, 0, 2, 1]).into();
        Sender { stalls: Rc::default(), client, app: Apps::new(limits).obtain("demo") }
    }

    /// Does this with a request's body of that many bytes, which comes as a client sends it.
    async fn with_body(bytes: &[u8], test: impl AsyncFn(Rc<RequestSource>)) {
        let (mut client, server) = tokio::io::duplex(16 * 1024);
        let service = service_fn(async |request: Request<Incoming>| {
            let limits = BodyLimits { bytes: u64::MAX, stall: STALL };
            let source = RequestSource::new(request.into_body(), sender(), limits, &Buffers::new(u64::MAX)).unwrap();
            test(source.expect("it has a body")).await;
            Ok::<_, Infallible>(Response::new(String::new()))
        });
        let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(server), service);
        let sending = async {
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", bytes.len());
            client.write_all(head.as_bytes()).await.unwrap();
            client.write_all(bytes).await.unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = connection => ended.unwrap(),
            () = sending => {}
        }
    }

    fn numbers(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[tokio::test]
    async fn what_was_read_ahead_is_passed_on_to_its_end_when_the_answer_comes_early() {
        let bytes = numbers(100_000);
        with_body(&bytes, async |source| {
            source.read_ahead().await.unwrap();
            assert_eq!(source.received(), 100_000);
            let mut body = source.begin();
            let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert!(first.len() < bytes.len() && source.is_replayable());
            source.forget_kept();
            assert!(!source.is_replayable() && !source.is_sent());
            let rest = body.collect().await.unwrap().to_bytes();
            assert!([first, rest].concat() == bytes);
            assert!(source.is_sent());
        })
        .await;
    }

    #[tokio::test]
    async fn only_the_newest_attempt_gets_the_body_and_gets_all_of_it() {
        let bytes = numbers(50_000);
        with_body(&bytes, async |source| {
            let mut first = source.begin();
            first.frame().await.unwrap().unwrap();
            first.frame().await.unwrap().unwrap();
            let second = source.begin();
            assert!(matches!(first.frame().await, Some(Err(BodyError::Superseded))));
            assert!(second.collect().await.unwrap().to_bytes() == bytes);
        })
        .await;
    }

    #[tokio::test]
    async fn a_body_that_was_not_read_ahead_is_kept_up_to_a_bound() {
        let bytes = numbers(100_000);
        with_body(&bytes, async |source| {
            let mut body = source.begin();
            let mut passed = Vec::new();
            while let Some(frame) = body.frame().await {
                passed.extend_from_slice(&frame.unwrap().into_data().unwrap());
                assert_eq!(source.is_replayable(), passed.len() as u64 <= REPLAY_BYTES);
            }
            assert!(passed == bytes);
        })
        .await;
    }
}
