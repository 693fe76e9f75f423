"""The Compose cluster under test: how it is reached, looked at, waited for, loaded and cut off. The checks are in
`container_test.py`.
"""

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = f"servery-test-{zlib.crc32(str(ROOT).encode()):08x}"
IMAGE = "servery"
BINARY = "/usr/local/bin/servery"
SHELL_IMAGE = "rust:1.95-slim-bookworm"  # the one that the Dockerfile builds on, for what needs a shell
ROLES = {"balancer": 1, "app": 3, "cert-sidecar": 1}  # service -> containers, as compose.yaml starts them


class Failed(Exception):
    """A check did not hold."""


def expect(holds, message):
    if not holds:
        raise Failed(message)


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]


HTTP, HTTPS, ADMIN, PROMETHEUS = free_ports(4)
ENVIRONMENT = {
    **os.environ,
    "COMPOSE_PROJECT_NAME": PROJECT,
    "HTTP_PORT": str(HTTP),
    "HTTPS_PORT": str(HTTPS),
    "ADMIN_PORT": str(ADMIN),
    "PROMETHEUS_PORT": str(PROMETHEUS),
}


def command(*words, limit=120, **options):
    return subprocess.run(
        words, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit, **options
    )


def docker(*words, **options):
    done = command("docker", *words, **options)
    said = (done.stdout + done.stderr)[-6000:]
    expect(done.returncode == 0, f"docker {' '.join(words)}: exit {done.returncode}\n{said}")
    return done.stdout


def compose(*words, **options):
    return docker("compose", *words, **options)


def containers(service):
    """The running ones; by label, because what `docker compose ps` lists differs between versions."""
    labels = [f"label=com.docker.compose.project={PROJECT}", f"label=com.docker.compose.service={service}"]
    return docker("ps", "-q", *(word for label in labels for word in ("--filter", label))).split()


def inspect(*ids):
    return json.loads(docker("inspect", *ids)) if ids else []


def eventually(check, limit=30):
    """What `check` returns once it no longer fails; its last failure when `limit` seconds are over."""
    end = time.monotonic() + limit
    while True:
        try:
            return check()
        except (Failed, OSError, KeyError, ValueError) as failure:
            if time.monotonic() > end:
                raise Failed(f"after {limit} s: {failure}") from failure
            time.sleep(0.2)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def get(url, context=None, timeout=10):
    """Status, headers and body; an error status is an answer like any other."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), NoRedirect, urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(url, timeout=timeout) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.headers, answer.read()


def trusting_the_root():
    """TLS settings that believe the cluster's own root and nothing else."""
    root = docker("exec", containers("cert-sidecar")[0], BINARY, "certs", "root")
    return ssl.create_default_context(cadata=root)


def answered_by(context, requests=300):
    """Which workers of which nodes answer: {node: {worker, ...}}."""
    seen = {}
    connection = http.client.HTTPSConnection("localhost", HTTPS, context=context, timeout=10)
    with contextlib.closing(connection):
        for _ in range(requests):
            connection.request("GET", "/whoami")
            answer = connection.getresponse()
            body = answer.read()
            expect(answer.status == 200, f"/whoami answers {answer.status}: {body[:300]}")
            who = json.loads(body)
            seen.setdefault(who["node"], set()).add(who["worker"])
    return seen


def registered(count):
    """The balancer knows exactly so many nodes, all of them ready."""
    _, _, body = get(f"http://127.0.0.1:{ADMIN}/status")
    states = [node["state"] for app in json.loads(body)["apps"] for node in app["nodes"]]
    expect(states == ["ready"] * count, f"nodes: {states}, wanted {count} ready")


def generations(wanted):
    """The balancer knows exactly these workers, all of them ready."""
    _, _, body = get(f"http://127.0.0.1:{ADMIN}/status")
    workers = [worker for app in json.loads(body)["apps"] for node in app["nodes"] for worker in node["workers"]]
    found = [worker["generation"] for worker in workers if worker["state"] == "ready"]
    expect(len(workers) == len(found) and found == wanted, f"generations {found} of {len(workers)} workers")


def targets_up(wanted):
    """Prometheus scrapes exactly so many targets of each job, all of them up."""
    _, _, body = get(f"http://127.0.0.1:{PROMETHEUS}/api/v1/targets?state=active")
    found = {}
    for target in json.loads(body)["data"]["activeTargets"]:
        found.setdefault(target["labels"]["job"], []).append(target["health"])
    for job, count in wanted.items():
        expect(found.get(job) == ["up"] * count, f"job {job}: {found.get(job)}, wanted {count} up")


@contextlib.contextmanager
def cut_off(container):
    """Every packet from and to the container is dropped, without a word to anybody. Needs root on the engine's host."""
    process = str(inspect(container)[0]["State"]["Pid"])
    root = [] if os.getuid() == 0 else ["sudo", "-n"]

    def rules(action):
        for chain, side in (("INPUT", "-i"), ("OUTPUT", "-o")):
            done = command(*root, "nsenter", "-t", process, "-n", "iptables", action, chain, "!", side, "lo", "-j", "DROP")
            expect(done.returncode == 0, f"iptables {action} {chain}: {done.stdout + done.stderr}")

    rules("-I")
    try:
        yield
    finally:
        rules("-D")


class Load:
    """Clients that ask again and again, each on a connection of its own, until the block ends."""

    def __init__(self, context, path, clients=8):
        self.answers, self.failures, self.slowest = 0, [], 0.0
        self._context, self._path, self._ended = context, path, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self):
        connection = http.client.HTTPSConnection("localhost", HTTPS, context=self._context, timeout=30)
        with contextlib.closing(connection):
            while not self._ended.is_set():
                begun = time.monotonic()
                try:
                    connection.request("GET", self._path)
                    answer = connection.getresponse()
                    body = answer.read()
                    if answer.status != 200:
                        self.failures.append(f"{answer.status} {body[:200]}")
                except (OSError, http.client.HTTPException) as failure:
                    self.failures.append(repr(failure))
                    connection.close()
                self.answers += 1
                self.slowest = max(self.slowest, time.monotonic() - begun)
