//! What an app-server shares with the workers that it starts: the frames of the control socket, and the refusal of
//! connections that wait for a worker that is dead.

pub use crate::frames::Frames;
use crate::{
    answer::{Answer, REQUEST_ID},
    conversation::Conversation,
    open::Open,
    socket::{Socket, Times},
    stream::Stream,
};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// How long a connection has to send its request's head.
const HEAD: Duration = Duration::from_secs(2);

/// All that one refused connection may take.
const WHOLE: Duration = Duration::from_secs(5);

/// Answers the first request of a connection that the kernel accepted for a worker that is gone with a refusal that
/// the balancer may take elsewhere, and closes it. The request has reached nobody.
pub async fn refuse_gone(stream: TcpStream) {
    let conversation = Conversation::new(None, None);
    let times = Times { first: HEAD, idle: HEAD, header: HEAD, taking: WHOLE };
    let socket = Socket::new(Stream::Tcp(stream), Arc::clone(&conversation), times, Open::new().enter());
    let service = service_fn(|request: http::Request<_>| {
        let running = conversation.begin();
        let response = Answer::Gone.response(request.headers().get(REQUEST_ID));
        drop(running);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), service);
    // the peer may have gone too: nothing is lost by that
    let _ = timeout(WHOLE, connection).await;
}
