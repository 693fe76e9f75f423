//! What goes over the takeover socket: a length, so much JSON, then the descriptors, some with each further byte. Both
//! ends of it, blocking; the caller sets the socket's time limits.

use super::doors::{Estate, Opened};
use crate::{
    registry::Inherited,
    route::{HostPattern, Prefix},
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    net::TcpListener,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

/// Both ends must mean the same.
const VERSION: u32 = 1;
/// Some thousand nodes with all their routes.
const TEXT_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// Linux takes 253 at once (SCM_MAX_FD).
const BATCH: usize = 64;
/// Two per core and two more.
const SOCKETS_MAX: usize = 2 * 1024 + 2;

/// What comes with the sockets.
#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    version: u32,
    http: usize,
    https: usize,
    admin: bool,
    routes: Vec<Words>,
}

/// A declared route.
#[derive(Debug, Serialize, Deserialize)]
struct Words {
    app: String,
    host: String,
    prefix: String,
    strip_prefix: bool,
}

pub(super) fn send(mut stream: &UnixStream, Estate { opened, lock }: &Estate, routes: &[Inherited]) -> io::Result<()> {
    let words = |route: &Inherited| Words {
        app: route.app.clone(),
        host: route.host.to_string(),
        prefix: route.prefix.to_string(),
        strip_prefix: route.strip_prefix,
    };
    let contents = Contents {
        version: VERSION,
        http: opened.http.len(),
        https: opened.https.len(),
        admin: opened.admin.is_some(),
        routes: routes.iter().map(words).collect(),
    };
    let text = serde_json::to_vec(&contents)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&text)?;
    // the lock first: it is not one of the sockets
    send_descriptors(stream, &[lock.as_fd()])?;
    for batch in opened.descriptors().chunks(BATCH) {
        send_descriptors(stream, batch)?;
    }
    Ok(())
}

fn send_descriptors(stream: &UnixStream, batch: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(batch)) {
        return Err(io::Error::other("no room for the descriptors of a batch"));
    }
    sendmsg(stream, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

pub(super) fn receive(mut stream: &UnixStream) -> io::Result<(Estate, Vec<Inherited>)> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > TEXT_BYTES_MAX {
        return Err(wrong("its message is too long"));
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text)?;
    let contents: Contents = serde_json::from_slice(&text)?;
    if contents.version != VERSION {
        return Err(wrong("it is of a version that passes its sockets on in another way: restart it instead"));
    }
    let Contents { http, https, admin, routes, .. } = contents;
    let total = http.saturating_add(https).saturating_add(1 + usize::from(admin));
    if total > SOCKETS_MAX {
        return Err(wrong("it has more sockets than cores can be configured"));
    }
    let mut descriptors = Vec::with_capacity(total + 1);
    while descriptors.len() <= total {
        receive_descriptors(stream, &mut descriptors)?;
    }
    let mut descriptors = descriptors.into_iter();
    let missing = || wrong("a descriptor is missing");
    let lock = File::from(descriptors.next().ok_or_else(missing)?);
    let mut sockets = descriptors.map(TcpListener::from);
    let opened = Opened {
        http: sockets.by_ref().take(http).collect(),
        https: sockets.by_ref().take(https).collect(),
        control: sockets.next().ok_or_else(missing)?,
        admin: if admin { sockets.next() } else { None },
    };
    Ok((Estate { opened, lock }, routes.into_iter().filter_map(inherited).collect()))
}

fn receive_descriptors(stream: &UnixStream, descriptors: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let before = descriptors.len();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(found) = message {
            descriptors.extend(found);
        }
    }
    if received.bytes == 0 || descriptors.len() == before {
        return Err(wrong("it ended before all sockets had come"));
    }
    Ok(())
}

/// What a route's words mean; they were made by the same code, so one that means nothing is only left out.
fn inherited(words: Words) -> Option<Inherited> {
    let (host, prefix) = (HostPattern::parse(&words.host).ok()?, Prefix::parse(&words.prefix).ok()?);
    Some(Inherited { app: words.app, host, prefix, strip_prefix: words.strip_prefix })
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
