"""mosquitto_pub, mosquitto_sub and the clients of `flotte` itself through three nodes, and what `flotte ctl` shows."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import uuid

from harness import WAIT_SECONDS, Failure, Inbox, eventually, expect
from paho_client import V5, Client
from paho_steps import topic_of

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
        command += ["-i", client_id or f"{self.name}-{uuid.uuid4().hex[:10]}"]
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


def run_steps(results, cluster, found):
    nodes, flotte = cluster.nodes, found["flotte"]
    mosquitto = found.get("mosquitto")
    pairs = [(flotte, flotte)]
    if mosquitto:
        pairs = [(mosquitto, mosquitto), (mosquitto, flotte), (flotte, mosquitto), *pairs]
    else:
        results.skip("no mosquitto_pub and mosquitto_sub (Debian package mosquitto-clients)")
    for source, sink in pairs:
        for version in VERSIONS:
            title = f"{source.name} pub to {sink.name} sub {version}: QoS 0, 1, 2 from node 1 to node 3, wildcard"
            results.step(title, crosses, nodes, source, sink, version)
        title = f"{source.name} pub to {sink.name} sub: what is retained and cleared"
        results.step(title, retained, nodes, source, sink)
    if mosquitto:
        results.step("mosquitto_sub: the will of one that is killed", mosquitto_will, nodes, mosquitto)
        results.step("mosquitto_sub 5.0: shared subscription", mosquitto_shared, nodes, mosquitto)
        results.step("mosquitto_sub: a session is resumed", session_resume, nodes, mosquitto, mosquitto)
    if modules := os.environ.get("INTEROP_NODE_MODULES"):
        for version in (4, 5):
            title = f"MQTT.js, protocol {version}: every QoS, wildcard, retained, will, resumed session"
            results.step(title, mqtt_js, nodes, modules, version)
    results.step("flotte sub: a session is resumed", session_resume, nodes, flotte, flotte)
    results.step("flotte sub -W ends with 27", times_out, nodes)
    results.step("flotte pub and sub without a broker end with 69", unreachable)
    results.step("flotte ctl status", ctl_status, cluster)
    results.step("flotte ctl nodes", ctl_nodes, cluster)
    results.step("flotte ctl clients list and show", ctl_clients, cluster)
    results.step("flotte ctl clients kick", ctl_kick, cluster)
    results.step("flotte ctl: exit codes", ctl_exit_codes, cluster)


def run_with_a_killed_node(results, cluster, found):
    for name, program in found.items():
        results.step(f"{name}: one node is killed, the others serve on, it comes back", survives, cluster, program)


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


def mosquitto_will(nodes, mosquitto):
    topic = topic_of("will")
    will = ["--will-topic", topic, "--will-payload", "gone", "--will-qos", 1]
    with mosquitto.subscriber(nodes[2], "3.1.1", topic, 1, count=1) as watcher:
        with mosquitto.subscriber(nodes[0], "3.1.1", topic_of("none"), 0, *will) as lost:
            lost.process.send_signal(signal.SIGKILL)
            expect(watcher.wait_end() == ["gone"], "another will")


def mosquitto_shared(nodes, mosquitto):
    topic, count = topic_of("shared"), 30
    share = f"$share/group/{topic}"
    with mosquitto.subscriber(nodes[1], "5.0", share, 1) as one, mosquitto.subscriber(nodes[2], "5.0", share, 1) as two:
        wanted = [str(number) for number in range(count)]
        mosquitto.publish(nodes[0], "5.0", topic, 1, "-l", text="\n".join(wanted) + "\n")
        eventually("every message once", lambda: len(one.lines.items()) + len(two.lines.items()) >= count)
        got = sorted(one.lines.items() + two.lines.items(), key=int)
        expect(got == wanted, f"{got}")
        expect(one.lines.items() and two.lines.items(), "one member got nothing")


def session_resume(nodes, source, sink):
    topic = topic_of("session")
    for version in ("3.1.1", "5.0"):
        name = f"{sink.name}-{uuid.uuid4().hex[:8]}"
        keep = ["-c", "-x", 300] if version == "5.0" and sink.name == "mosquitto" else ["-c"]
        with sink.subscriber(nodes[1], version, topic, 1, *keep, client_id=name) as first:
            first.process.send_signal(signal.SIGINT)
            first.process.wait(WAIT_SECONDS)
        source.publish(nodes[0], version, topic, 1, "-l", text="one\ntwo\n")
        with sink.subscriber(nodes[1], version, topic, 1, *keep, client_id=name, count=2) as second:
            got = second.wait_end()
            expect(got == ["one", "two"], f"{version}: {got}")


def mqtt_js(nodes, modules, version):
    run("node", pathlib.Path(__file__).with_name("mqttjs.mjs"), modules, version, *(node.mqtt for node in nodes))


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
    node, name = cluster.nodes[1], f"shown-{uuid.uuid4().hex[:8]}"
    with Client(node, V5, name) as client:
        client.subscribe(topic_of("shown"), 1)
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
    node, name = cluster.nodes[0], f"kicked-{uuid.uuid4().hex[:8]}"
    with Client(node, V5, name) as client:
        ctl(node, "clients", "kick", name)
        flags = client.disconnects.wait(1, "the end of the connection")[0]
        expect(flags.is_disconnect_packet_from_server, "cut off without a DISCONNECT")


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
