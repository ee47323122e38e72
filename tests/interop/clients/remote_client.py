"""Clients that live in another process and are told what to do by lines of JSON: MQTT.js in Node and in Chromium, rumqttc.

A request is {"id", "op", "peer", ...} and has one answer, {"id"} or {"id", "error"}. What happens to a peer is told as
{"peer", "event": "connected" | "lost" | "message", ...}. Payloads and correlation data are base64."""

import itertools
import json
import subprocess
import threading

from cluster import WS_PATH
from harness import WAIT_SECONDS, Failure

from .base import RETRY_SECONDS, SESSION_SECONDS, Client, Message, Peer, decoded, encoded

END_SECONDS = 10
START_SECONDS = 60


class Driver:
    """The process. One for all rows of a family; its peers are told apart by number."""

    def __init__(self, command, environment=None):
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            bufsize=1,
            env=environment,
        )
        self._lock, self._answered = threading.Lock(), threading.Condition()
        self._numbers, self._answers, self._peers = itertools.count(1), {}, {}
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_started(self):
        self.call("hello", seconds=START_SECONDS)
        return self

    def add(self, peer):
        number = next(self._numbers)
        self._peers[number] = peer
        return number

    def call(self, operation, seconds=WAIT_SECONDS, **arguments):
        """Sends a request and waits for its answer."""
        number = next(self._numbers)
        with self._lock:
            self._process.stdin.write(json.dumps({"id": number, "op": operation, **arguments}) + "\n")
        with self._answered:
            if not self._answered.wait_for(lambda: number in self._answers or self._ended, seconds):
                raise Failure(f"no answer to {operation} within {seconds} s")
            if number not in self._answers:
                raise Failure("the process of the client has ended")
            error = self._answers.pop(number)
        if error:
            raise Failure(f"{operation}: {error}")

    def close(self):
        """The end of its input ends it, and all its peers."""
        try:
            self._process.stdin.close()
            self._process.wait(END_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def _read(self):
        for line in self._process.stdout:
            told = json.loads(line)
            if "event" in told:
                if peer := self._peers.get(told["peer"]):
                    peer.handle(told)
                continue
            with self._answered:
                self._answers[told["id"]] = told.get("error")
                self._answered.notify_all()
        with self._answered:
            self._ended = True
            self._answered.notify_all()
        for peer in list(self._peers.values()):
            peer.tell_lost("the process of the client has ended")


class RemotePeer(Peer):
    def __init__(self, client, driver, session):
        super().__init__(client)
        self._driver = driver
        self._number = driver.add(self)
        files, identity = client.files, client.certificate(session)
        self._call(
            "open",
            version=client.version,
            transport=client.transport,
            client_id=session.client_id,
            addresses=[{"host": one.host, "port": one.port, "path": one.path or WS_PATH} for one in session.addresses],
            filters=[vars(one) for one in session.filters],
            session_s=SESSION_SECONDS if session.keep else 0,
            will=session.will and vars(session.will) | {"payload": encoded(session.will.payload)},
            keep_alive_s=session.keep_alive_s,
            receive_maximum=session.receive_maximum,
            topic_aliases=session.topic_aliases,
            retry_ms=int(RETRY_SECONDS * 1000),
            ca=str(files.authority.cert),
            cert=identity and str(identity.cert),
            key=identity and str(identity.key),
        )

    def _call(self, operation, **arguments):
        self._driver.call(operation, peer=self._number, **arguments)

    def handle(self, told):
        if told["event"] == "connected":
            self.tell_connected(told["present"])
        elif told["event"] == "lost":
            self.tell_lost(told["why"])
        else:
            values = {name: value for name, value in told["properties"].items() if value is not None}
            if "correlation" in values:
                values["correlation"] = decoded(values["correlation"])
            if "user" in values:
                values["user"] = [tuple(pair) for pair in values["user"]]
            payload = decoded(told["payload"])
            self.messages.put(Message(told["topic"], payload, told["qos"], told["retain"], told["dup"], values))

    def publish_all(self, pairs, qos=0, retain=False, **values):
        if "correlation" in values:
            values["correlation"] = encoded(values["correlation"])
        messages = [{"topic": topic, "payload": encoded(payload)} for topic, payload in pairs]
        self._call("publish", messages=messages, qos=qos, retain=retain, properties=values)

    def unsubscribe(self, topic):
        self._call("unsubscribe", topic=topic)

    def close(self):
        self._call("close")

    def abandon(self):
        """The driver forgets the peer, without a DISCONNECT."""
        self._call("abandon")


class RemoteClient(Client):
    def __init__(self, version, transport, files, driver):
        super().__init__(version, transport, files)
        self._driver = driver

    def open(self, session):
        return RemotePeer(self, self._driver, session).wait_open()


class NodeClient(RemoteClient):
    family = "mqtt.js"


class ChromiumClient(RemoteClient):
    family = "chromium"
    # Its policy knows one.
    shows = ("client",)


class RumqttcClient(RemoteClient):
    family = "rumqttc"
    # It resolves an alias after the application has the packet.
    lacks = {"alias": "rumqttc tells an empty topic"}
    keep_alive_s = 5
