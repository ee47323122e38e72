"""Three nodes with every kind of listener, and the relay that cuts a client off."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request

from certificates import Certificates
from harness import Failure, eventually, expect

NODES = 3
# Debug builds on busy machines are slow.
START_SECONDS = 60
STOP_SECONDS = 30
# Above the default: the clients' own load must not make a node lose its lease.
DOWN_AFTER_MS = 4_000
# Below the range from which the kernel takes ports for connections: a port of a node that is down for a moment cannot be
# taken by a client meanwhile.
PORTS = range(12_000, 32_000)
# The listener's protocol for each transport of a client.
PROTOCOLS = {"tcp": "mqtt", "tls": "mqtts", "ws": "ws", "wss": "wss", "unix": "unix"}
WS_PATH = "/mqtt"


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a client connects: a port of this machine, or the path of a unix socket."""

    transport: str
    port: int = 0
    path: str = ""
    host: str = "127.0.0.1"

    def connect(self):
        """A plain connection, without TLS."""
        if self.transport == "unix":
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.connect(self.path)
            return made
        return socket.create_connection((self.host, self.port), timeout=5)


class Node:
    """One node: its files, its addresses, and the process of its newest start."""

    def __init__(self, name, room, ports):
        self.name, self.room = name, room
        self.cluster, self.admin, *rest = ports
        self._ports = dict(zip(PROTOCOLS, rest))
        self.process = None

    def address(self, transport):
        if transport == "unix":
            return Address("unix", path=str(self.room / f"{self.name}.sock"))
        return Address(transport, port=self._ports[transport])

    @property
    def log(self):
        return self.room / f"{self.name}.log"

    def get(self, path):
        """The answer of the administration, or None where it says that there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def client(self, client_id):
        return self.get(f"/api/v1/clients/{urllib.parse.quote(client_id, safe='')}")

    def is_ready(self):
        try:
            self.get("/readyz")
        except (OSError, ValueError):
            return False
        return True

    def state_of(self, other):
        members = self.get("/api/v1/nodes")["items"]
        return next((member["state"] for member in members if member["name"] == other.name), None)


class Cluster:
    """Three nodes of one cluster, with these listeners each; a context manager that leaves nothing behind."""

    def __init__(self, flotte, transports):
        self.flotte, self.transports = flotte, transports
        self._room = tempfile.TemporaryDirectory(prefix="flotte-interop.")
        self.room = pathlib.Path(self._room.name)
        self.certificates = Certificates(self.room / "certificates")
        ports = free_ports(NODES * (2 + len(PROTOCOLS)))
        each = len(ports) // NODES
        self.nodes = [Node(f"n{place + 1}", self.room, ports[place * each :][:each]) for place in range(NODES)]
        # The variables of the tests would be unknown keys to the nodes.
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("FLOTTE_")}

    def __enter__(self):
        try:
            for node in self.nodes:
                self._config(node).write_text(self._configuration(node), encoding="utf-8")
                self._start(node)
            for node in self.nodes:
                self._wait_ready(node)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for node in self.nodes:
            if node.process and node.process.poll() is None:
                node.process.kill()
                node.process.wait()
        self._room.cleanup()

    def kill(self, node, killed):
        """As a power cut would; calls `killed` at once, and returns when the others have noticed."""
        node.process.send_signal(signal.SIGKILL)
        node.process.wait()
        killed()
        for other in self.nodes:
            if other is not node:
                eventually(f"{other.name} sees that {node.name} is down", lambda: other.state_of(node) == "down")

    def restart(self, node):
        self._start(node)
        self._wait_ready(node)
        for other in self.nodes:
            eventually(f"{other.name} sees that {node.name} is up", lambda: other.state_of(node) == "up")

    def stop(self):
        """SIGTERM for all; all have to end with 0."""
        for node in self.nodes:
            node.process.terminate()
        codes = [node.process.wait(STOP_SECONDS) for node in self.nodes]
        expect(codes == [0] * NODES, f"exit codes {codes}")

    def logs(self, lines):
        """The end of each node's log."""
        for node in self.nodes:
            if node.log.exists():
                text = node.log.read_text(encoding="utf-8", errors="replace").splitlines()
                # The library's complaints about an absent peer would bury the rest.
                yield from (f"{node.name} | {line}" for line in [line for line in text if " openraft" not in line][-lines:])

    def _config(self, node):
        return self.room / f"{node.name}.toml"

    def _start(self, node):
        with open(node.log, "ab") as log:
            node.process = subprocess.Popen(
                [self.flotte, "serve", "--config", self._config(node)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )

    def _wait_ready(self, node):
        def ready():
            expect(node.process.poll() is None, f"{node.name} has ended with {node.process.returncode}")
            return node.is_ready()

        eventually(f"{node.name} is ready", ready, START_SECONDS)
        for transport in self.transports:
            # Ready means that clients are taken: at once, on every listener.
            try:
                node.address(transport).connect().close()
            except OSError as error:
                raise Failure(f"{node.name} says that it is ready, and its {transport} listener: {error}") from error

    def _configuration(self, node):
        peers = [f"127.0.0.1:{other.cluster}" for other in self.nodes]
        sections = [
            f'[node]\nname = "{node.name}"\ndata_dir = "{self.room / node.name}"',
            f'[cluster]\nbind = "127.0.0.1:{node.cluster}"\njoin = {json.dumps(peers)}\nbootstrap_expect = {NODES}'
            f"\nnode_down_after_ms = {DOWN_AFTER_MS}",
            f'[admin]\nbind = "127.0.0.1:{node.admin}"',
            *(self._listener(node, transport) for transport in self.transports),
        ]
        if "tls" in self.transports:
            sections.append('[auth]\nallow_anonymous = true\nchain = ["certificate"]')
        return "\n\n".join(sections) + "\n"

    def _listener(self, node, transport):
        address, protocol = node.address(transport), PROTOCOLS[transport]
        lines = ["[[listener]]", f'name = "{protocol}"', f'protocol = "{protocol}"']
        lines.append(f'bind = "{address.path or f"{address.host}:{address.port}"}"')
        if transport in ("tls", "wss"):
            wanted = {"tls": "required", "wss": "optional"}[transport]
            files = self.certificates
            lines.append(
                f'tls = {{ cert = "{files.server.cert}", key = "{files.server.key}", '
                f'client_ca = "{files.authority.cert}", client_cert = "{wanted}", identity = "cn" }}'
            )
        return "\n".join(lines)


def free_ports(count):
    """Ports that are free now, each once."""
    found = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise Failure("no free ports")


class Relay:
    """Stands between one client and its node, and can cut the line: what happens when a device loses its power."""

    def __init__(self, node, transport):
        self.name, self._node, self._transport = node.name, node, transport
        self._folder = tempfile.TemporaryDirectory(prefix="flotte-relay.")
        self._lock, self._ends, self._is_cut = threading.Lock(), [], False
        if transport == "unix":
            self._path = f"{self._folder.name}/relay.sock"
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(self._path)
            self._listener.listen()
        else:
            self._path = ""
            self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = []

    def address(self, transport):
        expect(transport == self._transport, "the relay is for another transport")
        if self._path:
            return Address("unix", path=self._path)
        return Address(transport, port=self._listener.getsockname()[1])

    def __enter__(self):
        self._run(self._accept)
        return self

    def __exit__(self, *_):
        self.cut()
        for thread in self._threads:
            thread.join(5)
        self._folder.cleanup()

    def cut(self):
        """Ends what goes through here, without a word, and takes nobody any more."""
        with self._lock:
            self._is_cut = True
            for end in (self._listener, *self._ends):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # It has ended already.
                end.close()

    def _run(self, work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
                server = self._node.address(self._transport).connect()
                server.settimeout(None)
            except OSError:
                return
            with self._lock:
                if self._is_cut:
                    client.close()
                    server.close()
                    return
                self._ends += [client, server]
            self._run(pump, client, server)
            self._run(pump, server, client)


def pump(source, sink):
    """Copies until one of both ends; the end is passed on."""
    try:
        while chunk := source.recv(65_536):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # The line is cut.
