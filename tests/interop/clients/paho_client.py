"""paho-mqtt (Python). Its network runs in a thread of its own, as applications use it."""

import itertools
import ssl
import threading

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from cluster import WS_PATH
from harness import WAIT_SECONDS, Failure, expect

from .base import RETRY_SECONDS, SESSION_SECONDS, Client, Message, Peer, complaint

VERSIONS = {"3.1": paho.MQTTv31, "3.1.1": paho.MQTTv311, "5.0": paho.MQTTv5}
PROPERTIES = {
    "format": "PayloadFormatIndicator",
    "expiry": "MessageExpiryInterval",
    "content_type": "ContentType",
    "response_topic": "ResponseTopic",
    "correlation": "CorrelationData",
    "user": "UserProperty",
    "identifiers": "SubscriptionIdentifier",
}


def properties(packet, **values):
    """Properties of a packet of 5.0, by paho's names; None where there are none."""
    made = Properties(packet)
    for name, value in values.items():
        setattr(made, name, value)
    return made if values else None


class PahoPeer(Peer):
    def __init__(self, client, session):
        super().__init__(client)
        self._client, self._session = client, session
        self._addresses = itertools.cycle(session.addresses)
        self._answers, self._answered = set(), threading.Condition()
        # Of the newest CONNACK: whether a session was present, and the SUBSCRIBE that follows.
        self._present = self._subscribe_id = None
        self.paho = self._make()

    def _make(self):
        session, version, transport = self._session, VERSIONS[self._client.version], self._client.transport
        # paho takes clean_session for 3.x only; 5.0 says it with the CONNECT.
        clean = {} if version == paho.MQTTv5 else {"clean_session": not session.keep}
        made = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            session.client_id,
            protocol=version,
            transport={"ws": "websockets", "wss": "websockets", "unix": "unix"}.get(transport, "tcp"),
            reconnect_on_failure=len(session.addresses) > 1,
            **clean,
        )
        made.reconnect_delay_set(RETRY_SECONDS, RETRY_SECONDS)
        made.max_inflight_messages_set(100)
        made.on_connect, made.on_disconnect = self._on_connect, self._on_disconnect
        made.on_message = lambda _client, _data, message: self.messages.put(message_of(message))
        made.on_subscribe = self._on_subscribe
        made.on_unsubscribe = lambda _client, _data, mid, _codes, _properties: self._answer(mid)
        if transport in ("ws", "wss"):
            made.ws_set_options(path=WS_PATH)
        if transport in ("tls", "wss"):
            identity = self._client.certificate(session)
            shown = (str(identity.cert), str(identity.key)) if identity else (None, None)
            made.tls_set(str(self._client.files.authority.cert), *shown, cert_reqs=ssl.CERT_REQUIRED)
        if session.will:
            made.will_set(session.will.topic, session.will.payload, session.will.qos, session.will.retain)
        return made

    def start(self):
        session, start = self._session, {}
        if self._client.version == "5.0":
            start = {"clean_start": not session.keep}
            said = {"SessionExpiryInterval": SESSION_SECONDS} if session.keep else {}
            if session.receive_maximum:
                said["ReceiveMaximum"] = session.receive_maximum
            start["properties"] = properties(PacketTypes.CONNECT, **said)
        address = next(self._addresses)
        try:
            self.paho.connect(address.path or address.host, address.port or 1, session.keep_alive_s, **start)
        except OSError as error:
            self.tell_lost(error)
        self.paho.loop_start()
        return self.wait_open()

    def _on_connect(self, _client, _data, flags, reason, _properties):
        self._present = flags.session_present
        if reason.is_failure:
            self.tell_lost(f"CONNACK says {reason}")
        elif self._session.filters:
            self._subscribe_id = self._subscribe()
        else:
            self.tell_connected(self._present)

    def _on_subscribe(self, _client, _data, mid, codes, _properties):
        if mid != self._subscribe_id:
            self.tell_lost(f"SUBACK for {mid}, not {self._subscribe_id}")
        elif why := complaint(self._session.filters, [code.value for code in codes]):
            self.tell_lost(why)
        else:
            self.tell_connected(self._present)

    def _on_disconnect(self, client, _data, flags, reason, _properties):
        told = "DISCONNECT of the broker" if flags.is_disconnect_packet_from_server else "lost"
        if len(self._session.addresses) > 1:
            # paho has no list of its own: the application names the next node.
            address = next(self._addresses)
            client.connect_async(address.path or address.host, address.port or 1, self._session.keep_alive_s)
        self.tell_lost(f"{told}: {reason}")

    def _subscribe(self):
        filters = self._session.filters
        if self._client.version != "5.0":
            return self.paho.subscribe([(one.topic, one.qos) for one in filters])[1]
        options = [
            (one.topic, SubscribeOptions(one.qos, one.no_local, one.retain_as_published, one.retain_handling))
            for one in filters
        ]
        identifier = filters[0].identifier
        made = properties(PacketTypes.SUBSCRIBE, **({"SubscriptionIdentifier": identifier} if identifier else {}))
        return self.paho.subscribe(options, properties=made)[1]

    def _answer(self, mid):
        with self._answered:
            self._answers.add(mid)
            self._answered.notify_all()

    def publish_all(self, pairs, qos=0, retain=False, **values):
        made = properties(PacketTypes.PUBLISH, **{PROPERTIES[name]: value for name, value in values.items()})
        arguments = {"properties": made} if made else {}
        under_way = [self.paho.publish(topic, payload, qos, retain, **arguments) for topic, payload in pairs]
        for message in under_way:
            message.wait_for_publish(WAIT_SECONDS)
            expect(message.is_published(), f"a QoS {qos} publish was not answered")

    def unsubscribe(self, topic):
        _, mid = self.paho.unsubscribe(topic)
        with self._answered:
            if not self._answered.wait_for(lambda: mid in self._answers, WAIT_SECONDS):
                raise Failure("no UNSUBACK")

    def close(self):
        self.paho.disconnect()
        self.paho.loop_stop()


def message_of(message):
    values = {}
    for name, theirs in PROPERTIES.items():
        value = getattr(getattr(message, "properties", None), theirs, None)
        if value is not None:
            values[name] = value
    return Message(message.topic, message.payload, message.qos, message.retain, message.dup, values)


class PahoClient(Client):
    family = "paho"
    lacks = {"alias": "paho takes no topic alias"}

    def open(self, session):
        return PahoPeer(self, session).start()
