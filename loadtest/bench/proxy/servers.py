"""Who takes part: the backend, and a proxy before it. In: an address to listen on, and whether with TLS. Out: a running
process on a core of its own, that writes an access log.

Every proxy is told the same: one core, HTTP/1.1 kept alive to the backend, a log of every request, no other feature. Where the
field's advice is to tune (kept-alive upstream connections, a buffered log, limits above the load), it is followed.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROXY_CORE, OTHER_CORE = "0", "1"

BACKEND = """daemon off; worker_processes 1; pid {directory}/backend.pid; error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    access_log off; keepalive_requests 100000000; keepalive_timeout 1h; sendfile on; open_file_cache max=8;
    client_body_temp_path {directory}/b1; proxy_temp_path {directory}/b2; fastcgi_temp_path {directory}/b3;
    uwsgi_temp_path {directory}/b4; scgi_temp_path {directory}/b5;
    server {{
        listen {upstream} backlog=4096;
        root {directory}/files;
        location = /small {{ return 200 "Hello World!"; }}
    }}
}}
"""

NGINX = """daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr error;
events {{ worker_connections 16384; }}
http {{
    access_log {directory}/access.log combined buffer=64k flush=1s; keepalive_requests 100000000; keepalive_timeout 1h;
    client_body_temp_path {directory}/n1; proxy_temp_path {directory}/n2; fastcgi_temp_path {directory}/n3;
    uwsgi_temp_path {directory}/n4; scgi_temp_path {directory}/n5;
    ssl_certificate {directory}/cert.pem; ssl_certificate_key {directory}/key.pem;
    ssl_protocols TLSv1.3; ssl_session_cache shared:TLS:10m;
    upstream backend {{ server {upstream}; keepalive 256; keepalive_requests 100000000; }}
    server {{
        listen {listen} {tls} backlog=4096;
        location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header Host $host; }}
    }}
}}
"""

HAPROXY = """global
    maxconn 8000
    nbthread 1
    log stdout format raw local0
    tune.ssl.cachesize 100000
defaults
    mode http
    log global
    option httplog
    option forwardfor
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
frontend public
    bind {listen} {tls} backlog 4096
    default_backend backend
backend backend
    http-reuse always
    server one {upstream}
"""

ENVOY = """admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: {host}, port_value: {port} }} }}
    tcp_backlog_size: 4096
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: public
          codec_type: AUTO
          use_remote_address: true
          access_log:
          - name: envoy.access_loggers.file
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {directory}/access.log }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
          route_config:
            virtual_hosts:
            - {{ name: all, domains: ["*"], routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: backend, timeout: 0s }} }}] }}
{tls}
  clusters:
  - name: backend
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [{{ max_connections: 16384, max_pending_requests: 16384, max_requests: 16384 }}] }}
    load_assignment:
      cluster_name: backend
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: {uphost}, port_value: {upport} }} }} }} }}] }}]
"""
ENVOY_TLS = """      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            alpn_protocols: [h2, http/1.1]
            tls_certificates: [{{ certificate_chain: {{ filename: {directory}/cert.pem }}, private_key: {{ filename: {directory}/key.pem }} }}]
"""

SERVERY = """cluster = "bench"
[balancer]
http = "{http}"
https = "{https}"
control = "127.0.0.1:0"
admin = "{metrics}"
threads = 1
{certificate}
[[balancer.route]]
upstream = "http://{upstream}"
"""


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def make_certificate(directory):
    """ECDSA P-256, for everybody the same."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
         "-keyout", directory / "key.pem", "-out", directory / "cert.pem", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True)
    (directory / "key.pem").chmod(0o600)
    (directory / "both.pem").write_text((directory / "cert.pem").read_text() + (directory / "key.pem").read_text())


@contextlib.contextmanager
def running(core, command, address, *, log, environment=None):
    """A process on this core, from the moment it listens. `log`: its stdout."""
    words = Path(f"{log}.err")
    with open(log, "wb") as output, open(words, "wb") as errors:
        process = subprocess.Popen(["taskset", "-c", core, *map(str, command)], stdout=output, stderr=errors,
                                   env={**os.environ, **(environment or {})}, start_new_session=True)
    try:
        host, port = address.split(":")
        for _ in range(200):
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} has ended with {process.returncode}: {words.read_text()[-2000:]}")
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                break
            time.sleep(0.05)
        else:
            raise RuntimeError(f"{command[0]} does not listen at {address}")
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def backend(directory, address):
    files = directory / "files"
    files.mkdir(exist_ok=True)
    # the backend's workers may be another user's
    directory.chmod(0o755)
    (files / "16k").write_bytes(b"x" * 16384)
    (files / "1m").write_bytes(b"x" * 1048576)
    config = directory / "backend.conf"
    config.write_text(BACKEND.format(directory=directory, upstream=address))
    return running(OTHER_CORE, ["nginx", "-p", directory, "-c", config], address, log=directory / "backend.out")


class Proxy:
    """One contender. `log` is where its access log goes."""

    def __init__(self, name, program):
        self.name, self.program = name, program

    def is_there(self):
        return shutil.which(self.program) is not None

    def version(self):
        flag = "-v" if self.program in ("nginx", "haproxy") else "--version"
        said = subprocess.run([self.program, flag], capture_output=True, text=True)
        return next((line for line in (said.stdout + said.stderr).splitlines() if line.strip()), "?").strip()

    def start(self, directory, upstream, tls, environment=None):
        listen = free_address()
        log = directory / "access.log"
        log.unlink(missing_ok=True)
        command, log = self.command(directory, listen, upstream, tls, log)
        return listen, log, running(PROXY_CORE, command, listen, environment=environment, log=log)


class Nginx(Proxy):
    def __init__(self):
        super().__init__("nginx", "nginx")

    def command(self, directory, listen, upstream, tls, log):
        config = directory / "nginx.conf"
        config.write_text(NGINX.format(directory=directory, listen=listen, upstream=upstream, tls="ssl http2" if tls else ""))
        return ["nginx", "-p", directory, "-c", config], directory / "nginx.out"

    def log_of(self, directory):
        return directory / "access.log"


class Haproxy(Proxy):
    def __init__(self):
        super().__init__("HAProxy", "haproxy")

    def command(self, directory, listen, upstream, tls, log):
        config = directory / "haproxy.cfg"
        ssl = f"ssl crt {directory}/both.pem alpn h2,http/1.1 ssl-min-ver TLSv1.3" if tls else ""
        config.write_text(HAPROXY.format(listen=listen, upstream=upstream, tls=ssl))
        return ["haproxy", "-db", "-f", config], log

    def log_of(self, directory):
        return directory / "access.log"


class Envoy(Proxy):
    def __init__(self):
        super().__init__("Envoy", "envoy")

    def command(self, directory, listen, upstream, tls, log):
        config = directory / "envoy.yaml"
        (host, port), (uphost, upport) = listen.split(":"), upstream.split(":")
        config.write_text(ENVOY.format(
            directory=directory, host=host, port=port, uphost=uphost, upport=upport, admin=free_address().split(":")[1],
            tls=ENVOY_TLS.format(directory=directory) if tls else ""))
        return ["envoy", "-c", config, "--concurrency", "1", "--log-level", "error", "--disable-hot-restart",
                "--file-flush-interval-msec", "500"], directory / "envoy.out"

    def log_of(self, directory):
        return directory / "access.log"


class Servery(Proxy):
    def __init__(self, binary, name="Servery", metrics=True):
        super().__init__(name, str(binary))
        self.metrics = metrics

    def command(self, directory, listen, upstream, tls, log):
        config = directory / "servery.toml"
        certificate = f'[[balancer.certificate]]\ncert = "{directory}/cert.pem"\nkey = "{directory}/key.pem"' if tls else ""
        config.write_text(SERVERY.format(
            http="off" if tls else listen, https=listen if tls else "off", upstream=upstream, certificate=certificate,
            metrics="127.0.0.1:0" if self.metrics else "off"))
        return [self.program, "balancer", "--config", config], log

    def log_of(self, directory):
        return directory / "access.log"
