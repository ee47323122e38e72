"""`flotte dev` on free ports, as people try it out; nodes that were killed are started again the way it says."""

import json
import os
import random
import signal
import socket
import subprocess
import urllib.error
import urllib.request

from cluster import DOWN_AFTER_MS, Address
from harness import eventually, expect

NODES = 3
# `flotte dev` gives each further node ports that are so much higher.
PORT_STEP = 10_000
START_SECONDS = 60


class Node:
    """One node of the cluster, as a client sees it."""

    def __init__(self, name, mqtt, admin):
        self.name, self.mqtt, self.admin = name, mqtt, admin
        # Of the newest start of the node.
        self.pid = None

    def address(self, transport):
        return Address(transport, port=self.mqtt)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.admin}"

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def takes_clients(self):
        try:
            socket.create_connection(("127.0.0.1", self.mqtt), timeout=2).close()
        except OSError:
            return False
        return True

    def status(self):
        with urllib.request.urlopen(f"{self.url}/api/v1/status", timeout=5) as answer:
            return json.load(answer)


class DevCluster:
    """Its nodes and what it writes to its console."""

    def __init__(self, flotte, room):
        self.flotte = flotte
        self.room = room
        room.mkdir()
        self._console = open(self.room / "console", "w", encoding="utf-8")
        mqtt, cluster, admin = free_bases(3)
        self.nodes = [
            Node(f"dev-{index + 1}", mqtt + index * PORT_STEP, admin + index * PORT_STEP) for index in range(NODES)
        ]
        # The variables of the tests would be unknown keys to the nodes.
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("FLOTTE_")}
        self._environment["FLOTTE_CLUSTER__NODE_DOWN_AFTER_MS"] = str(DOWN_AFTER_MS)
        ports = ["--mqtt-port", mqtt, "--cluster-port", cluster, "--admin-port", admin]
        self._dev = self._start([flotte, "dev", "--nodes", NODES, "--data-dir", self.room / "data", *ports])
        self._restarted = []
        # Nodes whose /readyz said 200 before they took clients, once for each time.
        self.early = []

    def _start(self, command):
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
            env=self._environment,
        )

    def console(self):
        return (self.room / "console").read_text(encoding="utf-8", errors="replace")

    def wait_ready(self):
        """Until `dev` says so: it names the process of each node."""
        eventually("`flotte dev` says that its nodes are ready", self._announced, START_SECONDS)
        for node in self.nodes:
            eventually(f"{node.name} is ready", node.is_ready)

    def _announced(self):
        expect(self._dev.poll() is None, "`flotte dev` has ended")
        pids = {}
        for line in self.console().splitlines():
            words = line.split()
            if len(words) > 2 and words[-2] == "pid" and line.startswith("  dev-"):
                pids[words[0]] = int(words[-1])
        for node in self.nodes:
            node.pid = pids.get(node.name)
        return len(pids) == NODES

    def kill(self, node):
        """As a power cut would; returns once the others have noticed."""
        os.kill(node.pid, signal.SIGKILL)
        for process in [process for process in self._restarted if process.pid == node.pid]:
            process.wait()
            self._restarted.remove(process)
        node.pid = None
        others = [other for other in self.nodes if other is not node]
        eventually(
            f"the others see that {node.name} is down",
            lambda: all(self.state_at(other, node) == "down" for other in others),
        )

    @staticmethod
    def state_at(observer, node):
        nodes = observer.status()["nodes"]
        return next((entry["state"] for entry in nodes if entry["name"] == node.name), None)

    def restart(self, node):
        """With the command line that `dev` names when a node has ended."""
        marker = "to start it again: flotte "
        lines = [line for line in self.console().splitlines() if marker in line and f"--node-name {node.name} " in line]
        expect(lines, f"`flotte dev` does not say how to start {node.name} again")
        process = self._start([self.flotte, *lines[-1].split(marker, 1)[1].split()])
        self._restarted.append(process)
        node.pid = process.pid
        eventually(f"{node.name} is ready again", node.is_ready, START_SECONDS)
        if not node.takes_clients():
            self.early.append(node.name)
            eventually(f"{node.name} takes clients", node.takes_clients)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def stop(self):
        """Ctrl-C for `dev` and SIGTERM for what was started again; all have to end with 0."""
        for process in self._restarted:
            if process.poll() is None:
                process.terminate()
        if self._dev.poll() is None:
            self._dev.send_signal(signal.SIGINT)
        codes = [process.wait(30) for process in (self._dev, *self._restarted)]
        expect(codes == [0] * len(codes), f"exit codes {codes}")

    def close(self):
        """Leaves nothing behind, whatever has happened."""
        for process in (self._dev, *self._restarted):
            if process.poll() is None:
                process.kill()
                process.wait()
        self._console.close()


def free_bases(count):
    """Ports that are free for every node, below the range from which the kernel takes ports for connections."""
    bases = []
    while len(bases) < count:
        base = random.randrange(2_000, 12_000)
        if base not in bases and all(is_free(base + index * PORT_STEP) for index in range(NODES)):
            bases.append(base)
    return bases


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
