//! gRPC through the real balancer, by a client and a server that know nothing of it: over TLS in front, by HTTP/2 without TLS
//! (h2c) behind; and to the workers of a real app-server, which speak HTTP/1.1.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod rogue;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rogue::Program;
use servery_harness::{Cluster, Plan, Protocol, Role, ensure, eventually};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// Messages are `google.protobuf.StringValue`.
type Codec = ProstCodec<String, String>;

type Words = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

/// A service of four methods.
#[derive(Clone, Default)]
struct Speech {
    /// Calls that wait for ever, now.
    waiting: Arc<AtomicU32>,
}

impl NamedService for Speech {
    const NAME: &'static str = "test.Speech";
}

/// How calls fail here.
fn failure() -> Status {
    let mut more = MetadataMap::new();
    more.insert("x-more", "and why".parse().unwrap());
    Status::with_details_and_metadata(Code::FailedPrecondition, "not now", vec![0, 1, 255].into(), more)
}

async fn say(request: Request<String>) -> Result<Response<String>, Status> {
    let metadata = request.metadata().get("x-who").map(|who| who.to_str().unwrap().to_owned());
    match request.into_inner().as_str() {
        "fail" => Err(failure()),
        word => Ok(Response::new(format!("{word}, {}", metadata.unwrap_or_default()))),
    }
}

/// So many numbers, and then how it went.
async fn count(request: Request<String>) -> Result<Response<Words>, Status> {
    let to: u32 = request.into_inner().parse().map_err(|_| Status::invalid_argument("no number"))?;
    let numbers = (0..to).map(|number| Ok(number.to_string()));
    let end = (to == 3).then(|| Err(failure()));
    Ok(Response::new(Box::pin(tokio_stream::iter(numbers.chain(end)))))
}

/// Answers each word with the same word.
async fn talk(request: Request<Streaming<String>>) -> Result<Response<Words>, Status> {
    Ok(Response::new(Box::pin(request.into_inner())))
}

impl Speech {
    async fn wait(self, _: Request<String>) -> Result<Response<String>, Status> {
        struct Waiting(Arc<AtomicU32>);
        impl Drop for Waiting {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(self.waiting);
        std::future::pending().await
    }
}

impl Service<http::Request<Body>> for Speech {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Codec::default());
            Ok(match request.uri().path() {
                "/test.Speech/Say" => grpc.unary(service_fn(say), request).await,
                "/test.Speech/Wait" => grpc.unary(service_fn(|asked| this.clone().wait(asked)), request).await,
                "/test.Speech/Count" => grpc.server_streaming(service_fn(count), request).await,
                "/test.Speech/Talk" => grpc.streaming(service_fn(talk), request).await,
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

/// Not a test but what the worker processes run.
#[test]
fn worker() {
    if std::env::var_os("SERVERY_LISTEN_FD").is_some() {
        let _ = servery_worker::run(Routes::new(Speech::default()).into_axum_router());
        std::process::exit(0);
    }
}

/// A gRPC server, the balancer in front of it, and a client of theirs.
struct Call {
    speech: Speech,
    cluster: Cluster,
    client: Grpc<Channel>,
}

impl Call {
    async fn fixed() -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let upstream = format!("http://{}", listener.local_addr().unwrap());
        let speech = Speech::default();
        let serving = Server::builder().add_service(speech.clone());
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        let route = format!("[[balancer.route]]\nname = \"speech\"\nupstream = \"{upstream}\"\nprotocol = \"h2c\"\n");
        Self::of(speech, Plan::new(SERVERY).nodes(0).with_tables(&route)).await
    }

    async fn of(speech: Speech, plan: Plan) -> Self {
        let cluster = plan.start().await;
        let dialler = cluster.balancers[0].client(Protocol::Http2);
        let dial = service_fn(move |_| {
            let dialler = Arc::clone(&dialler);
            async move { dialler.stream().await.map(TokioIo::new).map_err(io::Error::other) }
        });
        let endpoint = Endpoint::from_static("http://localhost").origin("https://localhost".parse().unwrap());
        Self { speech, cluster, client: Grpc::new(endpoint.connect_with_connector_lazy(dial)) }
    }

    async fn unary(&mut self, method: &'static str, request: Request<String>) -> Result<Response<String>, Status> {
        self.client.ready().await.unwrap();
        self.client.unary(request, PathAndQuery::from_static(method), Codec::default()).await
    }

    async fn waiting(&self, wanted: u32) {
        eventually(&format!("{wanted} waiting"), SOON, async || {
            let waiting = self.speech.waiting.load(Ordering::SeqCst);
            ensure(waiting == wanted, || format!("{waiting}"))
        })
        .await;
    }
}

/// That of [`failure`]; `whole`: with its metadata.
fn is_failure(status: &Status, whole: bool) {
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not now"), "{status:?}");
    assert_eq!(status.details(), [0, 1, 255]);
    assert_eq!(status.metadata().get("x-more").is_some_and(|more| more == "and why"), whole, "{status:?}");
}

#[tokio::test]
async fn calls_of_every_kind_are_answered_with_their_status_behind_them() {
    calls_are_answered(Call::fixed().await, true).await;
}

#[tokio::test]
async fn a_worker_answers_them_too_without_metadata_that_nobody_announced() {
    let program = Program::running("worker");
    let plan = Plan::new(SERVERY).with(Role::AppServer, &program.line());
    calls_are_answered(Call::of(Speech::default(), plan).await, false).await;
}

/// `whole`: whatever comes behind a body is passed on.
async fn calls_are_answered(mut call: Call, whole: bool) {
    let mut request = Request::new("hello".to_owned());
    request.metadata_mut().insert("x-who", "you".parse().unwrap());
    assert_eq!(call.unary("/test.Speech/Say", request).await.unwrap().into_inner(), "hello, you");
    // in the head of the answer, which has no body
    is_failure(&call.unary("/test.Speech/Say", Request::new("fail".to_owned())).await.unwrap_err(), true);
    let unknown = call.unary("/test.Speech/Nothing", Request::new(String::new())).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented, "{unknown:?}");

    // a stream of answers, once to a good end and once to a bad one, which is known only behind them
    for (to, fails) in [("5000", false), ("3", true)] {
        let path = PathAndQuery::from_static("/test.Speech/Count");
        call.client.ready().await.unwrap();
        let answer = call.client.server_streaming(Request::new(to.to_owned()), path, Codec::default()).await;
        let mut words: Streaming<String> = answer.unwrap().into_inner();
        for number in 0..to.parse::<u32>().unwrap() {
            assert_eq!(words.message().await.unwrap(), Some(number.to_string()));
        }
        match words.message().await {
            Ok(more) => assert!(!fails && more.is_none(), "{more:?}"),
            Err(status) if fails => is_failure(&status, whole),
            Err(status) => panic!("{status:?}"),
        }
    }

    // a conversation, one word at a time: nobody waits for the end of the other direction
    let (speak, words) = mpsc::channel(1);
    let path = PathAndQuery::from_static("/test.Speech/Talk");
    call.client.ready().await.unwrap();
    let talking = call.client.streaming(Request::new(ReceiverStream::new(words)), path, Codec::default()).await;
    let mut heard: Streaming<String> = talking.unwrap().into_inner();
    for number in 0..1000 {
        let word = format!("{number}{}", "x".repeat(number));
        speak.send(word.clone()).await.unwrap();
        assert_eq!(tokio::time::timeout(SOON, heard.next()).await.unwrap().unwrap().unwrap(), word);
    }
    drop(speak);
    assert_eq!(heard.message().await.unwrap(), None);

    let log = call.cluster.balancers[0].access_log();
    assert!(log.iter().all(|line| line["proto"] == "HTTP/2" && line["status"] == 200), "{log:?}");
}

#[tokio::test]
async fn a_call_that_is_cancelled_or_out_of_time_ends_at_the_server_and_the_others_go_on() {
    let mut call = Call::fixed().await;
    let path = || PathAndQuery::from_static("/test.Speech/Talk");
    let (speak, words) = mpsc::channel(1);
    call.client.ready().await.unwrap();
    let talking = call.client.streaming(Request::new(ReceiverStream::new(words)), path(), Codec::default()).await;
    let mut heard: Streaming<String> = talking.unwrap().into_inner();

    let mut other = call.client.clone();
    let waiting = tokio::spawn(async move {
        other.ready().await.unwrap();
        let path = PathAndQuery::from_static("/test.Speech/Wait");
        other.unary::<String, String, _>(Request::new(String::new()), path, Codec::default()).await
    });
    call.waiting(1).await;
    waiting.abort();
    call.waiting(0).await;

    let mut request = Request::new(String::new());
    request.set_timeout(Duration::from_millis(300));
    let status = call.unary("/test.Speech/Wait", request).await.unwrap_err();
    assert!(matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded), "{status:?}");
    call.waiting(0).await;

    // on the same connection all the while
    speak.send("still here".to_owned()).await.unwrap();
    assert_eq!(heard.message().await.unwrap().unwrap(), "still here");
}
