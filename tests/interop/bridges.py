"""The broker mosquitto, bridged to a node: what clients of either side publish reaches the other, once, and stays retained."""

import contextlib
import os
import shutil
import subprocess

from clients.base import Filter, Session
from clients.paho_client import PahoClient
from cluster import Address, free_ports
from harness import eventually, expect, name_of, topic_of

# By the name that mosquitto gives them. In 3.x it says by the level of its CONNECT that it is a bridge.
VERSIONS = ("mqttv31", "mqttv311", "mqttv50")


def run_steps(table, cluster):
    # Debian has it where only root looks.
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        table.skip("no mosquitto (Debian package mosquitto)")
        return
    for version in VERSIONS:
        table.check(f"a bridge of mosquitto, {version}", passes_on, program, cluster, version)


def passes_on(program, cluster, version):
    root, name = topic_of("bridged"), name_of("bridge")
    one, two, three = cluster.nodes
    state = f"$SYS/broker/connection/{name}/state"
    with opened(two.address("tcp"), state) as watcher, contextlib.ExitStack() as stack:
        here = stack.enter_context(opened(three.address("tcp"), f"{root}/#"))
        bridge = stack.enter_context(mosquitto(program, cluster, one.address("tcp").port, version, root, name))
        expect(watcher.texts(1, "the bridge is connected")[-1] == "1", "it says that it is not")
        log = cluster.room / f"{name}.log"
        eventually("the bridge has subscribed", lambda: "Received SUBACK" in log.read_text(encoding="utf-8"))
        there = stack.enter_context(opened(bridge, f"{root}/#"))
        here.publish(f"{root}/up", "up", 1, retain=True)
        there.publish(f"{root}/down", "down", 1, retain=True)
        for peer in (here, there):
            got = sorted(peer.texts(2, "what either side published"))
            expect(got == ["down", "up"], f"{got}")
        for address in (two.address("tcp"), bridge):
            late = stack.enter_context(opened(address, f"{root}/#"))
            kept = sorted((message.text, message.retain) for message in late.messages.wait(2, "what is retained"))
            expect(kept == [("down", True), ("up", True)], f"{kept}")
        # A copy that came back would be there before what is published after it.
        here.publish(f"{root}/up", "last", 1)
        there.texts(3, "the last message")
        here.texts(3, "its own last message")
        for peer in (here, there):
            got = sorted(message.text for message in peer.messages.items())
            expect(got == ["down", "last", "up"], f"{got}")
        stack.close()
        expect(watcher.texts(2, "the bridge is gone")[-1] == "0", "its will says otherwise")


def opened(address, topic):
    return PahoClient("3.1.1", "tcp", None).open(Session(name_of("bridged"), (address,), (Filter(topic, 1),)))


@contextlib.contextmanager
def mosquitto(program, cluster, port, version, root, name):
    """Its address, while it runs; killed, so that its will is published."""
    address = Address("tcp", port=free_ports(1)[0])
    config = cluster.room / f"{name}.conf"
    lines = [
        f"listener {address.port} {address.host}",
        "allow_anonymous true",
        "log_type all",
        f"connection {name}",
        f"address 127.0.0.1:{port}",
        f"remote_clientid {name}",
        f"bridge_protocol_version {version}",
        f"topic {root}/# both 1",
    ]
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with open(cluster.room / f"{name}.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen([program, "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield address
    finally:
        process.kill()
        process.wait()
