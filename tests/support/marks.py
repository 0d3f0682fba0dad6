"""Blocks changed beneath a pair of nodes, and what the nodes say of them. Neighbour: cli.py (the pair)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pydrbd.runtime import launch
from tests.support.cli import MIB, CliNode, CliPair

BLOCK = 4096
#: Of the verify, such that one of 16 MiB takes two seconds.
SLOW = "disk { c-max-rate 8M; }"


def slow(pair: CliPair) -> None:
    """Let a verify of the pair, which is not up yet, take its time."""
    text = pair.alpha.config.read_text()
    pair.alpha.config.write_text(text.replace("net {", f"{SLOW} net {{", 1))


def rot(node: CliNode, *blocks: int) -> None:
    """Change blocks of 4 KiB beneath pydrbd."""
    with node.disks[0].open("r+b") as disk:
        for block in blocks:
            disk.seek(block * BLOCK)
            disk.write(b"rotten" + os.urandom(32))


def state(node: CliNode) -> tuple[str, str, int]:
    """Connection, replication, KiB out of sync, of volume 0."""
    (status,) = json.loads(node.ok("status", "--json", "r0"))
    connection = status["connections"][0]
    device = connection["peer_devices"][0]
    return connection["connection-state"], device["replication-state"], int(device["out-of-sync"])


def data(node: CliNode) -> bytes:
    """What a resource on disks of 16 MiB stores: the disk without its metadata."""
    return node.disks[0].read_bytes()[: 15 * MIB]


def log(node: CliNode) -> str:
    """The log of the node's process."""
    return launch.paths(node.run_dir, node.name, "r0").log_file.read_text()


@contextmanager
def running(node: CliNode, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`pydrbd ARGUMENTS` in a process of its own, which is ended in the end."""
    general = ["-c", str(node.config), "--node", node.name]
    process = subprocess.Popen(
        [sys.executable, "-m", "pydrbd.cli.main", *general, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
