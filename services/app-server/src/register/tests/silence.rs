//! A network that drops everything and closes nothing.

use super::{Authority, Balancer, Node, PATIENCE, StreamState};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

/// Between a node and a balancer. While it drops, nothing comes through, in either direction, and nobody is told.
struct Wire {
    address: SocketAddr,
    drops: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Wire {
    async fn to(balancer: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (drops, dropping) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (node, _) = listener.accept().await.unwrap();
                connections.spawn(carry(node, balancer, dropping.clone()));
            }
        });
        Self { address, drops, _tasks: tasks }
    }
}

/// A connection over which packets were dropped stays dead: its other end has forgotten it when they flow again.
async fn carry(mut node: TcpStream, balancer: SocketAddr, mut drops: watch::Receiver<bool>) {
    if !*drops.borrow() {
        let mut onward = TcpStream::connect(balancer).await.unwrap();
        tokio::select! {
            _ = copy_bidirectional(&mut node, &mut onward) => return,
            _ = drops.wait_for(|drops| *drops) => {}
        }
        // both stay open
        std::mem::forget(onward);
    }
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_balancer_that_falls_silent_is_lost_after_two_heartbeats_and_found_when_packets_flow_again() {
    let authority = Authority::new();
    let mut balancer = Balancer::bind(&authority, "b-1").await;
    let wire = Wire::to(balancer.address).await;
    let (node, _workers) = Node::dialling(&authority, &[wire.address]);
    let (session, hello) = balancer.welcome().await;
    session.acknowledge(&hello.report.unwrap()).await;
    node.states(&[StreamState::Registered]).await;

    wire.drops.send_replace(true);
    let dropped = Instant::now();
    node.states(&[StreamState::Connecting]).await;
    let noticed = dropped.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_millis(3500)).contains(&noticed), "{noticed:?}");

    wire.drops.send_replace(false);
    let flows = Instant::now();
    let back = async {
        let session = balancer.welcome().await;
        node.states(&[StreamState::Registered]).await;
        session
    };
    let _session = timeout(PATIENCE, back).await.expect("the balancer is found again");
    println!("lost after {noticed:?}, back after {:?}", flows.elapsed());
}
