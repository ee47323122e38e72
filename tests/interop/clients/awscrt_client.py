"""awscrt (AWS Common Runtime, C behind Python): its client of 3.1.1 and its client of 5.0.

Neither has a list of nodes: the application makes a client for the next node when the connection is lost."""

import itertools
import threading

import awscrt.exceptions
from awscrt import io, mqtt, mqtt5

from harness import WAIT_SECONDS, Failure, expect

from .base import RETRY_SECONDS, SESSION_SECONDS, Client, Message, Peer, complaint

PLACES = {
    "format": "payload_format_indicator",
    "expiry": "message_expiry_interval_sec",
    "content_type": "content_type",
    "response_topic": "response_topic",
    "correlation": "correlation_data_bytes",
    "user": "user_properties",
    "identifiers": "subscription_identifiers",
}
# The library would go back to the node that is lost: the application is faster.
OWN_RETRY_SECONDS = 120


class AwsPeer(Peer):
    """What both have in common: the round of nodes."""

    def __init__(self, client, session):
        super().__init__(client)
        self._client, self._session = client, session
        self._addresses = itertools.cycle(session.addresses)
        self._closed, self._lost_now = threading.Event(), False
        # Of the client in use: one that was lost, and is left for another, has nothing more to say, not even that it ends.
        self._turn = 0
        self._telling, self._moves = threading.Lock(), threading.Lock()

    def start(self):
        self._go()
        return self.wait_open()

    def _go(self):
        """A client for the next address."""
        raise NotImplementedError

    def _lost(self, turn, why):
        moves = len(self._session.addresses) > 1
        with self._telling:
            if self._closed.is_set() or turn != self._turn:
                return
            self._lost_now = True
            self._turn += moves
        self.tell_lost(why)
        if moves:
            # Not in the thread of the library, which the old client needs to end.
            threading.Thread(target=self._move, daemon=True).start()

    def _move(self):
        with self._moves:
            if not self._closed.wait(RETRY_SECONDS):
                self._leave()
                self._lost_now = False
                self._go()

    def _leave(self):
        """The client that has lost its connection ends."""
        raise NotImplementedError

    def close(self):
        if not self._closed.is_set():
            self._closed.set()
            self._end()

    def _end(self):
        """With a DISCONNECT."""
        raise NotImplementedError

    def _tls(self):
        if self._client.transport != "tls":
            return None
        identity, files = self._client.certificate(self._session), self._client.files
        if identity:
            options = io.TlsContextOptions.create_client_with_mtls_from_path(str(identity.cert), str(identity.key))
        else:
            options = io.TlsContextOptions()
        options.override_default_trust_store_from_path(None, str(files.authority.cert))
        return io.ClientTlsContext(options)

    def _socket_options(self):
        options = io.SocketOptions()
        if self._client.transport == "unix":
            options.domain = io.SocketDomain.Local
        return options


class Aws5Peer(AwsPeer):
    def _go(self):
        session, address, connect, turn = self._session, next(self._addresses), {}, self._turn
        if session.will:
            will = session.will
            connect["will"] = mqtt5.PublishPacket(will.payload, mqtt5.QoS(will.qos), will.retain, will.topic)
        behaviour = mqtt5.ClientSessionBehaviorType
        stopped = threading.Event()
        self._stopped = stopped
        self._aws = mqtt5.Client(
            mqtt5.ClientOptions(
                host_name=address.path or address.host,
                port=address.port,
                socket_options=self._socket_options(),
                tls_ctx=self._tls(),
                connect_options=mqtt5.ConnectPacket(
                    client_id=session.client_id,
                    keep_alive_interval_sec=session.keep_alive_s,
                    session_expiry_interval_sec=SESSION_SECONDS if session.keep else 0,
                    receive_maximum=session.receive_maximum or None,
                    **connect,
                ),
                topic_aliasing_options=aliasing(session.topic_aliases) if session.topic_aliases else None,
                session_behavior=behaviour.REJOIN_ALWAYS if session.keep else behaviour.CLEAN,
                min_reconnect_delay_ms=OWN_RETRY_SECONDS * 1000,
                max_reconnect_delay_ms=OWN_RETRY_SECONDS * 1000,
                ping_timeout_ms=ping_timeout_ms(session),
                # Half of what this library says of its users in the user name is not for us.
                disable_metrics=True,
                on_publish_callback_fn=lambda data: self.messages.put(message_of_5(data.publish_packet)),
                on_lifecycle_event_stopped_fn=lambda _data: stopped.set(),
                on_lifecycle_event_connection_success_fn=lambda data: self._on_connected(turn, data),
                on_lifecycle_event_connection_failure_fn=lambda data: self._lost(turn, data.exception),
                on_lifecycle_event_disconnection_fn=lambda data: self._lost(turn, data.exception),
            )
        )
        self._aws.start()

    def _on_connected(self, turn, data):
        if turn != self._turn:
            return
        present, filters = data.connack_packet.session_present, self._session.filters
        if not filters:
            self.tell_connected(present)
            return
        wanted = [
            mqtt5.Subscription(
                one.topic,
                mqtt5.QoS(one.qos),
                one.no_local,
                one.retain_as_published,
                mqtt5.RetainHandlingType(one.retain_handling),
            )
            for one in filters
        ]
        under_way = self._aws.subscribe(mqtt5.SubscribePacket(wanted, filters[0].identifier or None))
        under_way.add_done_callback(lambda future: self._on_subscribed(turn, future, present))

    def _on_subscribed(self, turn, future, present):
        if error := future.exception():
            self._lost(turn, error)
        elif why := complaint(self._session.filters, [code.value for code in future.result().reason_codes]):
            self._lost(turn, why)
        else:
            self.tell_connected(present)

    def publish_all(self, pairs, qos=0, retain=False, **values):
        made = {PLACES[name]: value for name, value in values.items()}
        if "format" in values:
            made["payload_format_indicator"] = mqtt5.PayloadFormatIndicator(values["format"])
        if "user" in values:
            made["user_properties"] = [mqtt5.UserProperty(name, value) for name, value in values["user"]]
        packets = [mqtt5.PublishPacket(payload, mqtt5.QoS(qos), retain, topic, **made) for topic, payload in pairs]
        for under_way in [self._aws.publish(packet) for packet in packets]:
            answer = under_way.result(WAIT_SECONDS).puback
            # 0x10: no matching subscribers.
            expect(qos == 0 or answer.reason_code.value in (0, 0x10), f"PUBACK says {answer}")

    def unsubscribe(self, topic):
        self._aws.unsubscribe(mqtt5.UnsubscribePacket([topic])).result(WAIT_SECONDS)

    def _end(self):
        with self._moves:
            reason = mqtt5.DisconnectReasonCode.NORMAL_DISCONNECTION
            self._aws.stop(mqtt5.DisconnectPacket(reason))
            if not self._stopped.wait(WAIT_SECONDS):
                raise Failure("the client does not stop")

    def _leave(self):
        self._aws.stop()
        self._stopped.wait(WAIT_SECONDS)


class Aws311Peer(AwsPeer):
    def _go(self):
        session, address, turn = self._session, next(self._addresses), self._turn
        will = session.will
        self._aws = mqtt.Connection(
            mqtt.Client(tls_ctx=self._tls()),
            address.path or address.host,
            address.port,
            session.client_id,
            clean_session=not session.keep,
            on_connection_interrupted=lambda error, **_: self._lost(turn, error),
            reconnect_min_timeout_secs=OWN_RETRY_SECONDS,
            reconnect_max_timeout_secs=OWN_RETRY_SECONDS,
            keep_alive_secs=session.keep_alive_s,
            ping_timeout_ms=ping_timeout_ms(session),
            will=mqtt.Will(will.topic, mqtt.QoS(will.qos), will.payload, will.retain) if will else None,
            socket_options=self._socket_options(),
            disable_metrics=True,
        )
        connection = self._aws
        connection.on_message(self._on_message)
        connection.connect().add_done_callback(lambda future: self._on_connect(turn, future))

    def _on_connect(self, turn, future):
        if error := future.exception():
            self._lost(turn, error)
        elif turn == self._turn:
            self._connected(turn, future.result()["session_present"])

    def _connected(self, turn, present):
        filters = self._session.filters
        if not filters:
            self.tell_connected(present)
            return
        granted = {}

        def note(place, future):
            granted[place] = 0x80 if future.exception() else future.result()["qos"]
            if len(granted) < len(filters):
                return
            # This client has a SUBSCRIBE for each filter.
            if why := complaint(filters, [granted[place] for place in range(len(filters))]):
                self._lost(turn, why)
            else:
                self.tell_connected(present)

        for place, one in enumerate(filters):
            under_way, _ = self._aws.subscribe(one.topic, mqtt.QoS(one.qos))
            under_way.add_done_callback(lambda future, place=place: note(place, future))

    def _on_message(self, topic, payload, dup, qos, retain, **_):
        self.messages.put(Message(topic, bytes(payload), int(qos), retain, dup))

    def publish_all(self, pairs, qos=0, retain=False, **values):
        expect(not values, "properties in 3.1.1")
        for under_way in [self._aws.publish(topic, payload, mqtt.QoS(qos), retain)[0] for topic, payload in pairs]:
            under_way.result(WAIT_SECONDS)

    def unsubscribe(self, topic):
        self._aws.unsubscribe(topic)[0].result(WAIT_SECONDS)

    def _end(self):
        with self._moves:
            if self._lost_now:
                self._leave()
            else:
                self._aws.disconnect().result(WAIT_SECONDS)

    def _leave(self):
        """Not waited for: the old client answers only when it would connect again, and gives up then."""
        try:
            self._aws.disconnect()
        except (awscrt.exceptions.AwsCrtError, RuntimeError):
            pass  # It has given up already.


def ping_timeout_ms(session):
    """It has to be shorter than the keep alive."""
    return session.keep_alive_s * 1000 - 500


def aliasing(count):
    """Both ways."""
    outbound, inbound = mqtt5.OutboundTopicAliasBehaviorType.LRU, mqtt5.InboundTopicAliasBehaviorType.ENABLED
    return mqtt5.TopicAliasingOptions(outbound, count, inbound, count)


def message_of_5(packet):
    values = {}
    for name, theirs in PLACES.items():
        value = getattr(packet, theirs)
        if value:
            values[name] = value
    if "user" in values:
        values["user"] = [(one.name, one.value) for one in values["user"]]
    return Message(packet.topic, bytes(packet.payload or b""), int(packet.qos), packet.retain, False, values)


class AwsClient(Client):
    family = "awscrt"
    lacks = {"qos2": "awscrt publishes no QoS 2"}

    def open(self, session):
        return {"5.0": Aws5Peer, "3.1.1": Aws311Peer}[self.version](self, session).start()
