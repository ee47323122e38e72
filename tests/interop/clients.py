"""Foreign clients, and our own, through the three nodes of one `flotte dev`. Usage: clients.py FLOTTE-BINARY."""

import sys

from harness import Cluster, Results, expect

import command_steps

try:
    import paho_steps
except ImportError as error:
    sys.exit(f"paho-mqtt is needed: {error}")


def main():
    (flotte,) = sys.argv[1:]
    results = Results()
    cluster = Cluster(flotte)
    try:
        results.step("flotte dev: three nodes become ready", cluster.wait_ready)
        if not results.failed:
            run(results, cluster)
        if results.failed:
            # The library's complaints about an absent peer would bury the rest.
            lines = [line for line in cluster.console().splitlines() if " openraft::" not in line]
            print("\n".join(f"      | {line}" for line in lines[-60:]))
    finally:
        cluster.close()
    print(f"interop/clients: {results.passed} passed, {results.failed} failed, {results.skipped} skipped")
    return 1 if results.failed else 0


def run(results, cluster):
    found = command_steps.programs(cluster.flotte)
    paho_steps.run(results, cluster)
    command_steps.run_steps(results, cluster, found)
    paho_steps.run_with_a_killed_node(results, cluster)
    command_steps.run_with_a_killed_node(results, cluster, found)
    results.step("a node that says it is ready takes clients", ready_is_ready, cluster)
    results.step("flotte dev: all nodes end with 0 at Ctrl-C", cluster.stop)


def ready_is_ready(cluster):
    expect(not cluster.early, f"/readyz was 200 before the listener was open, after restarts of {cluster.early}")


if __name__ == "__main__":
    sys.exit(main())
