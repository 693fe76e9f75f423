//! The admin listener: `/livez`, `/readyz`, `/metrics`, `/status`. In: what the role knows of itself. Out: plain HTTP
//! for probes, Prometheus and people on a port of its own. It changes nothing and shows no secret; whoever may reach
//! the port may read all of it.

mod readiness;

pub use readiness::{Latch, Readiness};

use crate::{
    lifecycle::{Lifecycle, Phase},
    telemetry::Metrics,
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// Probes, a few Prometheis and people; more is a mistake or an attack.
const CONNECTIONS_MAX: usize = 64;
/// For a request's head, and for the next request of a kept-alive connection.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// After this a connection is asked to end, so that a slow reader does not hold its place for ever.
const CONNECTION_LIFE: Duration = Duration::from_secs(120);
const LAST_ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// After a failed accept that is not one connection's own fault: out of descriptors. At once it would fail again.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Writes more series behind those of the recorder: series that end with their node, which the recorder cannot.
pub type Renderer = Arc<dyn Fn(&mut String) + Send + Sync>;
/// The JSON of `/status`, an object.
pub type StatusPage = Arc<dyn Fn() -> Value + Send + Sync>;

/// What the listener shows.
#[derive(Clone)]
pub struct Admin {
    pub readiness: Readiness,
    pub lifecycle: Lifecycle,
    pub metrics: Metrics,
    pub renderers: Vec<Renderer>,
    /// `version`, `uptime_s` and `ready` are added where it lacks them.
    pub status: StatusPage,
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, admin: Admin) {
    let page = Arc::new(Page { admin, since: Instant::now() });
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            (place, accepted) = accept(&listener, &places) => match accepted {
                Ok(stream) => {
                    let page = page.clone();
                    connections.spawn(async move {
                        converse(stream, page).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin listener cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

/// Takes a place first: connections beyond the limit wait in the kernel's backlog.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (tokio::sync::OwnedSemaphorePermit, std::io::Result<TcpStream>) {
    let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (place, Ok(stream)),
            // The client was gone before we came to it.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => return (place, Err(error)),
        }
    }
}

async fn converse(stream: TcpStream, page: Arc<Page>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = page.answer(request.method(), request.uri().path());
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        biased; // a request that is here is answered, also at the end of the connection's life
        _ = connection.as_mut() => {}
        () = sleep(CONNECTION_LIFE) => {
            connection.as_mut().graceful_shutdown();
            let _ = timeout(LAST_ANSWER_LIMIT, connection).await;
        }
    }
}

struct Page {
    admin: Admin,
    since: Instant,
}

impl Page {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            let mut response = json_of(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": "GET only" }));
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/livez" => json_of(StatusCode::OK, &json!({ "alive": true })),
            "/readyz" => {
                let reasons = self.reasons();
                let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                json_of(status, &json!({ "ready": reasons.is_empty(), "reasons": reasons }))
            }
            "/metrics" => {
                let mut text = self.admin.metrics.render();
                for renderer in &self.admin.renderers {
                    renderer(&mut text);
                }
                respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
            }
            "/status" => json_of(StatusCode::OK, &self.status()),
            _ => {
                let paths = ["/livez", "/readyz", "/metrics", "/status"];
                json_of(StatusCode::NOT_FOUND, &json!({ "error": "not found", "paths": paths }))
            }
        }
    }

    /// Why this process is not ready; empty if it is.
    fn reasons(&self) -> Vec<&'static str> {
        let phase = match self.admin.lifecycle.phase() {
            Phase::Starting => Some("starting"),
            Phase::Serving => None,
            Phase::Draining | Phase::Stopping => Some("draining"),
        };
        phase.into_iter().chain(self.admin.readiness.reasons()).collect()
    }

    fn status(&self) -> Value {
        let mut status = (self.admin.status)();
        if let Value::Object(fields) = &mut status {
            let uptime = self.since.elapsed().as_secs();
            fields.entry("version").or_insert_with(|| env!("CARGO_PKG_VERSION").into());
            fields.entry("uptime_s").or_insert_with(|| uptime.into());
            fields.entry("ready").or_insert_with(|| self.reasons().is_empty().into());
        }
        status
    }
}

fn json_of(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    respond(status, "application/json", format!("{value}\n"))
}

fn respond(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Every answer is of this moment.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn admin() -> Admin {
        Admin {
            readiness: Readiness::new(),
            lifecycle: Lifecycle::new(),
            metrics: Metrics::default(),
            renderers: vec![Arc::new(|text| text.push_str("servery_balancer_node_busy{node=\"a\"} 1\n"))],
            status: Arc::new(|| json!({ "role": "balancer", "uptime_s": 7 })),
        }
    }

    async fn get(page: &Page, path: &str) -> (StatusCode, String) {
        let response = page.answer(&Method::GET, path);
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap().trim_end().to_owned())
    }

    #[tokio::test]
    async fn ready_means_serving_with_every_latch_released() {
        let page = Page { admin: admin(), since: Instant::now() };
        let certificates = page.admin.readiness.latch("no certificates");
        assert_eq!(
            get(&page, "/readyz").await,
            (StatusCode::SERVICE_UNAVAILABLE, r#"{"ready":false,"reasons":["starting","no certificates"]}"#.to_owned())
        );
        page.admin.lifecycle.advance(Phase::Serving);
        certificates.release();
        assert_eq!(get(&page, "/readyz").await, (StatusCode::OK, r#"{"ready":true,"reasons":[]}"#.to_owned()));
        page.admin.lifecycle.advance(Phase::Draining);
        assert_eq!(get(&page, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get(&page, "/livez").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn status_is_the_roles_own_with_what_every_process_has() {
        let page = Page { admin: admin(), since: Instant::now() };
        let (_, text) = get(&page, "/status").await;
        let status: Value = serde_json::from_str(&text).unwrap();
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(status, json!({ "role": "balancer", "uptime_s": 7, "version": version, "ready": false }));
    }

    #[tokio::test]
    async fn it_answers_over_a_socket_and_changes_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut servers = JoinSet::new();
        servers.spawn(serve(listener, admin()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let requests = "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\nDELETE /status HTTP/1.1\r\nhost: a\r\n\r\n\
                        GET /secrets HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(requests.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("servery_balancer_node_busy{node=\"a\"} 1"), "{answer}");
        let statuses: Vec<&str> = answer.lines().filter(|line| line.starts_with("HTTP/1.1 ")).collect();
        assert_eq!(statuses, ["HTTP/1.1 200 OK", "HTTP/1.1 405 Method Not Allowed", "HTTP/1.1 404 Not Found"]);
    }
}
