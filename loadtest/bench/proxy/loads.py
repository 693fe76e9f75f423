"""Loads. In: where to, for how long, and who is measured. Out: requests, times, and what they cost the proxy.

All of it runs on the other core, beside the backend: the proxy's core is its own. So the rate says how much the whole path
carries on this machine, and the proxy's CPU time per request what the proxy costs, which does not depend on who is slower.
"""

import contextlib
import re
import socket
import ssl
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass, field

from costs import cpu, memory
from servers import OTHER_CORE

CONNECTIONS = 32


@dataclass
class Taken:
    """One round. Seconds; `cpu` is of one request (or connection)."""

    requests: int
    seconds: float
    user: float
    system: float
    p50: float
    p99: float
    extra: dict = field(default_factory=dict)

    @property
    def rate(self):
        return self.requests / self.seconds

    @property
    def cpu(self):
        return self.user + self.system


class Bad(Exception):
    """Some answers were missing or wrong: the round counts for nobody."""


@contextlib.contextmanager
def charged(pid):
    """What the block costs the process; [user, system] in seconds once it is over."""
    cost, before = [0.0, 0.0], cpu(pid)
    yield cost
    cost[:] = [after - earlier for after, earlier in zip(cpu(pid), before)]


def seconds_of(text):
    match = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    if not match:
        raise Bad(f"{text!r} is no time")
    number, unit = match.groups()
    return float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60}[unit]


def http1(pid, scheme, address, path, seconds):
    url = f"{scheme}://{address}{path}"
    command = ["taskset", "-c", OTHER_CORE, "wrk", "-t", "1", "-c", str(CONNECTIONS), "--latency", "-d"]
    subprocess.run([*command, "1s", url], check=True, capture_output=True)  # connections, caches, code
    with charged(pid) as cost:
        said = subprocess.run([*command, f"{seconds}s", url], check=True, capture_output=True, text=True).stdout
    requests, lasted = re.search(r"(\d+) requests in ([\d.]+\w+),", said).groups()
    if "Non-2xx" in said or "Socket errors" in said:
        raise Bad(said)
    requests = int(requests)
    if not requests:
        raise Bad(said)
    p50, p99 = (seconds_of(re.search(rf"\n\s+{percent}%\s+(\S+)", said)[1]) for percent in (50, 99))
    return Taken(requests, seconds_of(lasted), cost[0] / requests, cost[1] / requests, p50, p99)


def http2(pid, scheme, address, path, seconds):
    log = f"/dev/shm/h2load-{pid}"
    command = ["taskset", "-c", OTHER_CORE, "h2load", "-t", "1", "-c", "4", "-m", "8", f"--log-file={log}", "-D"]
    url = f"{scheme}://{address}{path}"
    subprocess.run([*command, "1", url], check=True, capture_output=True)
    open(log, "w").close()
    with charged(pid) as cost:
        said = subprocess.run([*command, str(seconds), url], check=True, capture_output=True, text=True).stdout
    if "Application protocol: h2" not in said:
        raise Bad(said)
    with open(log) as lines:
        answers = [line.split("\t") for line in lines]
    if not answers or any(status != "200" for _, status, _ in answers):
        raise Bad(f"{len(answers)} answers, not all of them 200\n{said}")
    times = sorted(float(micros) * 1e-6 for _, _, micros in answers)
    count = len(times)
    return Taken(count, seconds, cost[0] / count, cost[1] / count, times[count // 2], times[count * 99 // 100])


def handshakes(pid, address, seconds, resumed):
    """A connection, a request, the end, again and again, from four threads."""
    host, port = address.split(":")
    times, reused, failures, until = [], [0], [], time.monotonic() + seconds

    def client():
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        session = None
        while time.monotonic() < until:
            begun = time.monotonic()
            try:
                with context.wrap_socket(socket.create_connection((host, int(port)), 5), session=session) as stream:
                    times.append(time.monotonic() - begun)
                    reused[0] += stream.session_reused
                    stream.sendall(b"GET /small HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    while stream.recv(4096):
                        pass
                    session = stream.session if resumed else None
            except OSError as failure:
                failures.append(failure)

    threads = [threading.Thread(target=client) for _ in range(4)]
    with charged(pid) as cost:
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lasted = time.monotonic() - begun
    count = len(times)
    if failures or not count or (reused[0] < 0.9 * count if resumed else reused[0]):
        raise Bad(f"{len(failures)} failures {failures[:1]}, {reused[0]} of {count} resumed")
    times.sort()
    return Taken(count, lasted, cost[0] / count, cost[1] / count, times[count // 2], times[count * 99 // 100])


def idle(pid, address, tls, count):
    """Connections that have had one answer, and stay. Bytes of the proxy for each."""
    host, port = address.split(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def connect():
        stream = socket.create_connection((host, int(port)), 5)
        if tls:
            stream = context.wrap_socket(stream)
        stream.sendall(b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if not stream.recv(4096).startswith(b"HTTP/1.1 200"):
            raise Bad("no answer on a connection that was to be idle")
        return stream

    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect())
        before = memory(pid)
        for _ in range(count):
            stack.enter_context(connect())
        time.sleep(1)
        return (memory(pid) - before) / count


def middle(rounds, what):
    return statistics.median(getattr(taken, what) for taken in rounds)
