//! Frames of HTTP/2 that make work and carry nothing.

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const SETTINGS_ACK: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];
const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
const LAST_PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1];
const PRIORITY: &[u8] = &[0, 0, 5, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x10];
/// The whole connection's, by one byte.
const WINDOW_UPDATE: &[u8] = &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Of a kind that there is not.
const UNKNOWN: &[u8] = &[0, 0, 1, 0xfa, 0, 0, 0, 0, 0, 0];

/// What a client gets to read that sends this so often and then asks whether we are there: up to our answer, or to the end.
async fn after(frame: &[u8], times: usize) -> Vec<u8> {
    let plane = Plane::start("");
    let stream = plane.tls(&[b"h2"]).await;
    let (mut reads, mut writes) = tokio::io::split(stream);
    let mut bytes = [PREFACE, SETTINGS, SETTINGS_ACK].concat();
    bytes.extend(frame.repeat(times));
    bytes.extend_from_slice(LAST_PING);
    // it may be closed in the middle
    let writing = async { drop(soon(writes.write_all(&bytes)).await) };
    let reading = async {
        let mut answer = Vec::new();
        while !answer.ends_with(&LAST_PING[9..]) {
            let Ok(byte) = soon(reads.read_u8()).await else { break };
            answer.push(byte);
        }
        answer
    };
    tokio::join!(writing, reading).1
}

#[tokio::test]
async fn a_client_that_sends_too_many_of_them_is_told_to_calm_down() {
    let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xb];
    for frame in [PING, SETTINGS, PRIORITY, WINDOW_UPDATE, UNKNOWN] {
        // of 1000 the settings, their acknowledgement and the last PING are three
        let answer = after(frame, 997).await;
        assert!(answer.ends_with(&LAST_PING[9..]), "{frame:?} is fine so often");
        let answer = after(frame, 998).await;
        assert!(answer.ends_with(&goaway), "{frame:?}: {:?}", &answer[answer.len().saturating_sub(40)..]);
    }
}
