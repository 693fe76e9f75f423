//! Names that a nameserver of the test answers, or does not.

use super::{Discovery, DiscoveryError, LONGEST, SHORTEST};
use crate::config::HostPort;
use hickory_resolver::proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, SRV},
    },
};
use std::{net::SocketAddr, time::Duration};
use tokio::{net::UdpSocket, task::JoinHandle};

/// A nameserver on a free port that answers from a list, until it is dropped.
struct Nameserver {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Nameserver {
    /// `broken`: a type that is answered with a fault instead.
    async fn bind(records: Vec<(&'static str, u32, RData)>, broken: Option<RecordType>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut packet = [0; 1500];
            loop {
                let (length, from) = socket.recv_from(&mut packet).await.unwrap();
                let question = Message::from_vec(&packet[..length]).unwrap();
                let query = question.queries[0].clone();
                let mut answer = Message::response(question.metadata.id, OpCode::Query);
                answer.metadata.recursion_available = true;
                answer.add_query(query.clone());
                let named: Vec<_> =
                    records.iter().filter(|(name, ..)| query.name() == &Name::from_ascii(name).unwrap()).collect();
                if broken == Some(query.query_type()) {
                    answer.metadata.response_code = ResponseCode::ServFail;
                } else if named.is_empty() {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                for (name, ttl, data) in named {
                    if data.record_type() == query.query_type() && broken != Some(query.query_type()) {
                        answer.add_answer(Record::from_rdata(Name::from_ascii(name).unwrap(), *ttl, data.clone()));
                    }
                }
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        });
        Self { address, task }
    }

    fn discovery(&self) -> Discovery {
        Discovery::new(&[self.address]).unwrap()
    }
}

fn a(address: &str) -> RData {
    RData::A(A(address.parse().unwrap()))
}

fn aaaa(address: &str) -> RData {
    RData::AAAA(AAAA(address.parse().unwrap()))
}

fn srv(priority: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, 1, port, Name::from_ascii(target).unwrap()))
}

fn without_port(host: &str) -> HostPort {
    HostPort { host: host.to_owned(), port: None }
}

fn sockets(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn a_name_gives_its_addresses_of_both_families_and_no_duplicate() {
    let dns = Nameserver::bind(
        vec![
            ("balancer.test.", 2, a("192.0.2.1")),
            ("balancer.test.", 2, a("192.0.2.2")),
            ("balancer.test.", 2, a("192.0.2.1")),
            ("balancer.test.", 2, aaaa("2001:db8::1")),
        ],
        None,
    )
    .await;
    let found = dns.discovery().resolve(&HostPort::new("balancer.test", 7400)).await.unwrap();
    let mut addresses = found.addresses.clone();
    addresses.sort();
    assert_eq!(addresses, sockets(&["192.0.2.1:7400", "192.0.2.2:7400", "[2001:db8::1]:7400"]));
    assert!(found.valid_for <= Duration::from_secs(2) && found.valid_for > Duration::from_secs(1), "{found:?}");
}

#[tokio::test]
async fn an_answer_is_good_for_five_seconds_at_most_and_never_for_none() {
    let dns =
        Nameserver::bind(vec![("long.test.", 600, a("192.0.2.1")), ("none.test.", 0, a("192.0.2.1"))], None).await;
    let discovery = dns.discovery();
    let long = discovery.resolve(&HostPort::new("long.test", 1)).await.unwrap();
    assert!(long.valid_for <= LONGEST && long.valid_for > LONGEST - Duration::from_secs(1), "{long:?}");
    assert_eq!(discovery.resolve(&HostPort::new("none.test", 1)).await.unwrap().valid_for, SHORTEST);
}

#[tokio::test]
async fn srv_records_name_the_ports_and_the_nearest_priority_comes_first() {
    let dns = Nameserver::bind(
        vec![
            ("_registry._tcp.test.", 60, srv(20, 7402, "far.test.")),
            ("_registry._tcp.test.", 60, srv(10, 7401, "near.test.")),
            ("_registry._tcp.test.", 60, srv(30, 7403, "lost.test.")),
            ("near.test.", 60, a("192.0.2.1")),
            ("near.test.", 60, aaaa("2001:db8::1")),
            ("far.test.", 60, a("192.0.2.2")),
        ],
        None,
    )
    .await;
    let expected = sockets(&["192.0.2.1:7401", "[2001:db8::1]:7401", "192.0.2.2:7402"]);
    for name in [HostPort::new("_registry._tcp.test", 9), without_port("_registry._tcp.test")] {
        let found = dns.discovery().resolve(&name).await.unwrap();
        assert_eq!(found.addresses, expected, "{name}");
        assert_eq!(found.valid_for, SHORTEST, "a target without an address is asked for again soon");
    }
}

#[tokio::test]
async fn a_name_without_a_port_is_asked_for_by_srv() {
    let dns =
        Nameserver::bind(vec![("web.test.", 60, srv(1, 81, "a.test.")), ("a.test.", 60, a("192.0.2.1"))], None).await;
    let found = dns.discovery().resolve(&without_port("web.test")).await.unwrap();
    assert_eq!(found.addresses, sockets(&["192.0.2.1:81"]));
}

#[tokio::test]
async fn one_family_that_cannot_be_asked_for_does_not_hide_the_other() {
    let dns = Nameserver::bind(vec![("half.test.", 60, a("192.0.2.1"))], Some(RecordType::AAAA)).await;
    let found = dns.discovery().resolve(&HostPort::new("half.test", 80)).await.unwrap();
    assert_eq!(found.addresses, sockets(&["192.0.2.1:80"]));
}

#[tokio::test]
async fn a_name_that_is_not_there_is_told_from_dns_that_fails() {
    let dns = Nameserver::bind(vec![], None).await;
    let absent = dns.discovery().resolve(&HostPort::new("nobody.test", 80)).await.unwrap_err();
    assert!(matches!(absent, DiscoveryError::Absent { .. }), "{absent}");
    let absent = dns.discovery().resolve(&without_port("nobody.test")).await.unwrap_err();
    assert!(matches!(absent, DiscoveryError::Absent { kind: "SRV records", .. }), "{absent}");

    let broken = Nameserver::bind(vec![], Some(RecordType::A)).await;
    let failed = broken.discovery().resolve(&HostPort::new("nobody.test", 80)).await.unwrap_err();
    assert!(matches!(failed, DiscoveryError::Failed { .. }), "{failed}");
}

#[tokio::test]
async fn a_nameserver_that_never_answers_is_given_up_in_time() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let discovery = Discovery::new(&[silent.local_addr().unwrap()]).unwrap();
    let started = std::time::Instant::now();
    let error = discovery.resolve(&HostPort::new("balancer.test", 80)).await.unwrap_err();
    assert!(matches!(error, DiscoveryError::TimedOut(_) | DiscoveryError::Failed { .. }), "{error}");
    assert!(started.elapsed() < super::DEADLINE + Duration::from_secs(2));
}

#[tokio::test]
async fn addresses_and_localhost_ask_nobody() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let discovery = Discovery::new(&[silent.local_addr().unwrap()]).unwrap();
    for (host, expected) in [
        ("192.0.2.7", sockets(&["192.0.2.7:80"])),
        ("2001:db8::7", sockets(&["[2001:db8::7]:80"])),
        ("[2001:db8::7]", sockets(&["[2001:db8::7]:80"])),
        ("localhost", sockets(&["127.0.0.1:80", "[::1]:80"])),
        ("App.LocalHost.", sockets(&["127.0.0.1:80", "[::1]:80"])),
    ] {
        assert_eq!(discovery.resolve(&HostPort::new(host, 80)).await.unwrap().addresses, expected, "{host}");
        let error = discovery.resolve(&without_port(host)).await.unwrap_err();
        assert!(matches!(error, DiscoveryError::PortMissing(_)), "{error}");
    }
}
