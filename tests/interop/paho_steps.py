"""paho-mqtt through three nodes."""

import itertools
import uuid

from paho.mqtt.subscribeoptions import SubscribeOptions

from harness import Inbox, eventually, expect
from paho_client import PUBLISH, SUBSCRIBE, V5, VERSIONS, Client, properties

MESSAGES = 20


def topic_of(what):
    """A topic that no other step uses."""
    return f"interop/{what}/{uuid.uuid4().hex[:8]}"


def run(results, cluster):
    nodes = cluster.nodes
    for (name, version), qos in itertools.product(VERSIONS.items(), (0, 1, 2)):
        results.step(f"paho {name} QoS {qos}: every node to every node, in order", crosses, nodes, version, qos)
    for name, version in VERSIONS.items():
        for qos in (0, 1, 2):
            results.step(f"paho {name} QoS {qos}: retained at one node, read at all", retained, nodes, version, qos)
        results.step(f"paho {name}: a will, and none after DISCONNECT", will, nodes, version)
        results.step(f"paho {name}: wildcards", wildcards, nodes, version)
        results.step(f"paho {name}: the lower of both QoS", lower_qos, nodes, version)
        results.step(f"paho {name}: a session is resumed on its node", session_resume, nodes, version)
        results.step(f"paho {name}: a message of 200,000 bytes", large_message, nodes, version)
        results.step(f"paho {name}: takeover from another node", takeover, nodes, version)
    other_way = {"3.1.1 to 5.0": ("3.1.1", "5.0"), "5.0 to 3.1.1": ("5.0", "3.1.1")}
    for name, (source, sink) in other_way.items():
        results.step(f"paho {name}", between_versions, nodes, VERSIONS[source], VERSIONS[sink])
    results.step("paho 5.0: shared subscription over two nodes", shared, nodes)
    results.step("paho 5.0: properties arrive as they were sent", properties_cross, nodes)
    results.step("paho 5.0: no local, retain as published, retain handling", subscribe_options, nodes)


def run_with_a_killed_node(results, cluster):
    for name, version in VERSIONS.items():
        results.step(f"paho {name}: reconnects after its node was killed", reconnects, cluster, version)


def crosses(nodes, version, qos):
    """A subscriber and a publisher at each node: all get everything once, and each publisher's messages in order."""
    topic = topic_of("crosses")
    expected = {node.name: [f"{node.name} {number}" for number in range(MESSAGES)] for node in nodes}
    with Client(nodes[0], version) as a, Client(nodes[1], version) as b, Client(nodes[2], version) as c:
        clients = (a, b, c)
        for client in clients:
            client.subscribe(f"{topic}/+", qos)
        for client in clients:
            client.publish_all([(f"{topic}/x", text) for text in expected[client.node.name]], qos)
        for client in clients:
            texts = client.texts(len(nodes) * MESSAGES, f"messages at {client.node.name}")
            for source, wanted in expected.items():
                got = [text for text in texts if text.startswith(f"{source} ")]
                expect(got == wanted, f"from {source} at {client.node.name}: {got}")
            levels = {message.qos for message in client.inbox.items()}
            expect(levels == {qos}, f"delivered with QoS {levels}")
            expect(not any(message.dup for message in client.inbox.items()), "a first delivery is marked as DUP")


def retained(nodes, version, qos):
    topic = topic_of("retained")
    with Client(nodes[0], version) as publisher, Client(nodes[1], version) as live:
        live.subscribe(topic, qos)
        publisher.publish(topic, "kept", qos, retain=True)
        expect(not live.inbox.wait(1, "the live message")[0].retain, "a live message has RETAIN")
        for node in nodes:
            with Client(node, version) as late:
                late.subscribe(topic, qos)
                message = late.inbox.wait(1, f"the retained message at {node.name}")[0]
                expect((message.payload, message.qos, message.retain) == (b"kept", qos, True), "not as retained")
        publisher.publish(topic, "", qos, retain=True)
        live.inbox.wait(2, "the empty message")
        for node in nodes:
            with Client(node, version) as late:
                late.subscribe(topic, qos)
                expect_nothing(late, topic)


def expect_nothing(client, topic):
    """The next message is one that this client sends itself."""
    client.publish(topic, "sentinel", 1)
    texts = client.texts(1, "the sentinel")
    expect(texts == ["sentinel"], f"{texts} instead of nothing")


def will(nodes, version):
    topic = topic_of("will")
    with Client(nodes[2], version) as watcher:
        watcher.subscribe(topic, 1)
        with Client(nodes[0], version, will={"topic": topic, "payload": "clean", "qos": 1}):
            pass
        with Client(nodes[1], version, will={"topic": topic, "payload": "gone", "qos": 1, "retain": True}) as lost:
            lost.vanish()
        texts = watcher.texts(1, "the will")
        expect(texts == ["gone"], f"{texts}")
        with Client(nodes[0], version) as late:
            late.subscribe(topic, 1)
            expect(late.inbox.wait(1, "the retained will")[0].retain, "the will is not retained")
            late.publish(topic, "", 1, retain=True)


def wildcards(nodes, version):
    topic = topic_of("wild")
    with Client(nodes[1], version) as plus, Client(nodes[2], version) as hash_, Client(nodes[0], version) as publisher:
        plus.subscribe(f"{topic}/+/c", 1)
        hash_.subscribe(f"{topic}/#", 1)
        names = [topic, f"{topic}/a", f"{topic}/a/c", f"{topic}/b/c", f"{topic}/a/c/d", f"{topic}//c", f"{topic}x/a/c"]
        publisher.publish_all([(name, "w") for name in names], 1)
        expect([m.topic for m in hash_.inbox.wait(6, "#")] == names[:6], "not what # matches")
        wanted = [names[2], names[3], names[5]]
        expect([m.topic for m in plus.inbox.wait(3, "+")] == wanted, "not what + matches")
        publisher.publish(f"{topic}/end/c", "w", 1)
        expect(len(hash_.inbox.wait(7, "# at the end")) == 7 and len(plus.inbox.wait(4, "+ at the end")) == 4, "too many")


def lower_qos(nodes, version):
    topic = topic_of("lower")
    with Client(nodes[1], version) as subscriber, Client(nodes[0], version) as publisher:
        for granted in (0, 1, 2):
            subscriber.subscribe(f"{topic}/{granted}", granted)
        for granted, sent in itertools.product((0, 1, 2), (0, 1, 2)):
            publisher.publish(f"{topic}/{granted}", str(min(granted, sent)), sent)
        for message in subscriber.inbox.wait(9, "all of them"):
            expect(message.payload.decode() == str(message.qos), f"QoS {message.qos} instead of {message.payload}")


def session_resume(nodes, version):
    topic, name = topic_of("resume"), f"resume-{uuid.uuid4().hex[:8]}"
    with Client(nodes[1], version, name, keep_session=True) as first:
        expect(not first.session_present, "a session before the first connect")
        first.subscribe(topic, 1)
    with Client(nodes[0], version) as publisher:
        publisher.publish_all([(topic, str(number)) for number in range(MESSAGES)], 1)
        with Client(nodes[1], version, name, keep_session=True) as again:
            expect(again.session_present, "the session is not present")
            publisher.publish(topic, "live", 1)
            texts = again.texts(MESSAGES + 1, "what came meanwhile")
            expect(texts == [*map(str, range(MESSAGES)), "live"], f"{texts}")
    with Client(nodes[1], version, name) as clean:
        expect(not clean.session_present, "the session outlives a clean start")
        clean.subscribe(topic_of("other"), 1)


def large_message(nodes, version):
    topic, payload = topic_of("large"), bytes(range(250)) * 800
    with Client(nodes[2], version) as subscriber, Client(nodes[0], version) as publisher:
        subscriber.subscribe(topic, 2)
        publisher.publish(topic, payload, 2)
        expect(subscriber.inbox.wait(1, "the message")[0].payload == payload, "the payload has changed")


def takeover(nodes, version):
    topic, name = topic_of("takeover"), f"takeover-{uuid.uuid4().hex[:8]}"
    with Client(nodes[0], version, name) as old:
        with Client(nodes[2], version, name) as new:
            flags = old.disconnects.wait(1, "the end of the old connection")[0]
            expect(flags.is_disconnect_packet_from_server == (version == V5), "DISCONNECT is for 5.0, and only there")
            new.subscribe(topic, 1)
            with Client(nodes[1], version) as publisher:
                publisher.publish(topic, "yours", 1)
            expect(new.texts(1, "a message for the new one") == ["yours"], "another message")


def between_versions(nodes, source, sink):
    topic = topic_of("versions")
    with Client(nodes[0], source) as publisher, Client(nodes[1], sink) as subscriber:
        subscriber.subscribe(topic, 2)
        for qos in (0, 1, 2):
            publisher.publish(topic, f"qos {qos}", qos)
        got = [(message.payload.decode(), message.qos) for message in subscriber.inbox.wait(3, "three")]
        expect(got == [("qos 0", 0), ("qos 1", 1), ("qos 2", 2)], f"{got}")


def shared(nodes):
    topic, count = topic_of("shared"), 60
    with Client(nodes[1], V5) as one, Client(nodes[2], V5) as two, Client(nodes[0], V5) as publisher:
        with Client(nodes[0], V5) as plain:
            together = Inbox()
            for member in (one, two):
                member.paho.on_message = lambda _client, member, message: together.put((member, message.payload))
                member.paho.user_data_set(member.node.name)
                member.subscribe(f"$share/group/{topic}", 1)
            plain.subscribe(topic, 1)
            publisher.publish_all([(topic, str(number)) for number in range(count)], 1)
            plain.inbox.wait(count, "the plain subscription")
            got = together.wait(count, "both members")
            payloads = sorted(int(payload) for _, payload in got)
            expect(payloads == list(range(count)), f"{len(payloads)} copies of {count} messages")
            shares = {name: sum(member == name for member, _ in got) for name in (one.node.name, two.node.name)}
            expect(min(shares.values()) >= count // 6, f"shares of {shares}")


def properties_cross(nodes):
    topic = topic_of("properties")
    sent = {
        "PayloadFormatIndicator": 1,
        "ContentType": "text/plain",
        "ResponseTopic": "interop/answer",
        "CorrelationData": b"\x00\x01\xff",
        "UserProperty": [("a", "1"), ("a", "2"), ("b", "ü")],
    }
    with Client(nodes[2], V5) as subscriber, Client(nodes[0], V5) as publisher:
        subscriber.subscribe(topic, 1, properties=properties(SUBSCRIBE, SubscriptionIdentifier=77))
        publisher.publish(topic, "grün", 1, properties=properties(PUBLISH, MessageExpiryInterval=600, **sent))
        got = subscriber.inbox.wait(1, "the message")[0].properties
        for name, value in sent.items():
            expect(getattr(got, name, None) == value, f"{name} is {getattr(got, name, None)}")
        expect(got.SubscriptionIdentifier == [77], f"subscription identifiers {got.SubscriptionIdentifier}")
        expect(590 <= got.MessageExpiryInterval <= 600, f"expires in {got.MessageExpiryInterval} s")


def subscribe_options(nodes):
    topic = topic_of("options")
    with Client(nodes[0], V5) as client, Client(nodes[1], V5) as other:
        client.publish(topic, "retained", 1, retain=True)
        # Retain handling 2: nothing that was retained before.
        client.subscribe(topic, options=SubscribeOptions(1, noLocal=True, retainAsPublished=True, retainHandling=2))
        client.publish(topic, "own", 1)
        other.publish(topic, "other", 1, retain=True)
        message = client.inbox.wait(1, "the other's message")[0]
        expect((message.payload, message.retain) == (b"other", True), f"{message.payload}, RETAIN {message.retain}")
        client.publish(topic, "", 1, retain=True)


def reconnects(cluster, version):
    """A client of the killed node comes back by itself; those of the others notice nothing."""
    one, two, three = cluster.nodes
    topic = topic_of("reconnects")
    with Client(two, version, filters=[(topic, 1)]) as victim, Client(one, version) as publisher:
        with Client(three, version) as witness:
            witness.subscribe(topic, 1)
            publisher.publish(topic, "before", 1)
            victim.inbox.wait(1, "a message before")
            cluster.kill(two)
            victim.disconnects.wait(1, "the end of the connection")
            publisher.publish(topic, "meanwhile", 1)
            cluster.restart(two)
            victim.connects.wait(2, "the second CONNACK")
            eventually("a message after the reconnect", lambda: again(publisher, victim, topic))
            texts = witness.texts(3, "the witness")
            expect(texts[:3] == ["before", "meanwhile", "after"], f"the witness got {texts}")
            expect(len(witness.connects.items()) == len(publisher.connects.items()) == 1, "another client was cut off")


def again(publisher, victim, topic):
    """Its SUBSCRIBE may still be under way, so this is repeated."""
    publisher.publish(topic, "after", 1)
    return any(message.payload == b"after" for message in victim.inbox.items())
