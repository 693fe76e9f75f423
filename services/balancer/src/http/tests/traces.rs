//! W3C Trace Context from the client through the log to the worker.

use super::*;

/// What the worker was told, of this field.
async fn told(plane: &Plane, fields: &str, name: &str) -> Vec<String> {
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send(&format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n")).await;
    let mut upstream = worker.accept().await;
    let head = upstream.answer("").await;
    client.response().await;
    head.lines().filter_map(|line| line.strip_prefix(&format!("{name}: "))).map(str::to_owned).collect()
}

const ID: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test]
async fn a_trace_goes_on_and_the_log_names_it() {
    let plane = Plane::start("");
    let fields = format!("Traceparent: 00-{ID}-b7ad6b7169203331-00\r\nTracestate: a=1\r\ntracestate: b=2\r\n");
    let parents = told(&plane, &fields, "traceparent").await;
    let [parent] = &parents[..] else { panic!("{parents:?}") };
    assert!(parent.starts_with(&format!("00-{ID}-")) && parent.ends_with("-00"), "{parent}");
    assert!(!parent.contains("b7ad6b7169203331"), "another parent: {parent}");
    assert_eq!(told(&plane, &fields, "tracestate").await, ["a=1", "b=2"]);
    assert!(plane.finish().await.iter().all(|line| line["trace_id"] == ID));
}

#[tokio::test]
async fn a_trace_begins_here_where_there_is_none_that_is_valid() {
    let plane = Plane::start("");
    let mut ids = Vec::new();
    for fields in ["", "traceparent: 00-1-2-3\r\ntracestate: a=1\r\n", "tracestate: a=1\r\n"] {
        let parents = told(&plane, fields, "traceparent").await;
        let [parent] = &parents[..] else { panic!("{parents:?}") };
        assert_eq!((parent.len(), &parent[..3], &parent[52..]), (55, "00-", "-01"), "{parent}");
        ids.push(parent[3..35].to_owned());
        assert_eq!(told(&plane, fields, "tracestate").await, [""; 0]);
    }
    let log = plane.finish().await;
    let logged: Vec<_> = log.iter().map(|line| line["trace_id"].as_str().unwrap()).collect();
    assert!(ids.iter().all(|id| logged.contains(&id.as_str())), "{ids:?} {logged:?}");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3, "each has its own");
}

#[tokio::test]
async fn only_so_many_of_the_traces_that_begin_here_are_to_be_recorded() {
    let plane = Plane::start("trace_sample = 0");
    assert!(told(&plane, "", "traceparent").await[0].ends_with("-00"));
    let fields = format!("traceparent: 00-{ID}-b7ad6b7169203331-01\r\n");
    assert!(told(&plane, &fields, "traceparent").await[0].ends_with("-01"), "the client's flags are the client's");
}

#[tokio::test]
async fn what_is_answered_here_names_the_clients_trace() {
    let plane = Plane::start("");
    let mut client = plane.client().await;
    client.send(&format!("GET / HTTP/1.1\r\nhost: a b\r\ntraceparent: 00-{ID}-b7ad6b7169203331-01\r\n\r\n")).await;
    assert!(client.response().await.0.starts_with("http/1.1 400"));
    client.send("GET / HTTP/1.1\r\nhost: a b\r\n\r\n").await;
    assert!(client.response().await.0.starts_with("http/1.1 400"));
    let log = plane.finish().await;
    assert_eq!((log[0]["trace_id"].as_str(), log[1]["trace_id"].as_str()), (Some(ID), None));
}
