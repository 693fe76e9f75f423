"""Who takes part: the balancer, two servers behind it (one answers, one never reads), the legitimate clients, and how much memory the
balancer has. In: a directory and a binary. Out: running processes, samples.
"""

import contextlib
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import servers  # of ../proxy

HERE = Path(__file__).resolve().parent

# Above whatever else the machine does (attackers are below it): what it takes away is not the attacks' doing. Without the right to
# it, `nice` warns and goes on.
AHEAD = ["nice", "-n", "-15"]

# What is uploaded goes through to a server that takes it to its end.
BACKEND = """daemon off; worker_processes 1; pid {directory}/backend.pid; error_log stderr crit;
worker_rlimit_nofile 16000;
events {{ worker_connections 15000; }}
http {{
    access_log off; keepalive_requests 100000000; keepalive_timeout 1h; sendfile on; open_file_cache max=8; client_max_body_size 0;
    client_body_temp_path {directory}/b1; proxy_temp_path {directory}/b2; fastcgi_temp_path {directory}/b3;
    uwsgi_temp_path {directory}/b4; scgi_temp_path {directory}/b5;
    server {{
        listen {upstream} backlog=4096;
        root {directory}/files;
        location = /small {{ return 200 "Hello World!"; }}
        location = /upload {{ proxy_pass http://{taker}; }}
    }}
    server {{ listen {taker}; location / {{ return 200 "taken"; }} }}
}}
"""

SERVERY = """cluster = "bench"
data = "{directory}/data"
[balancer]
http = "{http}"
https = "{https}"
control = "127.0.0.1:0"
admin = "127.0.0.1:0"
threads = 1
{config}
{certificate}
[[balancer.route]]
upstream = "http://{upstream}"
[[balancer.route]]
prefix = "/stalled"
upstream = "http://{stalled}"
"""


@contextlib.contextmanager
def backend(directory):
    """Its address."""
    address = servers.free_address()
    directory.chmod(0o755)  # its workers are nobody
    files = directory / "files"
    files.mkdir(exist_ok=True)
    (files / "16k").write_bytes(b"x" * 16384)
    (files / "1m").write_bytes(b"x" * 1048576)
    config = directory / "backend.conf"
    config.write_text(BACKEND.format(directory=directory, upstream=address, taker=servers.free_address()))
    with servers.running(servers.OTHER_CORE, [*AHEAD, "nginx", "-p", directory, "-c", config], address, log=directory / "backend.out"):
        yield address


@contextlib.contextmanager
def stalled():
    """The address of a server that accepts and reads nothing: only the kernel does, into a small buffer."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def balancer(binary, directory, upstream, stalled_at, tls, config):
    """Its process and address."""
    listen = servers.free_address()
    certificate = f'[[balancer.certificate]]\ncert = "{directory}/cert.pem"\nkey = "{directory}/key.pem"' if tls else ""
    file = directory / "servery.toml"
    file.write_text(SERVERY.format(directory=directory, http="off" if tls else listen, https=listen if tls else "off",
                                   config=config, certificate=certificate, upstream=upstream, stalled=stalled_at))
    log = directory / "access.log"
    with servers.running(servers.PROXY_CORE, [*AHEAD, binary, "balancer", "--config", file], listen, log=log) as pid:
        yield pid, listen


class Memory:
    """Bytes that are resident."""

    def __init__(self, pid):
        self.directory = Path(f"/proc/{pid}")

    def forget_the_peak(self):
        (self.directory / "clear_refs").write_text("5")

    def read(self, what):
        return int(re.search(rf"^{what}:\s+(\d+) kB", (self.directory / "status").read_text(), re.M)[1]) * 1024

    def now(self):
        return self.read("VmRSS")

    def peak(self):
        return self.read("VmHWM")


class Honest:
    """The legitimate clients, from their first answer until `samples`."""

    def __init__(self, address, tls, rate):
        command = ["taskset", "-c", servers.OTHER_CORE, *AHEAD, sys.executable, HERE / "honest.py", address, "tls" if tls else "plain", str(rate)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.process.stdout.readline()

    def samples(self):
        """[(planned, seconds, kept, well)], and what they complained of."""
        said, complaints = self.process.communicate(timeout=30)
        return json.loads(said), complaints.splitlines()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
