//! Bytes that two readers could take for different messages, sent to the whole chain and to a node that stands alone: nothing
//! of it is ever two requests, as the application itself records what it gets.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod rogue;

use std::net::SocketAddr;
use std::time::Duration;

use rogue::Program;
use servery_harness::malformed::{self, Malformed, SMUGGLED};
use servery_harness::{Plan, Raw, Role, StandalonePlan, ensure, eventually};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// What comes back for these bytes on a connection of their own, until the server closes it.
async fn say(address: SocketAddr, pieces: &[&str]) -> String {
    let mut connection = Raw::dial(address).await.unwrap();
    for piece in pieces {
        // a server that has seen enough may have closed already
        drop(connection.send(piece).await);
        tokio::task::yield_now().await;
    }
    connection.to_the_end().await.unwrap()
}

/// Sends these and all bodies, in one piece and in two. `refused`: whether this is how it is to be refused.
async fn attack(address: SocketAddr, program: &Program, heads: Vec<Malformed>, refused: impl Fn(u16, u16) -> bool) {
    for Malformed { request, status, .. } in heads {
        let behind = format!("{request}{SMUGGLED}{SMUGGLED}");
        let middle = request.floor_char_boundary(request.len() / 2);
        for pieces in [&[behind.as_str()][..], &[&behind[..middle], &behind[middle..]]] {
            let answer = say(address, pieces).await;
            let told = answer.get(9..12).and_then(|told| told.parse().ok()).unwrap_or(0);
            assert!(refused(told, status), "{status} for {request:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request:?}: {answer}");
        }
    }
    assert_eq!(program.notes(), [""; 0], "none of it reaches the application");

    let bodies = malformed::bodies();
    for body in &bodies {
        let answer = say(address, &[malformed::BEGUN, body, SMUGGLED]).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{body:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{body:?}: {answer}");
    }
    // what is well-formed behind all that is recorded, so that the rest would have been
    let last = "GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert!(say(address, &[last]).await.ends_with("recorded 0"));
    eventually("the last note", SOON, async || {
        ensure(program.notes().iter().any(|note| note == "GET /last ends"), || format!("{:?}", program.notes()))
    })
    .await;
    let notes = program.notes();
    let of = |wanted: &str| notes.iter().filter(|note| *note == wanted).count();
    assert!(of("POST /first begins") <= bodies.len(), "{notes:?}");
    assert_eq!(of("POST /first ends"), 0, "{notes:?}");
    assert!(notes.iter().all(|note| !note.contains("/smuggled")), "{notes:?}");
}

#[tokio::test]
async fn nothing_that_a_balancer_is_sent_is_two_requests_for_the_application_behind_it() {
    let program = Program::new();
    let cluster = Plan::new(SERVERY).plain().with(Role::AppServer, &program.line()).start().await;
    attack(cluster.balancers[0].http(), &program, malformed::heads(), |told, status| told == status).await;
}

#[tokio::test]
async fn nor_is_anything_that_a_node_is_sent_that_stands_alone() {
    let program = Program::new();
    let node = StandalonePlan::new(SERVERY).with(&program.line()).start().await;
    // how many fields are too many, and how long ones too long, is its own business
    let heads = malformed::heads().into_iter().filter(|head| matches!(head.status, 400 | 505)).collect();
    attack(node.address(), &program, heads, |told, _| matches!(told, 400 | 505)).await;
}
