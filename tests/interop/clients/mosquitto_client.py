"""mosquitto_sub, mosquitto_pub and mosquitto_rr: a process for each connection, and one more for each publish."""

import json
import signal
import subprocess
import threading

from harness import WAIT_SECONDS, Failure, expect, name_of, topic_of

from .base import RETRY_SECONDS, SESSION_SECONDS, Client, Message, Peer, complaint

VERSIONS = {"3.1": "mqttv31", "3.1.1": "mqttv311", "5.0": "mqttv5"}
# The names of the steps, those of the command line, and those of the output.
PROPERTIES = {
    "format": "payload-format-indicator",
    "expiry": "message-expiry-interval",
    "content_type": "content-type",
    "response_topic": "response-topic",
    "correlation": "correlation-data",
}


class MosquittoPeer(Peer):
    """mosquitto_sub, which tells with -d of each CONNACK and SUBACK; messages come as JSON, and in hex behind that."""

    def __init__(self, client, session):
        super().__init__(client)
        self._client, self._session = client, session
        self._address = session.addresses[0]
        # It has no mode without a subscription.
        filters = session.filters or [None]
        command = ["stdbuf", "-oL", "mosquitto_sub", "-d", "-F", "%j %x", *client.options(self._address, session)]
        command += ["-i", session.client_id, "-k", session.keep_alive_s, "-q", filters[0].qos if filters[0] else 0]
        for one in filters:
            command += ["-t", one.topic if one else topic_of("nothing")]
        if filters[0] and filters[0].identifier:
            command += ["-D", "subscribe", "subscription-identifier", filters[0].identifier]
        if session.keep:
            command += ["-c"] + (["-x", SESSION_SECONDS] if client.version == "5.0" else [])
        if session.receive_maximum:
            command += ["-D", "connect", "receive-maximum", session.receive_maximum]
        if session.will:
            will = session.will
            command += ["--will-topic", will.topic, "--will-payload", will.payload.decode(), "--will-qos", will.qos]
            command += ["--will-retain"] if will.retain else []
        self._command = [str(word) for word in command]
        self._closed = threading.Event()
        self._process = self._start()
        self._reader = threading.Thread(target=self._run, daemon=True)
        self._reader.start()

    def _start(self):
        return subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )

    def _run(self):
        """Starts it again when it ends by itself, as a supervisor does: it gives up when TLS is cut."""
        self._read()
        while len(self._session.addresses) > 1 and not self._closed.wait(RETRY_SECONDS):
            self._process.wait()
            self._process.stdout.close()
            self._process = self._start()
            self._read()

    def _read(self):
        last, attempts = "", 0
        for line in self._process.stdout:
            line = line.rstrip("\n")
            if line.startswith("{"):
                self.messages.put(message_of(line))
            elif line.startswith("Subscribed (mid: "):
                self._subscribed([int(code) for code in line.split(": ", 2)[2].split(", ")])
            elif line.endswith(" sending CONNECT"):
                # It says nothing of the end of a connection, but tries again.
                attempts += 1
                if attempts > 1:
                    self.tell_lost("it connects again")
            last = line or last
        self.tell_lost(f"mosquitto_sub has ended: {last}")

    def _subscribed(self, codes):
        why = complaint(self._session.filters, codes) if self._session.filters else None
        if why:
            self.tell_lost(why)
        else:
            self.tell_connected(None)

    def publish_all(self, pairs, qos=0, retain=False, **values):
        self._client.publish(self._address, pairs, qos, retain, values)

    def close(self):
        """Its handler sends a DISCONNECT."""
        self._closed.set()
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Failure("mosquitto_sub does not end at SIGINT") from error

    def abandon(self):
        self._closed.set()
        # The reader may be about to start it again; it ends with the process that it reads.
        while self._reader.is_alive():
            if self._process.poll() is None:
                self._process.kill()
            self._reader.join(RETRY_SECONDS)
        self._process.wait()
        self._process.stdout.close()


class MosquittoClient(Client):
    family = "mosquitto"
    lacks = {
        "alias": "mosquitto_sub takes no topic alias",
        "list": "mosquitto_sub knows one node",
        "unsubscribe": "mosquitto_sub unsubscribes at its start only",
        "takeover": "mosquitto_sub takes its session back, for ever",
        "options": "mosquitto_sub has no option for No Local",
    }
    keep_alive_s = 5
    # What a command line can hold.
    correlation = b"correlation 1"

    @property
    def closes_with_will(self):
        return self.version == "5.0"

    def open(self, session):
        return MosquittoPeer(self, session).wait_open()

    def options(self, address, session=None):
        """Where and how all three programs connect."""
        options = ["-V", VERSIONS[self.version]]
        options += ["--unix", address.path] if address.path else ["-h", address.host, "-p", address.port]
        if self.transport == "tls":
            options += ["--cafile", self.files.authority.cert]
            identity = self.certificate(session) if session else self.files.client
            options += ["--cert", identity.cert, "--key", identity.key] if identity else []
        return options

    def publish(self, address, pairs, qos, retain, values):
        """Lines of one topic in one process; anything else in a process for each."""
        command = ["mosquitto_pub", *self.options(address), "-i", name_of("pub"), "-q", qos, *(["-r"] if retain else [])]
        for name, value in values.items():
            for words in publish_options(name, value):
                command += ["-D", "publish", *words]
        if len(pairs) > 1 and len({topic for topic, _ in pairs}) == 1:
            run([*command, "-t", pairs[0][0], "-l"], "".join(f"{text}\n" for _, text in pairs).encode())
            return
        for topic, payload in pairs:
            octets = payload.encode() if isinstance(payload, str) else payload
            run([*command, "-t", topic, "-s" if octets else "-n"], octets)

    def request(self, address, topic, answers, text):
        return MosquittoRequest(self, address, topic, answers, text)


class MosquittoRequest:
    """mosquitto_rr: subscribes to the answers, sends the request, and prints the answer."""

    def __init__(self, client, address, topic, answers, text):
        command = ["mosquitto_rr", *client.options(address), "-i", name_of("rr"), "-q", 1, "-F", "%j %x"]
        command += ["-t", topic, "-e", answers, "-m", text, "-W", WAIT_SECONDS]
        command += ["-D", "publish", "correlation-data", client.correlation.decode()] if client.version == "5.0" else []
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )

    def answer(self):
        output, _ = self._process.communicate(timeout=WAIT_SECONDS)
        expect(self._process.returncode == 0, f"mosquitto_rr ended with {self._process.returncode}: {output}")
        message = message_of(output.strip())
        return message.text, message.properties.get("correlation")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def run(command, octets):
    command = [str(word) for word in command]
    done = subprocess.run(command, input=octets, capture_output=True, timeout=WAIT_SECONDS, check=False)
    expect(done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}: {done.stderr.decode()}")


def publish_options(name, value):
    if name == "user":
        return [["user-property", *pair] for pair in value]
    return [[PROPERTIES[name], value.decode() if isinstance(value, bytes) else value]]


def message_of(line):
    document, _, octets = line.rpartition(" ")
    fields = json.loads(document, strict=False, object_pairs_hook=pairs_or_dict)
    found = fields.get("properties") or {}
    values = {name: found[theirs] for name, theirs in PROPERTIES.items() if theirs in found}
    if "correlation" in values:
        values["correlation"] = values["correlation"].encode()
    if "user-properties" in found:
        values["user"] = list(found["user-properties"].items())
    if "subscription-identifier" in found:
        values["identifiers"] = [found["subscription-identifier"]]
    return Message(fields["topic"], bytes.fromhex(octets), fields["qos"], bool(fields["retain"]), False, values)


class Pairs(list):
    """An object of JSON whose names are not unique."""

    def items(self):
        return self


def pairs_or_dict(pairs):
    made = dict(pairs)
    return made if len(made) == len(pairs) else Pairs(pairs)
