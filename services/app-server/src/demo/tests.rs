//! The demo's answers, asked without a worker around it.

use super::router;
use axum::{
    body::Body,
    http::{Request, StatusCode, header},
    response::Response,
};
use http_body_util::BodyExt;
use servery_worker::Placement;
use tower::ServiceExt;

async fn ask(request: Request<Body>) -> Response {
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(Placement::for_test("demo", "node-<1>", 3, 1));
    router().oneshot(Request::from_parts(parts, body)).await.unwrap()
}

async fn get(path: &str) -> Response {
    ask(Request::get(path).body(Body::empty()).unwrap()).await
}

async fn text(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn whoami_tells_who_answered_and_what_it_knows() {
    let request = Request::get("/whoami?a=b")
        .header("x-forwarded-for", "203.0.113.9, 10.0.0.1")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", "example.org")
        .header("x-forwarded-prefix", "/shop")
        .header("x-request-id", "id-1");
    let who = text(ask(request.body(Body::empty()).unwrap()).await).await;
    let who: serde_json::Value = serde_json::from_str(&who).unwrap();
    let expected = serde_json::json!({
        "node": "node-<1>", "worker": 3, "pid": std::process::id(), "request_id": "id-1", "client_ip": "203.0.113.9",
        "scheme": "https", "host": "example.org", "path": "/shop/whoami", "app": "demo",
    });
    assert_eq!(who, expected);
}

#[tokio::test]
async fn the_page_shows_the_worker_and_escapes_what_it_shows() {
    let request = Request::get("/").header("x-forwarded-host", "<script>").body(Body::empty()).unwrap();
    let page = text(ask(request).await).await;
    assert!(page.contains("worker <b>3</b> on node <b>node-&lt;1&gt;</b>") && page.contains("&lt;script&gt;"));
    assert!(!page.contains("<script"));
}

#[tokio::test]
async fn every_endpoint_answers() {
    for (path, expected) in [("/hello", "Hello World!"), ("/sleep/1", "slept 1 ms\n")] {
        assert_eq!(text(get(path).await).await, expected);
    }
    assert!(text(get("/burn/1").await).await.starts_with("burnt 1 ms"));
    let echo = Request::post("/echo").header("content-type", "text/x").body(Body::from("back")).unwrap();
    let echoed = ask(echo).await;
    assert_eq!(echoed.headers()["content-type"], "text/x");
    assert_eq!(text(echoed).await, "back");
    let events = get("/stream/3/1").await;
    assert_eq!(events.headers()[header::CONTENT_TYPE], "text/event-stream");
    assert_eq!(text(events).await.matches("data:").count(), 3);
    for n in [0_usize, 1, 65_536, 200_000] {
        let bytes = get(&format!("/bytes/{n}")).await;
        assert_eq!(bytes.headers()[header::CONTENT_LENGTH], n.to_string());
        assert_eq!(text(bytes).await.len(), n);
    }
    let headers = Request::get("/headers").header("x-a", "1").header("x-a", "2").body(Body::empty()).unwrap();
    assert!(text(ask(headers).await).await.contains(r#""x-a":"1, 2""#));
}

#[tokio::test]
async fn what_costs_something_is_bounded() {
    for path in
        ["/sleep/600001", "/burn/60001", "/stream/100001/1", "/stream/1/600001", "/bytes/1073741825", "/sleep/-1"]
    {
        assert_eq!(get(path).await.status(), StatusCode::BAD_REQUEST, "{path}");
    }
}

#[tokio::test]
async fn a_status_is_given_as_asked_for() {
    for code in [200, 204, 304, 404, 418, 503, 599] {
        assert_eq!(get(&format!("/status/{code}")).await.status(), code);
    }
    for code in [0, 100, 199, 600, 1000] {
        assert_eq!(get(&format!("/status/{code}")).await.status(), StatusCode::BAD_REQUEST, "{code}");
    }
}
