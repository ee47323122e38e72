"""What the interop tests stand on: expectations, waiting for a condition, inboxes, names that no other step uses."""

import concurrent.futures
import threading
import time
import uuid

# How long anything may take; debug builds on busy machines are slow.
WAIT_SECONDS = 20


class Failure(Exception):
    """An expectation that did not hold."""


def expect(truth, text):
    if not truth:
        raise Failure(text)


def eventually(what, condition, seconds=WAIT_SECONDS):
    """Waits until `condition` returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failure(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def topic_of(what):
    """A topic that no other step uses."""
    return f"interop/{what}/{uuid.uuid4().hex[:8]}"


def name_of(what):
    """A client identifier that no other step uses; short enough for 3.1."""
    return f"{what[:12]}-{uuid.uuid4().hex[:8]}"


class Pool(concurrent.futures.ThreadPoolExecutor):
    """Threads that are waited for, unless the run is cut short: what they stand on goes away then."""

    def __exit__(self, kind, *_):
        self.shutdown(wait=kind is None, cancel_futures=True)


class Inbox:
    """What came, in order; filled by a client's own thread."""

    def __init__(self):
        self._changed = threading.Condition()
        self._items = []

    def put(self, item):
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def items(self):
        with self._changed:
            return list(self._items)

    def wait(self, count, what, seconds=WAIT_SECONDS):
        """The items, as soon as there are so many."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._items) >= count, seconds):
                raise Failure(f"{len(self._items)} of {count} within {seconds} s: {what}")
            return list(self._items)

    def wait_for(self, wanted, what, seconds=WAIT_SECONDS):
        """The first item that `wanted` takes, as soon as it is there."""
        with self._changed:
            if not self._changed.wait_for(lambda: any(wanted(item) for item in self._items), seconds):
                raise Failure(f"not within {seconds} s: {what}; there were {self._items[-5:]}")
            return next(item for item in self._items if wanted(item))

    def stays_empty(self, seconds):
        """Whether nothing comes for so long."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._items, seconds)
