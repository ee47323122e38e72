"""The table of an interop run: what each client did in each step, and the counts."""

import collections
import os
import subprocess
import threading
import time
import traceback

from harness import Failure

OK, FAILED, NOT = "ok", "FAIL", "-"


class Table:
    """Rows are clients, columns are steps; a cell says passed, failed, or that the client cannot take the step, and why."""

    def __init__(self, steps):
        self._steps, self._rows = list(steps), {}
        self._lock = threading.Lock()
        self._seconds = collections.Counter()
        self.passed = self.failed = self.skipped = 0
        # How often each reason stands for a step that a client cannot take.
        self.reasons = collections.Counter()

    def take(self, row, step, test, *arguments):
        """Runs a step of a client and notes its result."""
        seconds, complaint = attempt(test, *arguments)
        with self._lock:
            self._rows.setdefault(row, {})[step] = FAILED if complaint else OK
            self._seconds[step] += seconds
        self._count(f"{row}: {step}", seconds, complaint)

    def check(self, name, test, *arguments):
        """The same for what belongs to no client; returns whether it passed."""
        seconds, complaint = attempt(test, *arguments)
        self._count(name, seconds, complaint)
        return not complaint

    def cannot(self, row, step, family, reason):
        """The client has no means for this step."""
        with self._lock:
            self._rows.setdefault(row, {})[step] = NOT
            self.reasons[f"{family}, {step}: {reason}"] += 1

    def skip(self, reason):
        """What could not be run at all: counted by `tests/run`, which allows only so many."""
        with self._lock:
            self.skipped += 1
            print(f"skip         {reason}", flush=True)
            if path := os.environ.get("FLOTTE_SKIPS"):
                with open(path, "a", encoding="utf-8") as skips:
                    skips.write(f"skip: interop: {reason}\n")

    def _count(self, name, seconds, complaint):
        with self._lock:
            self.passed += not complaint
            self.failed += bool(complaint)
            text = f"FAIL {seconds:6.2f}s  {name}: {complaint}" if complaint else f"ok   {seconds:6.2f}s  {name}"
            print(text, flush=True)

    def missing(self):
        """Cells that nothing was told about: there must be none."""
        return [f"{row}: {step}" for row, cells in self._rows.items() for step in self._steps if step not in cells]

    def lines(self):
        """The whole table, to be read by people."""
        width = max(map(len, self._rows), default=0)
        yield " " * width + "  " + " ".join(self._steps)
        for row, cells in self._rows.items():
            told = (cells.get(step, "?").ljust(len(step)) for step in self._steps)
            yield f"{row:{width}}  {' '.join(told)}".rstrip()
        yield f"{'seconds':{width}}  " + " ".join(f"{self._seconds[step]:.0f}".ljust(len(step)) for step in self._steps)
        for reason, count in sorted(self.reasons.items()):
            yield f"- {count:3} x  {reason}"


def attempt(test, *arguments):
    """How long it took, and what was wrong, if anything was."""
    began = time.monotonic()
    complaint = None
    try:
        test(*arguments)
    except (Failure, OSError, subprocess.SubprocessError, ValueError, LookupError, RuntimeError) as error:
        # What is no expectation of ours says where it comes from.
        complaint = str(error) if isinstance(error, Failure) else traceback.format_exc().rstrip()
    return time.monotonic() - began, complaint
