"""Online verify in a swarm run: blocks that rot beneath the engine, and what must be said of them.

Floor: sim. Neighbours: checker.py (hears every OV_RESULT), scenario.py. Rotten blocks are planted where no
client ever writes or reads, so nothing else depends on them. Three rules:
- what is reported as different is rotten: writes in flight never are;
- what is reported as equal is not rotten;
- in the end a verify without faults finds all that is still rotten, both nodes mark it, and a
  reconnect with a Primary repairs it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine import admin
from pydrbd.engine.engine import Engine
from pydrbd.engine.options import EngineOptions
from pydrbd.sim import peek
from pydrbd.sim.clock import Process, Violation
from pydrbd.sim.disk import BLOCK, ZERO_BLOCK
from pydrbd.sim.history import Write, payload
from pydrbd.sim.steps import Steps
from pydrbd.units import MIB, SECTOR
from pydrbd.vocabulary import Conn, Disk
from pydrbd.wire.packets import OV_DIFFERENT, OV_EQUAL, OvResult

if TYPE_CHECKING:
    from pydrbd.sim.node import Node
    from pydrbd.sim.world import World

VERIFY_ACTIONS: dict[str, int] = {"verify": 6}
#: Numbers from here on are contents that no client has written.
ROTTEN = 1 << 41
#: Bytes that are compared at once on a large device.
_MOST = 2 * MIB
_PER_BLOCK = BLOCK // SECTOR


def draw_verify(seed: int) -> tuple[str, ...]:
    """The actions that are switched on in a swarm seed."""
    return tuple(VERIFY_ACTIONS) if random.Random(f"verify {seed}").random() < 0.5 else ()


def with_algorithms(seed: int, options: EngineOptions) -> EngineOptions:
    """The node's options with the seed's algorithms; a few have no verify-alg, and refuse."""
    rng = random.Random(f"digests {seed}")
    return replace(
        options,
        verify_alg=rng.choice(("crc32c", "crc32c", "crc32c", "md5", "sha1", "")),
        csums_alg=rng.choice(("crc32c", "sha1", "", "")),
        csums_after_crash_only=rng.random() < 0.2,
        data_integrity_alg=rng.choice(("crc32c", "", "", "", "", "")),
    )


class Rotten:
    """The planted blocks of one world, and the judgement of what a verify says of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: Blocks that differ because they were planted; nothing covers them.
        self.blocks: set[int] = set()
        self._number = ROTTEN

    def plant(self, node: Node, blocks: list[int]) -> None:
        """Change blocks of a node's disk, durably, beneath the engine."""
        for block in blocks:
            self._number += 1
            # Nobody has written it, so nothing newer is lost when it is overwritten.
            self._world.checker.writes[self._number] = Write(self._number, node.name, "write", 0, 0, -1, -1)
            self.blocks.add(block)
            node.disk._put(block, payload(self._number, block * _PER_BLOCK, _PER_BLOCK), cached=False)
            self._world.counts["rotten blocks"] += 1

    def judge(self, name: str, packet: OvResult) -> None:
        """OV_RESULT leaves the node `name`."""
        first = packet.sector * SECTOR // BLOCK
        blocks = range(first, -(-(packet.sector * SECTOR + packet.size) // BLOCK))
        rotten = self.blocks.intersection(blocks)
        if packet.block_id == OV_DIFFERENT:
            self._world.counts["verify finds"] += 1
            if not rotten:
                raise Violation("verify", f"{name} reports {blocks} as different, and they are not")
        elif packet.block_id == OV_EQUAL:
            self._world.counts["verify compares"] += len(blocks)
            if rotten:
                raise Violation("verify", f"{name} reports block {min(rotten)} as equal, and it is rotten")


class VerifyActions(Steps):
    """The actions of VERIFY_ACTIONS, and what the end of a run demands."""

    _agree: Callable[[], Process]

    def _do_verify(self) -> Process:
        node = self.rng.choice(self.nodes)
        yield from self._wait(self._good, self.rng.choice((0.0, 3.0, 10.0)))
        if not node.up:
            return
        rotten, free = self.world.checker.rotten, self._free_blocks()
        in_step = self._good() and not any(self._verifies(n) for n in self.nodes)
        if in_step and free and node.options.verify_alg and self.rng.random() < 0.7:
            at = self.rng.randrange(len(free))
            blocks = [b for b in free[at : at + self.rng.randint(1, 4)] if self._may_rot(b)]
            rotten.plant(self.rng.choice(self.nodes), blocks)
        start, stop = self._part()
        yield from self._command(node, "verify", lambda e: admin.verify(e, e.volumes[0], start, stop))
        if self.rng.random() < 0.6:
            yield from self._wait(lambda: not self._verifies(node), self.rng.choice((0.1, 1.0, 10.0)))

    def _part(self) -> tuple[int | None, int]:
        """What a verify looks at: all of a small device, a part of a large one."""
        size, rotten = self.world.profile.size, sorted(self.world.checker.rotten.blocks)
        if size <= _MOST:
            return self.rng.choice((None, 0, 0, self.rng.randrange(size))), self.rng.choice((0, 0, size // 2))
        # Where clients write, or around what is there to be found.
        middle = self.world.workload.some_spot() * SECTOR
        if rotten and self.rng.random() < 0.5:
            middle = self.rng.choice(rotten) * BLOCK
        start = max(0, middle - self.rng.randrange(_MOST))
        return start, start + _MOST

    def _free_blocks(self) -> range:
        """Blocks in front of everything that clients touch, or far behind it."""
        return self.world.workload.untouched()

    def _may_rot(self, block: int) -> bool:
        content = [node.disk.blocks.get(block, ZERO_BLOCK) for node in self.nodes]
        fresh = all(block not in node.disk.cached for node in self.nodes)
        return content == [ZERO_BLOCK] * 2 and fresh

    def _good(self) -> bool:
        return all(
            n.up and self._conn(n) >= Conn.CONNECTED and self._disk(n) == Disk.UP_TO_DATE for n in self.nodes
        )

    def _verifies(self, node: Node) -> bool:
        return self._conn(node) in (Conn.VERIFY_S, Conn.VERIFY_T)

    # --- the end ----------------------------------------------------------------------------------
    def _repair(self) -> Process:
        """No faults any more: what is rotten is found, marked by both and repaired."""
        rotten = self.world.checker.rotten
        while rotten.blocks:
            node = self.rng.choice(self.nodes)
            low, high = min(rotten.blocks) * BLOCK, (min(rotten.blocks) + 1) * BLOCK + _MOST
            wanted = [block for block in rotten.blocks if low <= block * BLOCK < high]
            sessions = self._sessions()
            yield from self._command(node, "verify", lambda e: admin.verify(e, e.volumes[0], low, high))  # noqa: B023
            yield from self._until(
                lambda: not any(self._verifies(n) for n in self.nodes), "the end of a verify"
            )
            if self._sessions() != sessions:
                # The last partition may be noticed only now.
                yield from self._agree()
                continue
            for block in wanted:
                for each in self.nodes:
                    if each.engine is None or not peek.bit(each.engine, 0, block):
                        raise Violation("verify", f"{each.name} has not marked the rotten block {block}")
            yield from self._meet_again()
            left = rotten.blocks.intersection(wanted)
            if left:
                raise Violation("verify", f"a reconnect has not repaired block {min(left)}")

    def _sessions(self) -> list[object]:
        return [node.engine.session if node.engine else None for node in self.nodes]

    def _meet_again(self) -> Process:
        """Disconnect and connect with a Primary, whose data then count."""
        if self.world.primary() is None:
            yield from self._command(self.rng.choice(self.nodes), "promote", _promote)
        for node in self.nodes:
            yield from self._command(node, "disconnect", _disconnect)
        yield from self._agree()


def _promote(engine: Engine) -> object:
    return engine.promote()


def _disconnect(engine: Engine) -> object:
    return engine.disconnect(False)
