"""Real servers on this machine: each in a process group of its own, on 127.0.0.1, gone with the fixture.

What starts them is here; what a program has to say is in `servers/`, or stands with the tests that use it.
A program that is not there skips its tests, with the reason; `nox -s live` installs them all.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

import attrs
import pytest
import trustme

SERVERS = Path(__file__).parent / "servers"
START = 15.0
"""Seconds that a server may take to listen."""
STOP = 5.0
"""Seconds that a process group may take to end after SIGTERM."""
PATHS = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
"""Debian keeps servers where only root looks."""


def find_program(name: str) -> str:
    """Return the path of a program, or skip the test that needs it."""
    path = shutil.which(name, path=PATHS)
    if path is None:
        pytest.skip(f"there is no {name} on this machine: nox -s live installs it, as root on Debian")
    return path


@attrs.define(eq=False)
class Server:
    """One server: its process group, and where it listens."""

    command: Sequence[str]
    port: int = 0
    """On 127.0.0.1."""
    socket_path: Path | None = None
    """Listens there, and not on a port."""
    environment: Mapping[str, str] = attrs.field(factory=dict)
    log: Path = Path(os.devnull)
    _process: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False)

    def url(self, path: str = "/echo", scheme: str = "ws") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    def start(self) -> None:
        """Start it, or start it again, and return once it listens."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        deadline = time.monotonic() + START
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                said = self.log.read_text("utf-8", "replace")[-2000:] if self.log.is_file() else ""
                raise RuntimeError(f"{self.command[0]} does not listen; it said: {said}")
            time.sleep(0.02)  # another process: nothing of Trio's to wait for

    def _listens(self) -> bool:
        family, address = (
            (socket.AF_INET, ("127.0.0.1", self.port))
            if self.socket_path is None
            else (socket.AF_UNIX, os.fspath(self.socket_path))
        )
        with socket.socket(family) as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(address) == 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Let it die at once, as a crash of the machine would have it."""
        assert self._process is not None
        self.signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End the whole group: with SIGTERM, and with SIGKILL where that is ignored."""
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
            if number is signal.SIGTERM:
                deadline = time.monotonic() + STOP
                while process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)
        process.wait()


StartServer: TypeAlias = Callable[..., Server]
"""Takes what `Server` takes, but for the log; returns it listening."""


@contextmanager
def server_room(room: Path) -> Iterator[StartServer]:
    """Give a function that starts servers, and stop them all on leaving, the last one first."""
    with ExitStack() as stack:

        def start(command: Sequence[str], **fields: object) -> Server:
            server = Server(command, log=room / f"{Path(command[0]).name}.log", **fields)  # type: ignore[arg-type]
            stack.callback(server.stop)
            server.start()
            return server

        yield start


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for configurations and logs of the servers that all tests share."""
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="session")
def start_shared(room: Path) -> Iterator[StartServer]:
    """Start servers that live as long as the run."""
    with server_room(room) as start:
        yield start


@pytest.fixture
def start_own(tmp_path: Path) -> Iterator[StartServer]:
    """Start servers that end with the test, which may do to them what it likes."""
    with server_room(tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Find a program, or skip."""
    return find_program


@pytest.fixture(scope="session")
def pick_port() -> Callable[[], int]:
    """Pick a port that is free: most servers cannot say which one port 0 gave them."""

    def pick() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return pick


# --------------------------------------------------------------------------- npm ws


@pytest.fixture(scope="session")
def node_command() -> Sequence[str]:
    """Return how to run `servers/ws_server.js`; the port follows."""
    node = find_program("node")
    if subprocess.run([node, "-e", "require('ws')"], capture_output=True, check=False).returncode:
        pytest.skip("node finds no package ws: nox -s live installs it, and says where in NODE_PATH")
    return (node, os.fspath(SERVERS / "ws_server.js"))


@pytest.fixture(scope="session")
def ws_server(start_shared: StartServer, node_command: Sequence[str], pick_port: Callable[[], int]) -> Server:
    """Give the npm server that all tests share."""
    port = pick_port()
    return start_shared((*node_command, str(port)), port=port)


@pytest.fixture
def own_ws_server(start_own: StartServer, node_command: Sequence[str], pick_port: Callable[[], int]) -> Server:
    """Give an npm server that is the test's alone."""
    port = pick_port()
    return start_own((*node_command, str(port)), port=port)


# --------------------------------------------------------------------------- TLS


@attrs.frozen
class Authority:
    """A certificate authority that nobody trusts by default, and one certificate of its, for 127.0.0.1."""

    certificate: Path
    """Of the authority."""
    chain: Path
    key: Path
    both: Path
    """Chain and key in one file, as haproxy wants them."""
    misnamed_chain: Path
    """For another name."""
    misnamed_key: Path

    def context(self, *protocols: str) -> ssl.SSLContext:
        """Return a context that trusts the authority, and offers `protocols` by ALPN."""
        context = ssl.create_default_context(cafile=os.fspath(self.certificate))
        if protocols:
            context.set_alpn_protocols(protocols)
        return context


@pytest.fixture(scope="session")
def authority(room: Path) -> Authority:
    """Make an authority and its certificates."""
    made = Authority(
        *(room / name for name in ("ca.pem", "chain.pem", "key.pem", "both.pem", "other.pem", "other.key"))
    )
    ca = trustme.CA()
    ca.cert_pem.write_to_path(os.fspath(made.certificate))
    for names, chain, key in (
        ("127.0.0.1", made.chain, made.key),
        ("elsewhere.test", made.misnamed_chain, made.misnamed_key),
    ):
        issued = ca.issue_cert(names)
        chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
    made.both.write_bytes(made.chain.read_bytes() + made.key.read_bytes())
    return made


NGINX = """
daemon off;
worker_processes 1;
pid {room}/nginx.pid;
error_log {room}/nginx-error.log;
events {{ worker_connections 128; }}
http {{
    access_log off;
    client_body_temp_path {room}/nginx-body;
    proxy_temp_path {room}/nginx-proxy;
    fastcgi_temp_path {room}/nginx-fastcgi;
    uwsgi_temp_path {room}/nginx-uwsgi;
    scgi_temp_path {room}/nginx-scgi;
    limit_req_zone $binary_remote_addr zone=narrow:32k rate=1r/m;
    limit_req_status 429;
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection upgrade;
    proxy_set_header Host $http_host;
    add_header X-Alpn $ssl_alpn_protocol always;
    ssl_certificate {authority.chain};
    ssl_certificate_key {authority.key};
    server {{
        listen 127.0.0.1:{port} ssl http2;
        location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
        location /impatient {{ proxy_pass http://127.0.0.1:{upstream}/echo; proxy_read_timeout 1s; }}
        location /narrow {{ proxy_pass http://127.0.0.1:{upstream}/echo; limit_req zone=narrow; }}
        location /nobody {{ proxy_pass http://127.0.0.1:{nobody}; }}
        location /closed {{
            add_header Retry-After 3 always;
            return 503 "closed for today";
        }}
    }}
    server {{
        listen 127.0.0.1:{misnamed} ssl;
        ssl_certificate {authority.misnamed_chain};
        ssl_certificate_key {authority.misnamed_key};
        location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
    }}
}}
"""


@attrs.frozen
class Front:
    """An nginx with TLS in front of the npm server."""

    server: Server
    misnamed: int
    """A port whose certificate is for another name."""

    def url(self, path: str = "/echo") -> str:
        return self.server.url(path, "wss")


@pytest.fixture(scope="session")
def nginx(
    start_shared: StartServer, room: Path, ws_server: Server, authority: Authority, pick_port: Callable[[], int]
) -> Front:
    """Start nginx; port `nobody` is one where nobody listens."""
    command = find_program("nginx")
    port, misnamed, nobody = pick_port(), pick_port(), pick_port()
    config = room / "nginx.conf"
    config.write_text(
        NGINX.format(
            room=room, authority=authority, port=port, misnamed=misnamed, nobody=nobody, upstream=ws_server.port
        )
    )
    return Front(start_shared((command, "-e", f"{room}/nginx-error.log", "-c", os.fspath(config)), port=port), misnamed)


@pytest.fixture(scope="session")
def uvicorn_command() -> Sequence[str]:
    """Return how to run uvicorn on `servers/asgi_app.py`; where to listen follows."""
    pytest.importorskip("uvicorn", reason="there is no uvicorn: nox -s live installs it")
    return (sys.executable, "-m", "uvicorn", "--app-dir", os.fspath(SERVERS), "--log-level", "warning", "asgi_app:app")
