"""A client of paho-mqtt that awaits what it asks for. Its network runs in a thread of its own, as applications use it."""

import threading
import uuid

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from harness import WAIT_SECONDS, Failure, Inbox, expect

V311, V5 = paho.MQTTv311, paho.MQTTv5
VERSIONS = {"3.1.1": V311, "5.0": V5}


def properties(packet, **values):
    """Properties of a packet of 5.0, by paho's names."""
    made = Properties(packet)
    for name, value in values.items():
        setattr(made, name, value)
    return made


PUBLISH, CONNECT, SUBSCRIBE = PacketTypes.PUBLISH, PacketTypes.CONNECT, PacketTypes.SUBSCRIBE


class Client:
    """Connected to one node when it is made; use as a context manager."""

    def __init__(self, node, version, client_id=None, keep_session=False, will=None, filters=()):
        self.node, self.version = node, version
        self.inbox, self.connects, self.disconnects = Inbox(), Inbox(), Inbox()
        self.session_present = None
        self._gone = False
        self._answers, self._answered = {}, threading.Condition()
        # Subscribed at every connect, as applications do that reconnect.
        self._filters = list(filters)
        self._keep_session = keep_session
        # paho takes clean_session for 3.1.1 only; 5.0 says it with the CONNECT.
        clean = {"clean_session": not keep_session} if version == V311 else {}
        self.paho = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id or f"paho-{uuid.uuid4().hex[:12]}",
            protocol=version,
            reconnect_on_failure=bool(filters),
            **clean,
        )
        self.paho.reconnect_delay_set(1, 1)
        self.paho.max_inflight_messages_set(100)
        self.paho.on_connect = self._on_connect
        # Only whether it was a DISCONNECT of the broker: paho drops a reason code that stands without properties.
        self.paho.on_disconnect = lambda _client, _data, flags, _reason, _properties: self.disconnects.put(flags)
        self.paho.on_message = lambda _client, _data, message: self.inbox.put(message)
        self.paho.on_subscribe = lambda _client, _data, mid, reasons, _properties: self._answer(mid, reasons)
        if will:
            self.paho.will_set(**will)

    def __enter__(self):
        start = {}
        if self.version == V5:
            start = {"clean_start": not self._keep_session}
            if self._keep_session:
                start["properties"] = properties(CONNECT, SessionExpiryInterval=300)
        self.paho.connect("127.0.0.1", self.node.mqtt, keepalive=30, **start)
        self.paho.loop_start()
        reason = self.connects.wait(1, "CONNACK")[0]
        expect(not reason.is_failure, f"CONNACK says {reason}")
        return self

    def __exit__(self, *_):
        if not self._gone:
            self.paho.disconnect()
            self.paho.loop_stop()

    def _on_connect(self, client, _data, flags, reason, _properties):
        self.session_present = flags.session_present
        for topic_filter, qos in self._filters:
            client.subscribe(topic_filter, qos)
        self.connects.put(reason)

    def _answer(self, mid, reasons):
        with self._answered:
            self._answers[mid] = reasons
            self._answered.notify_all()

    def subscribe(self, topic_filter, qos=0, **arguments):
        """Returns once the SUBACK has granted exactly this QoS."""
        _, mid = self.paho.subscribe(topic_filter, **({"qos": qos} | arguments))
        with self._answered:
            if not self._answered.wait_for(lambda: mid in self._answers, WAIT_SECONDS):
                raise Failure(f"no SUBACK for {topic_filter}")
            reasons = self._answers.pop(mid)
        granted = arguments["options"].QoS if "options" in arguments else qos
        expect([reason.value for reason in reasons] == [granted], f"{topic_filter}: granted {reasons}")
        return self

    def publish(self, topic, payload, qos=0, retain=False, **arguments):
        """Returns once the handshake of the QoS is complete."""
        self.publish_all([(topic, payload)], qos, retain, **arguments)

    def publish_all(self, messages, qos=0, retain=False, **arguments):
        """The same for many, which are under way at once."""
        under_way = [self.paho.publish(topic, text, qos, retain, **arguments) for topic, text in messages]
        for message in under_way:
            message.wait_for_publish(WAIT_SECONDS)
            expect(message.is_published(), f"a QoS {qos} publish was not answered")

    def vanish(self):
        """The connection ends without a DISCONNECT, as when the device loses its power."""
        self._gone = True
        self.paho.loop_stop()
        self.paho.socket().close()

    def texts(self, count, what):
        return [message.payload.decode() for message in self.inbox.wait(count, what)]
