//! Over real sockets, with clients and workers that speak bytes.

use crate::fixture::{Nobody, Peer, Plane, Worker, eventually, number, soon};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper::{Method, Request, body::Frame};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

fn empty() -> BoxBody<Bytes, io::Error> {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn full(text: &'static str) -> BoxBody<Bytes, io::Error> {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

fn status(head: &str) -> &str {
    head.split(' ').nth(1).unwrap()
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const REFUSED: &str = "HTTP/1.1 503 Service Unavailable\r\nservery-refused: draining\r\ncontent-length: 0\r\n\r\n";

mod attempts;
mod endings;
mod floods;
mod framing;
mod idle;
mod intermediary;
mod limits;
mod logs;
mod messages;
mod protocols;
mod proxies;
mod queueing;
mod settling;
mod slow;
mod stalls;
mod traces;
mod trailers;
mod tunnels;
mod websockets;
