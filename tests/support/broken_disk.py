"""Answers of a disk that has failed, for `Bench.hook`."""

from __future__ import annotations

from pydrbd.engine.orders import (
    DigestBlocks,
    FlushDisk,
    IoFailed,
    Order,
    ReadBlocks,
    WriteBlocks,
    WriteMeta,
    ZeroBlocks,
)


def writes_fail(order: Order) -> object:
    touches = isinstance(order, WriteBlocks | ZeroBlocks | WriteMeta | FlushDisk)
    return IoFailed(5, "broken") if touches else NotImplemented


def all_fails(order: Order) -> object:
    touches = isinstance(order, ReadBlocks | DigestBlocks)
    return IoFailed(5, "broken") if touches else writes_fail(order)
