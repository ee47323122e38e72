"""Clients that others wrote, through three nodes: each client takes each step, and a table tells the results.

Usage: interop.py FLOTTE-BINARY [--only TEXT]   (only rows whose title contains the text)
Programs and packages are found by environment variables that `run` sets; what is not there is a counted skip."""

import os
import signal
import sys

import bridges
import own_steps
import rounds
from clients.paho_client import PahoClient
from cluster import Cluster
from families import TRANSPORTS, Families
from harness import Failure, Pool, expect
from steps import STEPS, KeepAlive, Scene
from table import Table

# Rows under way at once: they wait as much as they work.
ROWS = 6
KEEP_ALIVE = "keepalive"


def main():
    flotte, *more = sys.argv[1:]
    only = more[1] if more else ""
    # The time limit ends this with SIGTERM: everything is given back then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    table = Table([*(name for name, _, _ in STEPS), KEEP_ALIVE, rounds.STEP])
    try:
        with Cluster(flotte, TRANSPORTS) as cluster, Families(table, cluster) as families:
            rows = [client for client in families.rows() if only in client.title]
            run(table, cluster, rows, only)
            table.check("three nodes end with 0 at SIGTERM", cluster.stop)
            if table.failed:
                print("\n".join(cluster.logs(40)))
    except Failure as error:
        table.check("three nodes and the clients start", expect, False, str(error))
    table.check("every client has a result in every step", lambda: expect(not table.missing(), table.missing()))
    print("\n".join(table.lines()))
    print(f"interop/clients: {table.passed} passed, {table.failed} failed, {table.skipped} skipped")
    return 1 if table.failed else 0


def run(table, cluster, rows, only):
    other = PahoClient("5.0", "tcp", cluster.certificates)
    with Pool(ROWS) as pool:
        whole = [] if only else [own_steps, bridges]
        taken = [pool.submit(steps.run_steps, table, cluster) for steps in whole]
        for place, client in enumerate(rows):
            turned = tuple(cluster.nodes[(place + offset) % len(cluster.nodes)] for offset in range(len(cluster.nodes)))
            taken.append(pool.submit(take_row, table, Scene(client, other, turned)))
        for row in taken:
            row.result()
    rounds.run(table, cluster, rows, other)


def take_row(table, scene):
    alive = KeepAlive(scene)
    alive.begin()
    try:
        for name, needs, step in STEPS:
            if reason := scene.client.why_not((*needs, name)):
                table.cannot(scene.client.title, name, scene.client.family, reason)
            else:
                table.take(scene.client.title, name, step, scene)
        table.take(scene.client.title, KEEP_ALIVE, alive.step, scene)
    finally:
        alive.end()


if __name__ == "__main__":
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    # Threads that were cut short may still wait for something.
    os._exit(code)
