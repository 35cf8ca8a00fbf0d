"""Moving a slot of a cluster from one node to another, as an operator does it."""

from __future__ import annotations

from standpipe.keyspace import slot
from tests.servers.fleet import TestCluster, TestServer


def begin_move(cluster: TestCluster, key: str, target: TestServer) -> None:
    """Mark the key's slot as on its way; its keys are still where they were."""
    source = cluster.node_of(key)
    ids = {node: node.command("CLUSTER", "MYID") for node in (source, target)}
    target.command("CLUSTER", "SETSLOT", slot(key), "IMPORTING", ids[source])
    source.command("CLUSTER", "SETSLOT", slot(key), "MIGRATING", ids[target])


def end_move(cluster: TestCluster, key: str, target: TestServer) -> None:
    """Carry the slot's keys over and tell all nodes."""
    source, number = cluster.node_of(key), slot(key)
    while keys := source.command("CLUSTER", "GETKEYSINSLOT", number, 100):
        source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 10_000, "KEYS", *keys)
    owner = target.command("CLUSTER", "MYID")
    for node in (target, source, *cluster.nodes):
        node.command("CLUSTER", "SETSLOT", number, "NODE", owner)


def move_slot(cluster: TestCluster, key: str, target: TestServer) -> None:
    """Both."""
    begin_move(cluster, key, target)
    end_move(cluster, key, target)
