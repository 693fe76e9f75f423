"""Attacks on the balancer: how much memory each takes, and what legitimate clients notice of it, as Markdown on stdout.

    python3 loadtest/bench/attacks --servery target/release/servery [--attack NAME]... [--seconds 8] [--rate 200]

Needs nginx, slowhttptest, h2load, openssl, taskset and two cores. Loopback only; each attack lasts as long as it is told, 10 s at most.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "proxy"))

import scene
import servers
from attacks import ATTACKS
from costs import cpu

MB = 1024 * 1024
# what an attack may do
MEMORY, TIMES, SLACK = 64 * MB, 1.5, 0.005


def arguments():
    parser = argparse.ArgumentParser(prog="loadtest/bench/attacks", description=__doc__.splitlines()[0])
    parser.add_argument("--servery", required=True, type=Path, help="the binary, built with --release")
    parser.add_argument("--attack", action="append", choices=ATTACKS, help="all of them by default")
    parser.add_argument("--seconds", type=int, default=8, choices=range(2, 11), metavar="2..10", help="of one attack")
    parser.add_argument("--quiet-seconds", type=int, default=4, help="before and after it")
    parser.add_argument("--rate", type=float, default=200, help="legitimate requests per second")
    parser.add_argument("--samples", type=Path, help="a file for the samples and marks of the last attack, as JSON")
    parser.add_argument("--complaints", action="store_true", help="of the legitimate clients, to stderr")
    return parser.parse_args()


def attacker(run, address, until, said):
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    said.send(run(address, until))


def under_attack(attack, address, seconds):
    """All its processes; what they counted."""
    children = []
    until = time.monotonic() + seconds
    for _ in range(attack.processes):
        ours, theirs = multiprocessing.Pipe(False)
        child = multiprocessing.Process(target=attacker, args=(attack.run, address, until, theirs), daemon=True)
        child.start()
        children.append((child, ours))
    counts = {}
    for child, said in children:
        if said.poll(seconds + 10):
            for name, count in said.recv().items():
                counts[name] = counts.get(name, 0) + count
        child.kill()
        child.join()
    return counts


def percentile(times, share):
    times = sorted(times)
    return times[min(len(times) - 1, int(len(times) * share))] if times else float("nan")


def milliseconds(seconds):
    return f"{seconds * 1e3:.1f}"


def words(counts):
    return ", ".join(f"{count / MB:.0f} MB" if name == "bytes" else f"{count:,} {name}" for name, count in counts.items() if count)


# of what an attack counted, what the server did
ENDS = ("ended by the server", "streams reset", "GOAWAY", "answers", "error")


def measure(name, order, directory, upstream, stalled):
    attack = ATTACKS[name]
    with scene.balancer(order.servery.resolve(), directory, upstream, stalled, attack.tls, attack.config) as (pid, address), \
            scene.Honest(address, attack.tls, order.rate) as honest:
        memory = scene.Memory(pid)
        time.sleep(1)  # caches, code
        marks = [time.monotonic()]
        time.sleep(order.quiet_seconds)
        quiet = memory.now()
        memory.forget_the_peak()
        marks.append(time.monotonic())
        spent = sum(cpu(pid))
        counts = under_attack(attack, address, order.seconds)
        marks.append(time.monotonic())
        busy = (sum(cpu(pid)) - spent) / (marks[2] - marks[1])
        peak = memory.peak()
        # what it left behind may be cleared away first
        time.sleep(1)
        marks.append(time.monotonic())
        time.sleep(order.quiet_seconds)
        after = memory.now()
        samples, complaints = honest.samples()
    if order.samples:
        order.samples.write_text(json.dumps({"marks": marks, "samples": samples}))
    if order.complaints:
        print(*complaints[:20], sep="\n", file=sys.stderr)

    def taken(kept, *phases):
        return [seconds for planned, seconds, sort, _ in samples
                if sort == kept and any(marks[phase] <= planned < marks[phase + 1] for phase in phases)]

    failed = sum(not well for *_, well in samples)
    marks.append(float("inf"))
    latencies, bad = [], []
    for kept in (True, False):
        before, during, later = (percentile(taken(kept, phase), 0.99) for phase in (0, 1, 3))
        middle = percentile(taken(kept, 1), 0.5), percentile(taken(kept, 0, 3), 0.5)
        bound = TIMES * percentile(taken(kept, 0, 3), 0.99) + SLACK
        latencies += [f"{milliseconds(middle[1])} / {milliseconds(middle[0])}",
                      f"{milliseconds(before)} / **{milliseconds(during)}** / {milliseconds(later)}"]
        # not a number: nobody was served at all
        if not during <= bound:
            bad.append(f"p99 {'kept' if kept else 'new'} > {milliseconds(bound)}")
    if peak - quiet > MEMORY:
        bad.append(f"memory +{(peak - quiet) / MB:.0f} MB")
    if failed:
        bad.append(f"{failed} failed")
    ends = {key: count for key, count in counts.items() if key.startswith(ENDS)}
    did = {key: count for key, count in counts.items() if key not in ends}
    print(f"| `{name}` | {attack.what} | {words(did)} | {words(ends)} | {busy * 100:.0f} % | {quiet / MB:.0f} / **{peak / MB:.0f}** / {after / MB:.0f} "
          f"| {' | '.join(latencies)} | {'; '.join(bad) or 'held'} |", flush=True)
    return not bad


def main():
    order = arguments()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed: one for the balancer, one for everybody else")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.sched_setaffinity(0, {int(servers.OTHER_CORE)})
    with tempfile.TemporaryDirectory(prefix="servery-attacks-", dir="/dev/shm") as directory:
        directory = Path(directory)
        servers.make_certificate(directory)
        load = Path("/proc/loadavg").read_text().split()[0]
        print(f"Linux {os.uname().release}, load average before {load}; {order.rate:.0f} legitimate requests per second, half of them on "
              f"connections of their own; each attack {order.seconds} s.\n")
        print("| attack | what it is | what it did | ended by the balancer | its CPU | memory, MB: before / peak / after | kept, p50 ms: alone / during "
              "| kept, p99 ms: before / during / after | new, p50 ms | new, p99 ms | |")
        print("|" + "---|" * 11, flush=True)
        with scene.backend(directory) as upstream, scene.stalled() as stalled:
            held = [measure(name, order, directory, upstream, stalled) for name in order.attack or ATTACKS]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
