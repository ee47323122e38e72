"""The steps that every client takes, each written once. A step gets a `Scene` and raises a `Failure` where it fails."""

import dataclasses
import time

from certificates import CLIENT_NAME
from clients.base import Client, Filter, Refused, Session, Will
from cluster import Relay
from harness import Failure, eventually, expect, name_of, topic_of

MESSAGES = 10


@dataclasses.dataclass(frozen=True)
class Scene:
    """The client of this row, another one to talk to, and the nodes, turned for each row."""

    client: Client
    other: Client
    nodes: tuple

    def open(self, node, *filters, **options):
        """The client of the row, at this node."""
        return open_at(self.client, self.nodes[node], *filters, **options)

    def open_other(self, node, *filters, **options):
        return open_at(self.other, self.nodes[node], *filters, **options)


def open_at(client, *places, name=None, **options):
    """Connects to the first of the nodes among `places`; the rest of them are its filters."""
    filters = tuple(place for place in places if isinstance(place, Filter))
    nodes = [place for place in places if not isinstance(place, Filter)]
    addresses = tuple(node.address(client.transport) for node in nodes)
    return client.open(Session(name or name_of(client.family), addresses, filters, **options))


def connect(scene):
    """Each node takes it as what it is, and lets it go."""
    for node, place in enumerate(scene.nodes):
        name = name_of(scene.client.family)
        with scene.open(node, Filter(topic_of("connect"), 1), name=name) as peer:
            expect(peer.session_present is not True, "a session before the first connect")
            shown = eventually(f"{name} at {place.name}", lambda: place.client(name))
            expect(shown["connected"] and shown["version"] == scene.client.version, f"{place.name} shows {shown}")
            peer.close()
        eventually("the client is gone", lambda: not place.client(name))


def crosses(scene, qos):
    """Two of it and another client, each at a node of its own: all get everything once, each publisher's in order."""
    topic = topic_of(f"qos{qos}")
    wanted = Filter(f"{topic}/+", qos)
    with scene.open(0, wanted) as one, scene.open(1, wanted) as two, scene.open_other(2, wanted) as other:
        peers = {"one": one, "two": two, "other": other}
        sent = {name: [f"{name} {number}" for number in range(MESSAGES)] for name in peers}
        for name, peer in peers.items():
            peer.publish_all([(f"{topic}/{name}", text) for text in sent[name]], qos)
        for name, peer in peers.items():
            messages = peer.messages.wait(len(peers) * MESSAGES, f"messages of {name}")
            for source, texts in sent.items():
                got = [message.text for message in messages if message.topic == f"{topic}/{source}"]
                expect(got == texts, f"from {source} to {name}: {got}")
            expect({message.qos for message in messages} == {qos}, "delivered with another QoS")
            expect(not any(message.dup or message.retain for message in messages), "DUP or RETAIN in a first delivery")
        for name, peer in peers.items():
            expect(len(peer.messages.items()) == len(peers) * MESSAGES, f"more than was sent, at {name}")


def lower_qos(scene):
    """What is delivered has the lower of the published and the granted QoS."""
    for granted in levels(scene, 0, 1, 2):
        topic = topic_of("lower")
        with scene.open(1, Filter(topic, granted)) as peer, scene.open_other(0) as other:
            for sent in (0, 1, 2):
                other.publish(topic, str(min(granted, sent)), sent)
            messages = peer.messages.wait(3, "all of them")
            expect(all(message.text == str(message.qos) for message in messages), f"{messages}")


def levels(scene, *wanted):
    """Those that the client can do."""
    return [qos for qos in wanted if qos < 2 or "qos2" not in scene.client.lacks]


def retained(scene):
    """Kept at one node, read at all, cleared by an empty message."""
    for qos in levels(scene, 1, 2):
        topic = topic_of("kept")
        with scene.open(0) as publisher, scene.open_other(1, Filter(topic, qos)) as live:
            publisher.publish(topic, "kept", qos, retain=True)
            expect(not live.messages.wait(1, "the live message")[0].retain, "a live message has RETAIN")
            for node in range(len(scene.nodes)):
                with scene.open(node, Filter(topic, qos)) as late:
                    message = late.messages.wait(1, "the retained message")[0]
                    expect((message.text, message.qos, message.retain) == ("kept", qos, True), f"{message}")
            publisher.publish(topic, "", qos, retain=True)
            live.messages.wait(2, "the empty message")
            with scene.open(2, Filter(topic, qos)) as late:
                # The next message is a sentinel.
                publisher.publish(topic, "sentinel", 1)
                message = late.messages.wait(1, "the sentinel")[0]
                expect((message.text, message.retain) == ("sentinel", False), f"{message} instead of nothing")


def will(scene):
    """Published when the line is cut, and not after a DISCONNECT, unless that asks for it."""
    topic = topic_of("will")
    with scene.open_other(2, Filter(topic, 1)) as watcher:
        scene.open(0, Filter(topic_of("x")), will=Will(topic, b"closed", 1)).close()
        with Relay(scene.nodes[1], scene.client.transport) as relay:
            with open_at(scene.client, relay, Filter(topic_of("x")), will=Will(topic, b"gone", 1, True)):
                relay.cut()
                wanted = [*(["closed"] if scene.client.closes_with_will else []), "gone"]
                messages = watcher.messages.wait(len(wanted), "the will")
                got = [(message.text, message.qos) for message in messages]
                expect(got == [(text, 1) for text in wanted], f"{messages}")
        with scene.open(0, Filter(topic, 1)) as late:
            message = late.messages.wait(1, "the retained will")[0]
            expect((message.text, message.retain) == ("gone", True), f"{message}")
            watcher.publish(topic, "", 1, retain=True)


def resume(scene):
    """A session goes on where it was left; a clean start ends it."""
    for qos in levels(scene, 1, 2):
        topic, name = topic_of("resume"), name_of("resume")
        with scene.open(1, Filter(topic, qos), name=name, keep=True) as first:
            expect(first.session_present is not True, "a session before the first connect")
            first.close()
        with scene.open_other(0) as other:
            other.publish_all([(topic, str(number)) for number in range(MESSAGES)], qos)
            with scene.open(1, name=name, keep=True) as again:
                expect(again.session_present is not False, "the session is not present")
                other.publish(topic, "live", qos)
                messages = again.messages.wait(MESSAGES + 1, "what came meanwhile")
                texts = [message.text for message in messages]
                expect(texts == [*map(str, range(MESSAGES)), "live"], f"QoS {qos}: {texts}")
                expect({message.qos for message in messages} == {qos}, "delivered with another QoS")
                again.close()
            with scene.open(1, Filter(topic_of("x")), name=name) as clean:
                expect(clean.session_present is not True, "the session outlives a clean start")
                # Nor is its subscription there any more: what would come is seen before the end of the second one.
                other.publish(topic, "to nobody", 1)
                clean.close()
                expect(clean.messages.items() == [], "the subscription outlives a clean start")


def wildcards(scene):
    topic = topic_of("wild")
    names = [topic, f"{topic}/a", f"{topic}/a/c", f"{topic}/b/c", f"{topic}/a/c/d", f"{topic}//c", f"{topic}x/a/c"]
    with scene.open(1, Filter(f"{topic}/+/c", 1)) as plus, scene.open(2, Filter(f"{topic}/#", 1)) as hash_:
        with scene.open(0) as publisher:
            for name in names:
                publisher.publish(name, "w", 1)
            publisher.publish(f"{topic}/end/c", "w", 1)
        got = [message.topic for message in hash_.messages.wait(7, "#")]
        expect(got == [*names[:6], f"{topic}/end/c"], f"# got {got}")
        got = [message.topic for message in plus.messages.wait(4, "+")]
        expect(got == [names[2], names[3], names[5], f"{topic}/end/c"], f"+ got {got}")


def shared(scene):
    """Two members at two nodes share; a plain subscription gets all."""
    topic, count = topic_of("shared"), 30
    member = Filter(f"$share/group/{topic}", 1)
    with scene.open(1, member) as one, scene.open(2, member) as two, scene.open_other(0, Filter(topic, 1)) as plain:
        wanted = [str(number) for number in range(count)]
        with scene.open(0) as publisher:
            publisher.publish_all([(topic, text) for text in wanted], 1)
        expect(plain.texts(count, "the plain subscription") == wanted, "the plain subscription got something else")
        eventually("all", lambda: len(one.messages.items()) + len(two.messages.items()) >= count)
        shares = [[message.text for message in peer.messages.items()] for peer in (one, two)]
        expect(sorted(sum(shares, []), key=int) == wanted, f"not each message once: {shares}")
        expect(min(map(len, shares)) >= count // 6, f"shares of {[*map(len, shares)]}")


def unsubscribe(scene):
    """After the UNSUBACK nothing comes; the other subscription goes on."""
    topic = topic_of("unsubscribe")
    filters = [Filter(f"{topic}/left", 1), Filter(f"{topic}/kept", 1)]
    with scene.open(1, *filters) as peer, scene.open_other(0) as other:
        other.publish(f"{topic}/left", "before", 1)
        peer.messages.wait(1, "a message before")
        peer.unsubscribe(f"{topic}/left")
        other.publish(f"{topic}/left", "after", 1)
        other.publish(f"{topic}/kept", "sentinel", 1)
        expect(peer.texts(2, "the sentinel") == ["before", "sentinel"], "a message after UNSUBACK")


def large(scene):
    """200,000 bytes of every value, both ways."""
    topic, payload = topic_of("large"), bytes(range(250)) * 800
    qos = max(levels(scene, 1, 2))
    with scene.open(2, Filter(f"{topic}/in", qos)) as peer, scene.open_other(0, Filter(f"{topic}/out", qos)) as other:
        other.publish(f"{topic}/in", payload, qos)
        expect(peer.messages.wait(1, "the message")[0].payload == payload, "the payload has changed")
        peer.publish(f"{topic}/out", payload, qos)
        expect(other.messages.wait(1, "the message back")[0].payload == payload, "the payload has changed on its way back")


def takeover(scene):
    """The same client identifier at another node: the old connection ends, the new one works."""
    topic, name = topic_of("takeover"), name_of("takeover")
    with scene.open(0, Filter(topic, 1), name=name) as old:
        with scene.open(2, Filter(topic, 1), name=name) as new, scene.open_other(1) as other:
            old.losses.wait(1, "the end of the old connection")
            old.abandon()
            other.publish(topic, "yours", 1)
            expect(new.texts(1, "a message for the new one") == ["yours"], "another message")
            expect(old.messages.items() == [], "a message for the old one")


# What a publisher of 5.0 may say about a message; the correlation data is the client's own choice.
SAID = {
    "format": 1,
    "content_type": "text/plain",
    "response_topic": "interop/answer",
    "user": [("a", "1"), ("a", "2"), ("b", "ü")],
}


def properties(scene):
    """All properties of a PUBLISH, both ways, and the subscription's identifier."""
    topic = topic_of("properties")
    sent = SAID | {"correlation": scene.client.correlation}
    identifier = 0 if "identifiers" in scene.client.lacks else 77
    with scene.open(2, Filter(f"{topic}/in", 1, identifier=identifier)) as peer:
        with scene.open_other(0, Filter(f"{topic}/out", 1, identifier=5)) as other:
            other.publish(f"{topic}/in", "grün", 1, expiry=600, **sent)
            check_properties(peer.messages.wait(1, "the message")[0], sent, [identifier] if identifier else None)
            peer.publish(f"{topic}/out", "grün", 1, expiry=600, **sent)
            check_properties(other.messages.wait(1, "the message back")[0], sent, [5])


def check_properties(message, sent, identifiers):
    got = message.properties
    expect(message.text == "grün", f"payload {message.payload}")
    for name, value in sent.items():
        expect(got.get(name) == value, f"{name} is {got.get(name)}, not {value}")
    if identifiers:
        expect(got.get("identifiers") == identifiers, f"identifiers {got.get('identifiers')}, not {identifiers}")
    expect(590 <= got.get("expiry", 0) <= 600, f"expires in {got.get('expiry')} s")


def window(scene):
    """A client that takes two at a time gets all of it, in order, at QoS 1 and at QoS 2."""
    for qos in levels(scene, 1, 2):
        topic = topic_of("window")
        with scene.open(2, Filter(topic, qos), receive_maximum=2) as peer, scene.open_other(0) as other:
            wanted = [str(number) for number in range(3 * MESSAGES)]
            other.publish_all([(topic, text) for text in wanted], qos)
            expect(peer.texts(len(wanted), f"QoS {qos}") == wanted, "another order")


def alias(scene):
    """More topics than aliases, both ways: every message keeps its topic."""
    topic, count = topic_of("alias"), 4
    wanted = [(f"{topic}/{number % (count + 3)}", f"{number}") for number in range(3 * MESSAGES)]
    filters = Filter(f"{topic}/+", 1), Filter(f"{topic}/back/+", 1)
    with scene.open(2, filters[0], topic_aliases=count) as peer, scene.open_other(0, filters[1]) as other:
        other.publish_all(wanted, 1)
        got = [(message.topic, message.text) for message in peer.messages.wait(len(wanted), "all of them")]
        expect(got == wanted, f"{got}")
        back = [(name.replace(topic, f"{topic}/back"), text) for name, text in wanted]
        for name, text in back:
            peer.publish(name, text, 1)
        got = [(message.topic, message.text) for message in other.messages.wait(len(back), "all of them back")]
        expect(got == back, f"back: {got}")


def options(scene):
    """No local, retain as published, retain handling 2."""
    topic = topic_of("options")
    with scene.open_other(1) as other:
        other.publish(topic, "retained", 1, retain=True)
        wanted = Filter(topic, 1, no_local=True, retain_as_published=True, retain_handling=2)
        with scene.open(0, wanted) as peer:
            if "publishes on the same connection" not in scene.client.lacks:
                peer.publish(topic, "own", 1)
            other.publish(topic, "other", 1, retain=True)
            message = peer.messages.wait(1, "the other's message")[0]
            expect((message.text, message.retain) == ("other", True), f"{message}")
        other.publish(topic, "", 1, retain=True)


def request(scene):
    """A request with response topic and correlation data is answered by another client."""
    topic, answers = topic_of("request"), topic_of("answer")
    with scene.open_other(2, Filter(topic, 1)) as responder:
        with scene.client.request(scene.nodes[0].address(scene.client.transport), topic, answers, "question") as asked:
            message = responder.messages.wait(1, "the request")[0]
            expect((message.text, message.properties["response_topic"]) == ("question", answers), f"{message}")
            correlation = message.properties.get("correlation")
            responder.publish(answers, "answer", 1, **({"correlation": correlation} if correlation else {}))
            expect(asked.answer() == ("answer", correlation), f"{asked.answer()}, not correlated with {correlation}")


class KeepAlive:
    """Without a word of the application a connection outlives its keep alive: opened first, looked at last."""

    def __init__(self, scene):
        self._scene, self._topic, self._peer = scene, topic_of("alive"), None

    def begin(self):
        """What goes wrong here is told by the step."""
        try:
            seconds = self._scene.client.keep_alive_s
            self._peer = self._scene.open(0, Filter(self._topic, 1), keep_alive_s=seconds)
            self._began = time.monotonic()
            self._complaint = ""
        except Failure as error:
            self._complaint = str(error)

    def step(self, scene):
        expect(self._peer, self._complaint)
        left = self._began + 1.5 * scene.client.keep_alive_s + 1 - time.monotonic()
        expect(self._peer.losses.stays_empty(max(left, 0)), f"lost: {self._peer.losses.items()}")
        with scene.open_other(1) as other:
            other.publish(self._topic, "still there", 1)
            expect(self._peer.texts(1, "a message") == ["still there"], "another message")
        expect(len(self._peer.connects.items()) == 1, "it has reconnected")

    def end(self):
        if self._peer:
            self._peer.abandon()


def certificate(scene):
    """The common name is the user; who shows no certificate, or a foreign one, stays outside where one is required."""
    name, node = name_of("certificate"), scene.nodes[0]
    with scene.open(0, Filter(topic_of("x"), 1), name=name):
        shown = eventually(f"{name} at {node.name}", lambda: node.client(name))
        expect(shown["username"] == CLIENT_NAME, f"the user is {shown['username']}")
    # Where a certificate is optional, who shows none is nobody; a foreign one is refused there too.
    refused = {"tls": ("foreign", None), "wss": ("foreign",)}[scene.client.transport]
    for shown in (one for one in refused if one in scene.client.shows):
        name = name_of("refused")
        try:
            scene.open(0, Filter(topic_of("x")), name=name, certificate=shown).abandon()
        except Refused:
            expect(node.client(name) is None, "refused, and yet there")
            continue
        raise Failure(f"connected with {shown or 'no'} certificate")


def qos(level):
    return lambda scene: crosses(scene, level)


# Name, what the client needs for it, the step.
STEPS = [
    ("connect", (), connect),
    ("qos0", (), qos(0)),
    ("qos1", (), qos(1)),
    ("qos2", ("qos2",), qos(2)),
    ("lower", (), lower_qos),
    ("retained", (), retained),
    ("will", (), will),
    ("session", (), resume),
    ("wildcard", (), wildcards),
    ("shared", (), shared),
    ("unsubscribe", ("unsubscribe",), unsubscribe),
    ("large", (), large),
    ("takeover", (), takeover),
    ("properties", ("5.0", "properties"), properties),
    ("options", ("5.0", "options"), options),
    ("window", ("5.0", "window"), window),
    ("alias", ("5.0", "alias"), alias),
    ("request", ("5.0", "request"), request),
    ("certificate", ("tls", "certificate"), certificate),
]
