"""What the steps need of a client, whoever wrote it."""

import base64
import dataclasses

from harness import WAIT_SECONDS, Failure, Inbox, name_of

# How long a session is kept that is to be resumed.
SESSION_SECONDS = 300
RETRY_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Filter:
    """One subscription; what follows the QoS is of 5.0."""

    topic: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0
    identifier: int = 0


@dataclasses.dataclass(frozen=True)
class Will:
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


@dataclasses.dataclass(frozen=True)
class Message:
    """As it came. Properties: format, expiry, content_type, response_topic, correlation, user, identifiers."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool = False
    properties: dict = dataclasses.field(default_factory=dict)

    @property
    def text(self):
        return self.payload.decode()


@dataclasses.dataclass(frozen=True)
class Session:
    """How a client is to connect: with a fresh session unless `keep`, subscribed to `filters`."""

    client_id: str
    # The first is where it connects; lost, it goes on to the next, round and round. One: it never reconnects.
    addresses: tuple
    filters: tuple = ()
    keep: bool = False
    will: Will | None = None
    keep_alive_s: int = 30
    # Of 5.0: how many QoS 1 and 2 messages may be under way to it, and how many topic aliases it takes; 0: not said.
    receive_maximum: int = 0
    topic_aliases: int = 0
    # "client", "foreign" (signed by nobody the broker knows) or none.
    certificate: str | None = "client"


class Refused(Failure):
    """The first attempt to connect has ended without a session."""


class Peer:
    """One connected client. Its inboxes fill from threads of its own."""

    def __init__(self, client):
        self._version = client.version
        self.messages = Inbox()
        # Whether a session was present, None where the client does not tell: once for each CONNACK whose filters are
        # acknowledged too.
        self.connects = Inbox()
        # Why a connection ended, as far as the client tells; once for each.
        self.losses = Inbox()
        self._opened = Inbox()

    def tell_connected(self, session_present):
        # The CONNACK of 3.1 has no such flag.
        self.connects.put(None if self._version == "3.1" else session_present)
        self._opened.put(True)

    def tell_lost(self, why):
        self.losses.put(str(why))
        self._opened.put(False)

    def wait_open(self):
        """Until the first attempt has an outcome; gives everything back where it is a bad one."""
        try:
            if not self._opened.wait(1, "an answer to CONNECT, and to SUBSCRIBE where there is one")[0]:
                raise Refused(f"not connected: {self.losses.items()}")
        except BaseException:
            self.abandon()
            raise
        return self

    @property
    def session_present(self):
        return self.connects.items()[0]

    def publish(self, topic, payload, qos=0, retain=False, **properties):
        """Returns once the handshake of the QoS is complete."""
        self.publish_all([(topic, payload)], qos, retain, **properties)

    def publish_all(self, pairs, qos=0, retain=False, **properties):
        """The same for many, which are under way at once."""
        raise NotImplementedError

    def unsubscribe(self, topic):
        """Returns once the UNSUBACK is there."""
        raise NotImplementedError

    def close(self):
        """Ends with a DISCONNECT, and forgets the client."""
        raise NotImplementedError

    def abandon(self):
        """Ends in whatever way; the line may be cut already."""
        self.close()

    def texts(self, count, what, seconds=WAIT_SECONDS):
        return [message.text for message in self.messages.wait(count, what, seconds)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.abandon()


class Client:
    """One row of the table."""

    family = ""
    # Features that the steps ask for, and why this client has not got them.
    lacks = {}
    # A short keep alive that it can ask for.
    keep_alive_s = 3
    # Every octet is allowed.
    correlation = b"\x00\x01\xff"

    # The certificates that it can be told to show.
    shows = ("client", "foreign", None)
    # Its DISCONNECT asks for the will: 0x04 in 5.0.
    closes_with_will = False

    def __init__(self, version, transport, files):
        self.version, self.transport, self.files = version, transport, files

    @property
    def title(self):
        return f"{self.family} {self.version} {self.transport}"

    def open(self, session):
        """A peer whose filters, if any, are acknowledged at exactly the QoS that was asked for."""
        raise NotImplementedError

    def request(self, address, topic, answers, text):
        """Sends a request whose answers are to go to another topic."""
        return Request(self, address, topic, answers, text)

    def why_not(self, features):
        """The first reason against these features."""
        for feature in features:
            if feature == "5.0" and self.version != "5.0":
                return "not in this version of MQTT"
            if feature == "tls" and self.transport not in ("tls", "wss"):
                return "not over this transport"
            if feature in self.lacks:
                return self.lacks[feature]
        return None

    def certificate(self, session):
        """The identity that is shown, if any."""
        return {"client": self.files.client, "foreign": self.files.foreign, None: None}[session.certificate]


class Request:
    """Under way; `answer` waits for the text and the correlation data of the answer."""

    def __init__(self, client, address, topic, answers, text):
        self._peer = client.open(Session(name_of(client.family), (address,), (Filter(answers, 1),)))
        self._peer.publish(topic, text, 1, response_topic=answers, correlation=client.correlation)

    def answer(self):
        message = self._peer.messages.wait(1, "the answer")[0]
        return message.text, message.properties.get("correlation")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._peer.abandon()


def complaint(filters, codes):
    """What is wrong with the reason codes of a SUBACK, if anything is."""
    wanted, got = [one.qos for one in filters], list(codes)
    return None if got == wanted else f"SUBACK says {got}, not {wanted}"


def encoded(value):
    """For JSON: bytes as base64."""
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def decoded(value):
    return base64.b64decode(value)
