#!/usr/bin/env python3
"""The Compose cluster, as a user starts it: built, scaled under load, restarted, stopped, gone.

In: a Docker engine with `docker compose`, and the base images (pulled, or already there). Out: a line for each check, at the
end "N passed, N failed", exit code 0 only if none failed. Uses a Compose project and ports of its own, so it never touches a
cluster that is running, and removes what it made (the image `servery` and the build cache stay).

    docker/container_test.py            everything, some minutes plus the build
    docker/container_test.py --keep     leaves the cluster running at the end, to look at
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from cluster import (
    BINARY, ENVIRONMENT, HTTP, HTTPS, IMAGE, PROJECT, PROMETHEUS, ROLES, ROOT, SHELL_IMAGE, Failed, Load,
    answered_by, command, compose, containers, cut_off, docker, eventually, expect, generations, get, inspect,
    registered, targets_up, trusting_the_root,
)  # fmt: skip

MAX_IMAGE_BYTES = 40_000_000
# What is proved is that nothing fails; how fast it is on a machine that builds and tests at the same time says little.
LOAD = {"RATE": "60", "DURATION": "75s", "VUS": "200", "P99_MS": "5000"}


# --- the checks, in order; each one finds the cluster as the one before left it ---


def the_cluster_comes_up_from_nothing():
    compose("up", "--build", "--wait", limit=2400)
    for service, count in ROLES.items():
        expect(len(containers(service)) == count, f"{service}: {len(containers(service))} containers, wanted {count}")


def the_image_is_small_and_has_no_shell():
    image = json.loads(docker("image", "inspect", IMAGE))[0]
    print(f"    image: {image['Size'] / 1e6:.1f} MB")
    expect(image["Size"] < MAX_IMAGE_BYTES, f"{image['Size']} bytes")
    expect(image["Config"]["User"] == "65532:65532", f"user {image['Config']['User']!r}")
    container = docker("create", IMAGE).strip()
    try:
        exported = subprocess.run(["docker", "export", container], capture_output=True, check=True, timeout=120).stdout
    finally:
        docker("rm", container)
    with tarfile.open(fileobj=io.BytesIO(exported)) as files:
        members = {member.name: member for member in files.getmembers()}
    shells = [name for name in members if re.search(r"(^|/)(sh|bash|dash|ash|busybox|zsh)$", name)]
    expect(not shells, f"shells: {shells}")
    for name in ("var/lib/servery", "run/servery", "run/tokens/balancer", "run/tokens/app"):
        expect(members[name].uid == 65532, f"/{name} belongs to {members[name].uid}")


def containers_run_without_rights():
    for service in ROLES:
        for container in inspect(*containers(service)):
            name, host = container["Name"], container["HostConfig"]
            expect(container["Config"]["User"] == "65532:65532", f"{name} runs as {container['Config']['User']!r}")
            expect(host["ReadonlyRootfs"], f"{name}: its root can be written")
            expect(host["CapDrop"] == ["ALL"] and not host["CapAdd"], f"{name} has capabilities")
            expect(host["Memory"] > 0 and host["PidsLimit"] > 0, f"{name} has no limits")
            status = Path(f"/proc/{container['State']['Pid']}/status").read_text()
            for line in (r"Uid:\s+65532\s+65532\s+65532\s+65532", r"CapEff:\s+0+", r"CapBnd:\s+0+", r"NoNewPrivs:\s+1"):
                expect(re.search(f"^{line}$", status, re.MULTILINE), f"{name}: not {line!r} in\n{status}")
            # by trying: as root, so that nothing but the read-only mount can refuse it
            tried = command(
                "docker", "exec", "-u", "0", container["Id"], BINARY, "cert-sidecar",
                "--data", "/usr/local/there", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
            )  # fmt: skip
            said = tried.stdout + tried.stderr
            expect(tried.returncode == 1 and "Read-only file system" in said, f"{name}: exit {tried.returncode}\n{said}")


def only_the_balancer_is_published():
    for service in [*ROLES, "prometheus"]:
        for container in inspect(*containers(service)):
            for port, bindings in container["NetworkSettings"]["Ports"].items():
                for binding in bindings or []:
                    public = binding["HostIp"] != "127.0.0.1"
                    allowed = service == "balancer" and port in ("8080/tcp", "8443/tcp")
                    expect(not public or allowed, f"{service} publishes {port} at {binding}")


def networks_and_volumes_keep_the_roles_apart():
    of = {service: inspect(containers(service)[0])[0] for service in ROLES}
    networks = {s: {n.removeprefix(f"{PROJECT}_") for n in c["NetworkSettings"]["Networks"]} for s, c in of.items()}
    for service in ("app", "cert-sidecar"):
        expect(networks["balancer"] & networks[service] == {"cluster"}, f"balancer and {service}: {networks}")
    expect(json.loads(docker("network", "inspect", f"{PROJECT}_cluster"))[0]["Internal"], "cluster is not internal")
    mounts = {s: {m["Destination"]: (m.get("Name"), m["RW"]) for m in c["Mounts"]} for s, c in of.items()}
    for service in ("balancer", "app"):
        volume, writable = mounts[service]["/run/servery"]
        expect(not writable, f"{service} can write its token")
        others = {name for s in ("balancer", "app") if s != service for name, _ in mounts[s].values()}
        expect(volume not in others, f"{volume} is mounted by another role too")


def a_person_gets_https_and_a_redirect():
    context = trusting_the_root()
    status, _, body = get(f"https://localhost:{HTTPS}/hello", context)
    expect(status == 200 and body.strip() == b"Hello World!", f"{status} {body[:300]}")
    status, headers, _ = get(f"http://localhost:{HTTP}/hello?a=b")
    location = headers["Location"]
    expect(status == 307 and location == f"https://localhost:{HTTPS}/hello?a=b", f"{status} {location}")


def every_worker_of_every_node_answers():
    seen = answered_by(trusting_the_root())
    expect(sorted(map(len, seen.values())) == [2, 2, 2], f"{seen}")


def prometheus_finds_every_replica():
    eventually(lambda: targets_up({"balancer": 1, "app": 3, "cert-sidecar": 1, "prometheus": 1}), 60)


def metrics_pass_promtool():
    for service in ROLES:
        container = inspect(containers(service)[0])[0]
        address = container["NetworkSettings"]["Networks"][f"{PROJECT}_cluster"]["IPAddress"]
        _, _, text = get(f"http://{address}:9180/metrics")
        expect(f"servery_{service.replace('app', 'app-server').replace('-', '_')}_".encode() in text, f"{service}: {text[:500]}")
        checked = subprocess.run(
            ["docker", "exec", "-i", containers("prometheus")[0], "promtool", "check", "metrics"],
            input=text, capture_output=True, timeout=60,
        )  # fmt: skip
        said = (checked.stdout + checked.stderr).decode().splitlines()
        wrong = [line for line in said if not line.endswith("no help text")]  # help texts are not there yet
        expect(not wrong, f"{service}: {wrong}")


def k6_settings(**settings):
    return [word for name, value in settings.items() for word in ("-e", f"{name}={value}")]


def smoke_test():
    compose("run", "--rm", *k6_settings(NODES=3), "k6", "run", "--quiet", "smoke.js", limit=180)


def nothing_fails_while_the_cluster_changes():
    """k6's load; meanwhile 3 -> 6 app-servers, fresh workers for all, a cert-sidecar restart, -> 2 app-servers."""
    context = trusting_the_root()
    words = ["docker", "compose", "run", "--rm", *k6_settings(**LOAD), "k6", "run", "--quiet", "load.js"]
    load = subprocess.Popen(
        words, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        eventually(lambda: expect(len(containers("k6")) == 1, "k6 is not there yet"))
        begun = time.monotonic()
        compose("up", "--wait", "--scale", "app=6")
        eventually(lambda: registered(6))
        seen = answered_by(context)
        expect(len(seen) == 6, f"of 6 nodes only {sorted(seen)} answer")
        print(f"    6 app-servers answer after {time.monotonic() - begun:.1f} s")
        docker("kill", "--signal", "HUP", *containers("app"))
        eventually(lambda: generations([2] * 12))
        compose("restart", "cert-sidecar")
        shrinking = time.monotonic()
        compose("up", "--wait", "--scale", "app=2")
        print(f"    2 app-servers are left after {time.monotonic() - shrinking:.1f} s more")
        outlived = load.poll() is None
        said = load.communicate(timeout=180)[0]
    finally:
        if load.poll() is None:
            for container in containers("k6"):
                docker("rm", "-f", container)
            load.kill()
    for line in said.splitlines():
        if re.search(r"http_reqs|http_req_failed|http_req_duration\.|dropped|checks_succeeded", line):
            print(f"    {line.strip()}")
    expect(outlived, f"the load ended before the scaling did\n{said}")
    expect(load.returncode == 0, f"k6: exit {load.returncode}\n{said}")
    expect(len(containers("app")) == 2, f"{len(containers('app'))} app-servers are left")
    registered(2)
    seen = answered_by(context)
    expect(len(seen) == 2, f"{sorted(seen)} answer, wanted 2 nodes")
    eventually(lambda: targets_up({"app": 2}), 60)


def a_new_node_enrols_with_the_restarted_sidecar():
    compose("up", "--wait")
    eventually(lambda: registered(3))
    seen = answered_by(trusting_the_root())
    expect(len(seen) == 3, f"of 3 nodes only {sorted(seen)} answer")


def a_restarted_balancer_has_its_nodes_back():
    context = trusting_the_root()
    compose("restart", "balancer")
    begun = time.monotonic()
    eventually(lambda: registered(3))
    print(f"    3 app-servers are back {time.monotonic() - begun:.1f} s after the restart")
    seen = answered_by(context)
    expect(len(seen) == 3, f"of 3 nodes only {sorted(seen)} answer")


def nothing_idempotent_fails_while_packets_are_dropped():
    """A node that is cut off is out of rotation after two heartbeats (2 s), and back when packets flow again."""
    context = trusting_the_root()
    with Load(context, "/sleep/20") as load:
        eventually(lambda: expect(load.answers > 50, "the load has not begun"))
        container = containers("app")[0]
        with cut_off(container):
            begun = time.monotonic()
            eventually(lambda: registered(2), 10)
            out = time.monotonic() - begun
            answers = load.answers
            eventually(lambda: expect(load.answers > answers + 100, "the others do not answer"))
        healed = time.monotonic()
        eventually(lambda: registered(3), 30)
        back = time.monotonic() - healed
        answers = load.answers
        eventually(lambda: expect(load.answers > answers + 50, "nothing is answered any more"))
    print(f"    out of rotation after {out:.2f} s, back {back:.2f} s after the packets; {load.answers} answers, slowest {load.slowest:.2f} s")
    expect(out < 4, f"out of rotation only after {out:.2f} s")
    expect(not load.failures, f"{len(load.failures)} failed: {load.failures[:3]}")
    # Requests that were cut off hold their permits until the worker has seen the end of their connections, which comes
    # with the kernel's next retransmission: until then the node looks busier than the others to who asks one by one.
    eventually(lambda: expect(len(answered_by(context)) == 3, "the node that was cut off answers nothing"), 15)
    print(f"    it answers as one of three {time.monotonic() - healed:.2f} s after the packets")


@contextlib.contextmanager
def alone(*options, image=IMAGE, words=()):
    """A container with an app-server that serves by itself, as its first process."""
    container = docker("run", "-d", "--network", "none", *options, image, *words).strip()
    try:
        yield container
    finally:
        docker("rm", "-f", container)


def workers_of(container, binary=BINARY):
    status = json.loads(docker("exec", container, binary, "status", "--json", "--admin", "127.0.0.1:9180"))
    expect(status["ready"], f"not ready: {status}")
    return status["apps"][0]["nodes"][0]["workers"]


def a_quota_decides_how_many_workers_there_are():
    for cpus in range(1, min(os.cpu_count() or 1, 2) + 1):
        with alone("--cpus", str(cpus), "--read-only", words=["app", "--workers", "auto"]) as container:
            workers = eventually(lambda: workers_of(container))
            expect(len(workers) == cpus, f"{len(workers)} workers with {cpus} CPUs")


def the_first_process_reaps_what_workers_leave_behind():
    """A worker that starts a process which loses its parent and ends: in an image with a shell, with our binary in it."""
    binary = Path(f"/tmp/{PROJECT}-servery")
    worker = "#!/bin/sh\nfor n in 1 2 3; do (sleep 0.1 &) ; done\nexec /servery worker\n"
    program = Path(f"/tmp/{PROJECT}-worker")
    made = docker("create", IMAGE).strip()
    try:
        docker("cp", f"{made}:{BINARY}", str(binary))
        program.write_text(worker)
        program.chmod(0o755)
        mounts = ["-v", f"{binary}:/servery:ro", "-v", f"{program}:/worker:ro"]
        words = ["/servery", "app", "--workers", "2", "--exec", "/worker"]
        with alone(*mounts, image=SHELL_IMAGE, words=words) as container:
            eventually(lambda: expect(len(workers_of(container, "/servery")) == 2, "not two workers"))
            for _ in range(5):
                docker("kill", "--signal", "HUP", container)
                eventually(lambda: expect({w["state"] for w in workers_of(container, "/servery")} == {"ready"}, "reloading"))

            def no_zombies():
                first = json.loads(docker("inspect", container))[0]["State"]["Pid"]
                children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
                states = [Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] for child in children]
                expect("Z" not in states and len(states) == 2, f"children of the first process: {states}")

            eventually(no_zombies)
    finally:
        docker("rm", made)
        binary.unlink(missing_ok=True)
        program.unlink(missing_ok=True)


def stopped_containers_have_ended_well():
    ids = [id for service in ROLES for id in containers(service)]
    for container in inspect(*ids):
        logs = command("docker", "logs", container["Id"])
        expect("panicked" not in logs.stdout + logs.stderr, f"{container['Name']} panicked:\n{logs.stderr[-3000:]}")
    compose("stop", limit=180)
    for container in inspect(*ids):
        state = container["State"]
        expect(state["ExitCode"] == 0 and not state["OOMKilled"], f"{container['Name']}: {state}")


def down_leaves_nothing(volumes_before):
    compose("down", "-v", "--remove-orphans", limit=180)
    label = f"label=com.docker.compose.project={PROJECT}"
    for kind in (["ps", "-a"], ["network", "ls"], ["volume", "ls"]):
        left = docker(*kind, "-q", "--filter", label).split()
        expect(not left, f"docker {' '.join(kind)}: {left}")
    left = set(docker("volume", "ls", "-q").split()) - volumes_before
    expect(not left, f"volumes without a name: {left}")


CHECKS = [
    the_image_is_small_and_has_no_shell,
    containers_run_without_rights,
    only_the_balancer_is_published,
    networks_and_volumes_keep_the_roles_apart,
    a_person_gets_https_and_a_redirect,
    every_worker_of_every_node_answers,
    prometheus_finds_every_replica,
    metrics_pass_promtool,
    smoke_test,
    nothing_fails_while_the_cluster_changes,
    a_new_node_enrols_with_the_restarted_sidecar,
    a_restarted_balancer_has_its_nodes_back,
    nothing_idempotent_fails_while_packets_are_dropped,
    a_quota_decides_how_many_workers_there_are,
    the_first_process_reaps_what_workers_leave_behind,
    stopped_containers_have_ended_well,
]


def main():
    keep = "--keep" in sys.argv[1:]
    passed = failed = 0

    def run(check, *arguments):
        nonlocal passed, failed
        begun = time.monotonic()
        try:
            check(*arguments)
        except Exception as failure:  # a check that breaks has failed, whatever broke in it
            failed += 1
            print(f"FAILED {check.__name__}: {failure if isinstance(failure, Failed) else repr(failure)}", flush=True)
            return False
        passed += 1
        print(f"ok {check.__name__} ({time.monotonic() - begun:.1f} s)", flush=True)
        return True

    compose("down", "-v", "--remove-orphans")  # what a killed run may have left
    volumes = set(docker("volume", "ls", "-q").split())
    try:
        if run(the_cluster_comes_up_from_nothing):
            for check in CHECKS:
                run(check)
        if failed:
            logs = command("docker", "compose", "logs", "--no-color", "--tail=200").stdout.splitlines()
            print("\n".join(line for line in logs if '"request_id":' not in line), flush=True)
    finally:
        if keep:
            print(f"kept: COMPOSE_PROJECT_NAME={PROJECT}, https://localhost:{HTTPS}/, http://127.0.0.1:{PROMETHEUS}/")
        else:
            run(down_leaves_nothing, volumes)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
