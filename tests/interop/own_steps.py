"""The clients of `flotte` itself, among themselves and with those of mosquitto, and `flotte ctl`: through `flotte dev`."""

import contextlib
import json
import shutil
import signal
import subprocess
import threading

from clients.base import Filter, Session
from clients.paho_client import PahoClient
from dev import DevCluster
from harness import WAIT_SECONDS, Failure, Inbox, eventually, expect, name_of, topic_of

COUNT = 10
# By the name that each program gives it.
VERSIONS = {"3.1": ("mqttv31", "31"), "3.1.1": ("mqttv311", "311"), "5.0": ("mqttv5", "5")}


class Program:
    """How to publish and to subscribe with one family of programs."""

    def __init__(self, name, publish, subscribe, version_at):
        self.name, self._publish, self._subscribe, self._version_at = name, publish, subscribe, version_at

    def _options(self, node, version, topic, qos):
        return ["-h", "127.0.0.1", "-p", node.mqtt, "-V", VERSIONS[version][self._version_at], "-t", topic, "-q", qos]

    def publish(self, node, version, topic, qos, *options, text=None):
        run(*self._publish, *self._options(node, version, topic, qos), *options, stdin=text)

    def subscriber(self, node, version, topic, qos, *options, count=None, client_id=None):
        """Runs and has its SUBACK; `count` ends it after so many messages."""
        marker = topic_of("marker")
        self.publish(node, "3.1.1", marker, 1, "-r", "-m", marker)
        command = [*self._subscribe, *self._options(node, version, topic, qos), *options, "-t", marker]
        command += ["-i", client_id or name_of(self.name)]
        if count:
            command += ["-C", count + 1]
        return Subscriber(command, marker)


def run(*command, stdin=None, code=0):
    """Runs a program to its end and returns its output."""
    done = subprocess.run(
        [str(word) for word in command], input=stdin or "", capture_output=True, text=True, timeout=30, check=False
    )
    words = " ".join(str(word) for word in command)
    expect(done.returncode == code, f"{words}: exit {done.returncode}, not {code}: {done.stdout}{done.stderr}")
    return done.stdout


class Subscriber:
    """A subscribing program. It has one filter more, whose retained message tells that the SUBACK was sent."""

    def __init__(self, command, marker):
        self.lines, self._ready = Inbox(), Inbox()
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._reader = threading.Thread(target=self._read, args=(marker,), daemon=True)
        self._reader.start()
        with contextlib.ExitStack() as undo:
            undo.callback(self.end)
            self._ready.wait(1, f"{self.process.args[0]} has subscribed")
            undo.pop_all()

    def _read(self, marker):
        for line in self.process.stdout:
            text = line.rstrip("\n")
            (self._ready if text == marker else self.lines).put(text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def wait_end(self, code=0):
        try:
            got = self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"the subscriber still waits, and has {self.lines.items()}") from error
        self._reader.join(WAIT_SECONDS)
        expect(got == code, f"the subscriber ended with {got}, not {code}")
        return self.lines.items()


def subscriptions_of(node, client_id):
    done = subprocess.run(
        [FLOTTE[0], "ctl", "--url", node.url, "--json", "clients", "show", client_id],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return done.returncode == 0 and json.loads(done.stdout)["subscriptions"]


# The binary; set by `programs`.
FLOTTE = []


def programs(flotte):
    """The families that are here, by name."""
    FLOTTE[:] = [flotte]
    found = {"flotte": Program("flotte", [flotte, "pub"], [flotte, "sub"], 1)}
    if shutil.which("mosquitto_pub") and shutil.which("mosquitto_sub"):
        found["mosquitto"] = Program("mosquitto", ["mosquitto_pub"], ["mosquitto_sub"], 0)
    return found


def run_steps(table, around):
    """All of them, one after the other."""
    found = programs(around.flotte)
    with DevCluster(around.flotte, around.room / "dev") as cluster:
        if table.check("flotte dev: three nodes become ready", cluster.wait_ready):
            run_with(table, cluster, found)
            table.check("flotte dev: all nodes end with 0 at Ctrl-C", cluster.stop)
        if table.failed:
            # The library's complaints about an absent peer would bury the rest.
            lines = [line for line in cluster.console().splitlines() if " openraft::" not in line]
            print("\n".join(f"dev | {line}" for line in lines[-40:]))


def run_with(table, cluster, found):
    nodes, flotte = cluster.nodes, found["flotte"]
    pairs = [(flotte, flotte)]
    if mosquitto := found.get("mosquitto"):
        pairs += [(mosquitto, flotte), (flotte, mosquitto)]
    for source, sink in pairs:
        names = f"{source.name} pub to {sink.name} sub"
        for version in VERSIONS:
            table.check(f"{names} {version}: QoS 0, 1, 2, wildcard", crosses, nodes, source, sink, version)
        table.check(f"{names}: what is retained and cleared", retained, nodes, source, sink)
    table.check("flotte sub: a session is resumed", session_resume, nodes, flotte)
    table.check("flotte sub -W ends with 27", times_out, nodes)
    table.check("flotte pub and sub without a broker end with 69", unreachable)
    table.check("flotte ctl status", ctl_status, cluster)
    table.check("flotte ctl nodes", ctl_nodes, cluster)
    table.check("flotte ctl clients list and show", ctl_clients, cluster)
    table.check("flotte ctl clients kick", ctl_kick, cluster)
    table.check("flotte ctl: exit codes", ctl_exit_codes, cluster)
    table.check("flotte pub and sub: one node is killed, and started again", survives, cluster, flotte)
    table.check("a node that says it is ready takes clients", ready_is_ready, cluster)


def crosses(nodes, source, sink, version):
    """Each line of stdin is a message."""
    topic = topic_of("lines")
    for qos in (0, 1, 2):
        wanted = [f"{qos} line {number}" for number in range(COUNT)]
        with sink.subscriber(nodes[2], version, f"{topic}/{qos}/#", qos, count=COUNT) as subscriber:
            source.publish(nodes[0], version, f"{topic}/{qos}/a/b", qos, "-l", text="\n".join(wanted) + "\n")
            got = subscriber.wait_end()
            expect(got == wanted, f"QoS {qos}: {got}")


def retained(nodes, source, sink):
    topic = topic_of("kept")
    source.publish(nodes[0], "3.1.1", topic, 1, "-r", "-m", "kept")
    for node in nodes:
        with sink.subscriber(node, "5.0", topic, 1, count=1) as subscriber:
            got = subscriber.wait_end()
            expect(got == ["kept"], f"{got} at {node.name}")
    source.publish(nodes[1], "3.1.1", topic, 1, "-r", "-n")
    with sink.subscriber(nodes[2], "5.0", topic, 1, count=1) as subscriber:
        source.publish(nodes[0], "3.1.1", topic, 1, "-m", "sentinel")
        got = subscriber.wait_end()
        expect(got == ["sentinel"], f"{got} after it was cleared")


def session_resume(nodes, program):
    topic = topic_of("session")
    for version in ("3.1.1", "5.0"):
        name = name_of("own")
        with program.subscriber(nodes[1], version, topic, 1, "-c", client_id=name) as first:
            first.process.send_signal(signal.SIGINT)
            first.process.wait(WAIT_SECONDS)
        program.publish(nodes[0], version, topic, 1, "-l", text="one\ntwo\n")
        with program.subscriber(nodes[1], version, topic, 1, "-c", client_id=name, count=2) as second:
            got = second.wait_end()
            expect(got == ["one", "two"], f"{version}: {got}")


def times_out(nodes):
    arguments = ["-h", "127.0.0.1", "-p", nodes[0].mqtt, "-t", topic_of("silent"), "-W", 1]
    run(FLOTTE[0], "sub", *arguments, code=27)


def unreachable():
    # Port 9 is below every range that the tests use, and nothing here serves it.
    run(FLOTTE[0], "pub", "-h", "127.0.0.1", "-p", 9, "-t", "a", "-m", "b", code=69)
    run(FLOTTE[0], "sub", "-h", "127.0.0.1", "-p", 9, "-t", "a", code=69)


def ctl(node, *arguments, code=0):
    return run(FLOTTE[0], "ctl", "--url", node.url, *arguments, code=code)


def ctl_json(node, *arguments):
    return json.loads(ctl(node, "--json", *arguments))


def ctl_status(cluster):
    statuses = [ctl_json(node, "status") for node in cluster.nodes]
    expect(len({status["cluster_id"] for status in statuses}) == 1, "more than one cluster")
    for node, status in zip(cluster.nodes, statuses):
        expect(status["node"]["name"] == node.name, f"{node.name} says it is {status['node']['name']}")
        expect(status["state"] == "up", f"{node.name} is {status['state']}")
        expect(status["lease_ms_left"] > 0, f"{node.name} holds no lease")
        expect(status["problems"] == [], f"{node.name} has problems: {status['problems']}")
        expect(sum(member["leader"] for member in status["nodes"]) == 1, "not one leader")
        expect(all(group["leader"] for group in status["groups"]), "a group without a leader")
        text = ctl(node, "status")
        for needle in (status["cluster_id"], "lease", "GROUP", "meta", *(other.name for other in cluster.nodes)):
            expect(needle in text, f"`ctl status` does not show {needle}:\n{text}")


def ctl_nodes(cluster):
    for node in cluster.nodes:
        members = {member["name"]: member for member in ctl_json(node, "nodes")["items"]}
        expect(set(members) == {other.name for other in cluster.nodes}, f"members {set(members)}")
        expect(all(member["state"] == "up" and member["voter"] for member in members.values()), f"{members}")
        rows = ctl(node, "nodes").splitlines()
        expect(rows[0].split()[:4] == ["NODE", "STATE", "META", "ADDRESS"], f"the head is {rows[0]}")
        expect(len(rows) == 1 + len(members), f"{len(rows)} lines")


def ctl_clients(cluster):
    node, name = cluster.nodes[1], name_of("shown")
    with open_paho(node, name, Filter(topic_of("shown"), 1)):
        found = [entry for entry in ctl_json(node, "clients", "list")["items"] if entry["client_id"] == name]
        expect(len(found) == 1, f"{len(found)} entries")
        wanted = {"node": node.name, "version": "5.0", "connected": True, "subscriptions": 1, "session": "live"}
        got = {key: found[0][key] for key in wanted}
        expect(got == wanted, f"{got}")
        row = next(line for line in ctl(node, "clients").splitlines() if line.startswith(name))
        expect(row.split()[1:3] == [node.name, "yes"], row)
        shown = ctl(node, "clients", "show", name)
        expect(name in shown and "keep alive" in shown and "30 s" in shown, shown)
    eventually("the client is gone", lambda: not subscriptions_of(node, name))


def ctl_kick(cluster):
    node, name = cluster.nodes[0], name_of("kicked")
    with open_paho(node, name) as client:
        ctl(node, "clients", "kick", name)
        why = client.losses.wait(1, "the end of the connection")[0]
        expect(why.startswith("DISCONNECT"), f"cut off without a DISCONNECT: {why}")


def open_paho(node, name, *filters):
    return PahoClient("5.0", "tcp", None).open(Session(name, (node.address("tcp"),), filters))


def ctl_exit_codes(cluster):
    ctl(cluster.nodes[0], "clients", "show", "nobody-has-this-name", code=1)
    ctl(cluster.nodes[0], "no-such-command", code=2)
    run(FLOTTE[0], "ctl", "--url", "http://127.0.0.1:9", "status", code=69)


def survives(cluster, program):
    one, two, three = cluster.nodes
    topic = topic_of("survives")
    cluster.kill(three)
    with program.subscriber(two, "3.1.1", topic, 1, count=1) as subscriber:
        program.publish(one, "3.1.1", topic, 1, "-m", "without it")
        expect(subscriber.wait_end() == ["without it"], "another message")
    states = {member["name"]: member["state"] for member in ctl_json(one, "nodes")["items"]}
    expect(states == {one.name: "up", two.name: "up", three.name: "down"}, f"`ctl nodes` shows {states}")
    cluster.restart(three)
    with program.subscriber(three, "5.0", topic, 2, count=1) as subscriber:
        program.publish(one, "5.0", topic, 2, "-m", "it is back")
        expect(subscriber.wait_end() == ["it is back"], "another message")
    eventually("all nodes are up for node 1", lambda: all(m["state"] == "up" for m in one.status()["nodes"]))


def ready_is_ready(cluster):
    expect(not cluster.early, f"/readyz was 200 before the listener was open, after restarts of {cluster.early}")
