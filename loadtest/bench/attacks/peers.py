"""Hostile connections of our own. In: where to, what to send again and again, until when. Out: counts of what was sent and of how the
server ended it. One thread, no blocking, bounded by its deadline; a connection that the server ends is opened anew.
"""

import collections
import contextlib
import functools
import selectors
import socket
import ssl
import struct
import time

import frames

BLOCKED = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)
# attackers have an address of their own, so that a limit for each client can be tried
SOURCE = "127.0.0.2"


@functools.cache
def context(protocol):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.set_alpn_protocols([protocol])
    return made


def dial(address, protocol=None, receive=None):
    """A connection, with TLS if a protocol is named. `receive`: the size of its receive buffer in bytes."""
    host, port = address.split(":")
    stream = socket.socket()
    # the kernel chooses the port when it knows where to: one source address is good for more ports
    stream.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    stream.bind((SOURCE, 0))
    stream.settimeout(5)
    if receive:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    stream.connect((host, int(port)))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if protocol:
        stream = context(protocol).wrap_socket(stream)
        if protocol != stream.selected_alpn_protocol():
            raise OSError(f"{protocol} was not agreed on")
    return stream


class Peer:
    """One connection. `script(peer)` yields what to send; an empty piece means nothing for now; its end, nothing more at all."""

    def __init__(self, stream, script, counts, http2, reads=True):
        self.stream, self.counts, self.http2, self.reads = stream, counts, http2, reads
        self.reader, self.piece, self.first = frames.Reader(), b"", b""
        self.script = script(self)
        self.settings = http2
        self.stream.setblocking(False)

    def send(self):
        """Whether it could go on."""
        if not self.piece:
            self.piece = memoryview(self.first or next(self.script, b""))
            self.first = b""
        if not self.piece:
            return False
        try:
            sent = self.stream.send(self.piece)
        except BLOCKED:
            return False
        self.counts["bytes"] += sent
        self.piece = self.piece[sent:]
        return True

    def receive(self):
        """Raises once the server has ended the connection."""
        for _ in range(16):
            try:
                received = self.stream.recv(65536)
            except BLOCKED:
                return
            if not received:
                raise ConnectionError("closed")
            if not self.http2:
                self.counts[f"answers {received[9:12].decode(errors='replace')}"] += received.startswith(b"HTTP/1.1 ")
                continue
            for kind, flags, _, payload in self.reader.take(received):
                if kind == frames.RST_STREAM:
                    self.counts["streams reset"] += 1
                elif kind == frames.GOAWAY:
                    self.counts[f"GOAWAY {struct.unpack_from('>I', payload, 4)[0]}"] += 1
                elif kind == frames.PING and not flags & frames.ACK:
                    self.first += frames.frame(frames.PING, frames.ACK, payload=payload)


def drive(until, number, connect, counts):
    """Keeps so many peers at it. `connect`: makes one."""
    selector, peers = selectors.DefaultSelector(), set()

    def add():
        try:
            peer = connect()
        except OSError:
            counts["refused"] += 1
            time.sleep(0.01)
            return
        counts["connections"] += 1
        peers.add(peer)
        selector.register(peer.stream, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)

    def drop(peer):
        selector.unregister(peer.stream)
        peers.discard(peer)
        peer.stream.close()

    while time.monotonic() < until:
        if len(peers) < number:
            add()
        moved = False
        for key, events in selector.select(0.05):
            peer = key.data
            try:
                if peer.reads:
                    peer.receive()
                if events & selectors.EVENT_WRITE:
                    moved |= peer.send()
            except OSError:
                counts["ended by the server"] += 1
                drop(peer)
        if not moved:
            time.sleep(0.002)
    for peer in list(peers):
        drop(peer)
    selector.close()


def http2(address, script, *, settings=(), reads=True):
    """Makes connections of HTTP/2 that begin with these settings."""
    counts = collections.Counter()

    def connect():
        peer = Peer(dial(address, "h2"), script, counts, True, reads)
        peer.first = frames.PREFACE + frames.settings(*settings) + frames.frame(frames.SETTINGS, frames.ACK)
        return peer

    return counts, connect


def http1(address, script, tls=True):
    counts = collections.Counter()
    return counts, lambda: Peer(dial(address, "http/1.1" if tls else None), script, counts, False)


def hold(address, number, until, request=None, protocol=None, opening=b""):
    """Opens so many connections and keeps them, each after an answer where there is a request."""
    counts = collections.Counter()
    with contextlib.ExitStack() as stack:
        streams = []
        while len(streams) < number and time.monotonic() < until:
            try:
                stream = stack.enter_context(dial(address, protocol))
                if request or opening:
                    stream.sendall(request or opening)
                if request and not stream.recv(4096).startswith(b"HTTP/1.1 200"):
                    raise ConnectionError
                streams.append(stream)
                counts["connections"] += 1
            except OSError:
                counts["refused"] += 1
                if counts["refused"] > number:
                    break
        time.sleep(max(0, until - time.monotonic()))
        for stream in streams:
            stream.setblocking(False)
            try:
                counts["ended by the server"] += stream.recv(4096) == b""
            except BLOCKED:
                pass
            except OSError:
                counts["ended by the server"] += 1
    return counts
