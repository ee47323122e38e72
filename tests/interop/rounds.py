"""The step that needs a node to die: clients that know all nodes lose theirs to kill -9, and go on at another.

There is a round for each node. All clients of a round lose their node at the same moment; it is started again before
the next round."""

import threading

from clients.base import Filter, Session
from harness import Failure, Pool, expect, name_of, topic_of

STEP = "reconnect"
# For all clients of a round together, while the cluster is one node short.
ROUND_SECONDS = 60


class Gate:
    """Opens when so many have come to it."""

    def __init__(self, count):
        self._changed, self._count, self._there = threading.Condition(), count, set()

    def arrive(self, who):
        """Once or more often."""
        with self._changed:
            self._there.add(who)
            self._changed.notify_all()

    def wait(self):
        with self._changed:
            return self._changed.wait_for(lambda: len(self._there) >= self._count, ROUND_SECONDS)


class Round:
    """What happens to one node, and to the clients that are on it."""

    def __init__(self, cluster, place, count):
        nodes = cluster.nodes
        self.nodes = [nodes[(place + offset) % len(nodes)] for offset in range(len(nodes))]
        self.prepared, self.gone_on = Gate(count), Gate(count)
        self._killed, self._restarted = threading.Event(), threading.Event()

    def play(self, cluster):
        """The part of the node; the clients play theirs meanwhile."""
        try:
            self.prepared.wait()
            cluster.kill(self.nodes[0], self._killed.set)
            self.gone_on.wait()
            cluster.restart(self.nodes[0])
            self._restarted.set()
        finally:
            self._killed.set()
            self._restarted.set()

    def wait_killed(self):
        expect(self._killed.wait(ROUND_SECONDS), "the node was not killed")

    def wait_restarted(self):
        expect(self._restarted.wait(2 * ROUND_SECONDS), "the node was not started again")


def run(table, cluster, rows, other):
    nodes = len(cluster.nodes)
    for place in range(nodes):
        victims = rows[place::nodes]
        if not victims:
            continue
        turn = Round(cluster, place, len(victims))
        with Pool(len(victims)) as pool:
            taken = [pool.submit(take_row, table, turn, client, other) for client in victims]
            name = f"{turn.nodes[0].name} is killed with {len(victims)} clients on it, and started again"
            table.check(name, turn.play, cluster)
            for row in taken:
                row.result()


def take_row(table, turn, client, other):
    try:
        if reason := client.why_not((STEP,)):
            table.cannot(client.title, STEP, client.family, reason)
        elif "list" in client.lacks:
            table.take(client.title, STEP, comes_back, turn, client, other)
        else:
            table.take(client.title, STEP, goes_on, turn, client, other)
    finally:
        turn.prepared.arrive(client)
        turn.gone_on.arrive(client)


def goes_on(turn, client, other):
    """It has a list of nodes, and goes to another when its own is dead."""
    topic = topic_of("reconnect")
    home, _, third = turn.nodes
    addresses = tuple(node.address(client.transport) for node in turn.nodes)
    session = Session(name_of(client.family), addresses, (Filter(f"{topic}/to", 1),))
    with client.open(session) as peer, witness_at(third, topic, other) as witness:
        witness.publish(f"{topic}/to", "before", 1)
        peer.messages.wait(1, "a message before")
        expect(home.client(session.client_id), f"not at {home.name}")
        turn.prepared.arrive(client)
        turn.wait_killed()
        peer.losses.wait(1, "the end of the connection")
        peer.connects.wait(2, "a second connection")
        expect(any(node.client(session.client_id) for node in turn.nodes[1:]), "at no other node")
        talk(peer, witness, topic, 2)
        turn.gone_on.arrive(client)
        turn.wait_restarted()
        talk(peer, witness, topic, 3)
        expect(witness.losses.items() == [], "a client of another node was cut off")
    fresh_at(home, client, witness_at(third, topic, other), topic)


def comes_back(turn, client, other):
    """It knows one node only, and comes back to that; what is published meanwhile goes through another."""
    topic = topic_of("reconnect")
    home, second, third = turn.nodes
    address = home.address(client.transport)
    session = Session(name_of(client.family), (address, address), (Filter(f"{topic}/to", 1),))
    with client.open(session) as peer, witness_at(third, topic, other) as witness:
        witness.publish(f"{topic}/to", "before", 1)
        peer.messages.wait(1, "a message before")
        turn.prepared.arrive(client)
        turn.wait_killed()
        fresh_at(second, client, witness_at(third, topic, other), topic)
        turn.gone_on.arrive(client)
        turn.wait_restarted()
        try:
            peer.connects.wait(2, "a second connection")
        except Failure as error:
            raise Failure(f"{error}; it said {peer.losses.items()}") from error
        talk(peer, witness, topic, 2)


def witness_at(node, topic, other):
    address = node.address(other.transport)
    return other.open(Session(name_of("witness"), (address,), (Filter(f"{topic}/from", 1),)))


def talk(peer, witness, topic, count):
    """Both ways; it is the `count`th message that the peer gets."""
    text = f"number {count}"
    witness.publish(f"{topic}/to", text, 1)
    expect(peer.texts(count, text)[count - 1] == text, "another message")
    peer.publish(f"{topic}/from", text, 1)
    witness.messages.wait_for(lambda message: message.text == text, "the answer")


def fresh_at(node, client, opened, topic):
    """A new client at this node, which is the killed one or serves without it."""
    session = Session(name_of("fresh"), (node.address(client.transport),), (Filter(f"{topic}/to", 1),))
    with opened as witness, client.open(session) as fresh:
        try:
            talk(fresh, witness, topic, 1)
        except Failure as error:
            raise Failure(f"a new client at {node.name}: {error}") from error
