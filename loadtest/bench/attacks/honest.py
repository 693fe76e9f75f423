"""The legitimate clients, a process of their own. In: where to, with TLS or without, how many requests per second. Out, when stdin
ends: one line of JSON, [[planned, seconds, kept, well], ...]. Requests begin by the clock, whatever became of the one before (an open
model), and a request's time counts from when it was due: a server that stands still is not spared the requests it held up.

Every other request has a connection of its own, with a full handshake; the rest use kept ones.
"""

import itertools
import json
import socket
import ssl
import sys
import threading
import time

CLIENTS = 64
PATIENCE = 5
REQUEST = b"GET /small HTTP/1.1\r\nHost: localhost\r\n%s\r\n"


class Client:
    def __init__(self, address, tls):
        host, port = address.split(":")
        self.address, self.stream, self.context = (host, int(port)), None, None
        if tls:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE

    def connect(self):
        stream = socket.create_connection(self.address, PATIENCE)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.context.wrap_socket(stream) if self.context else stream

    def ask(self, kept):
        if not kept or self.stream is None:
            self.connect()
        self.stream.sendall(REQUEST % (b"" if kept else b"Connection: close\r\n"))
        answer = b""
        while not answer.endswith(b"Hello World!"):
            more = self.stream.recv(4096)
            if not more:
                raise ConnectionError(f"an answer of {len(answer)} bytes")
            answer += more
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(answer[:100])

    def close(self):
        if self.stream is not None:
            self.stream.close()
        self.stream = None


def main():
    address, tls, rate = sys.argv[1], sys.argv[2] == "tls", float(sys.argv[3])
    samples, over, turns = [], threading.Event(), (itertools.count(), itertools.count())
    begun = time.monotonic() + 0.2

    def run(kept):
        client = Client(address, tls)
        if kept:
            client.ask(kept)
        # a call of next on a count is one step of the interpreter: no two threads get the same turn
        for turn in turns[kept]:
            planned = begun + (2 * turn + kept) / rate
            if over.wait(max(0, planned - time.monotonic())):
                return
            try:
                client.ask(kept)
                well = True
            except OSError as failure:
                well = False
                print(f"{failure!r}", file=sys.stderr)
                client.close()
            samples.append((planned, time.monotonic() - planned, kept, well))
            if not kept:
                client.close()

    threads = [threading.Thread(target=run, args=(number % 2 == 0,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    over.set()
    deadline = time.monotonic() + PATIENCE + 1
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    print(json.dumps(list(samples)))


main()
