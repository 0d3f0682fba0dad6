"""`split-brain show`: what each side changed, when each was Primary, what the policies say, as text and as
JSON.

Floor: outer, pure. Neighbours: split_brain.py (prints it), integrations/split_facts.py. For 80 columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from textwrap import fill
from typing import Any

from pydrbd.control.protocol import plain
from pydrbd.engine.generations import Verdict
from pydrbd.integrations.changed import byte_count
from pydrbd.integrations.history import clock
from pydrbd.integrations.split_facts import (
    CHANCE,
    NodeFacts,
    Pair,
    Policies,
    Turn,
    VolumeFacts,
    agreed,
    is_split,
    kept_by_policy,
    on_both,
    pairs,
    unfit,
    verdict,
)
from pydrbd.units import human_bytes
from pydrbd.vocabulary import AfterSb, Conn, Role

#: Files that the text names for each node; --json names more.
MOST_PATHS = 10
_NO_SPLIT = {
    Verdict.NO_SYNC: "changed on neither node",
    Verdict.SOURCE_BITMAP: "changed on {here} alone",
    Verdict.SOURCE_FULL: "changed on {here} alone",
    Verdict.TARGET_BITMAP: "changed on {there} alone",
    Verdict.TARGET_FULL: "changed on {there} alone",
    Verdict.UNRELATED: "no common past: these disks never belonged together",
    None: "no disk on one of the nodes",
}
#: What a resolution without a Primary could be left to.
_CANDIDATES = (AfterSb.ZERO_CHANGES, AfterSb.LEAST_CHANGES, AfterSb.YOUNGER_PRIMARY, AfterSb.OLDER_PRIMARY)


def text(here: NodeFacts, there: NodeFacts | None) -> str:
    """For people. Without `there`: this node's half."""
    lines = [*_headline(here, there), *_node(here, " (this node)")]
    if there is None:
        for volume in here.volumes:
            lines += ["", f"volume {volume.number} ({_size(volume)}):", *_changes(here, volume)]
        return "".join(f"{line}\n" for line in lines)
    lines += _node(there, "")
    for pair in pairs(here, there):
        lines += ["", *_volume(here, there, pair)]
    return "".join(f"{line}\n" for line in (*lines, "", *_policies(here, there), *_next(here, there)))


def _headline(here: NodeFacts, there: NodeFacts | None) -> Iterator[str]:
    if there is None:
        yield f"{here.resource}: what {here.node} knows; {here.peer} could not be asked"
    elif max(here.connection, there.connection) >= Conn.CONNECTED:
        yield f"{here.resource}: no split brain: the nodes are connected"
    elif any(is_split(*pair) for pair in pairs(here, there)):
        yield f"{here.resource}: split brain: both nodes have changed the data since they parted"
    else:
        yield f"{here.resource}: no split brain"


def _node(node: NodeFacts, which: str) -> Iterator[str]:
    yield ""
    yield f"{node.node}{which}: {node.role.word}, {node.connection.connection_word}"
    since = node.parted.when if node.parted else 0.0
    if node.parted is not None:
        yield _turn("parted", node.parted)
    turns = [turn for turn in node.roles if turn.when >= since]
    # Who was Primary when they parted was promoted before.
    earlier = [turn for turn in node.roles if turn.when < since]
    if earlier and earlier[-1].new == Role.PRIMARY.word:
        turns.insert(0, earlier[-1])
    for turn in turns:
        if turn.new == Role.PRIMARY.word:
            yield _turn("promoted", turn)
        elif turn.old == Role.PRIMARY.word:
            yield _turn("demoted", turn)
    if not turns:
        yield "  promoted  not since its history begins (a boot ends it)"


def _turn(word: str, turn: Turn) -> str:
    text = f"{word:<9} {clock(turn.when)[:19]}, {turn.why}"
    return fill(text, 80, initial_indent="  ", subsequent_indent=" " * 12)


def _size(volume: VolumeFacts) -> str:
    return human_bytes(volume.size) + (f", {volume.file_system}" if volume.file_system else "")


def _volume(here: NodeFacts, there: NodeFacts, pair: Pair) -> Iterator[str]:
    own, other = pair
    found = verdict(*pair)
    head = f"volume {own.number} ({_size(own)}): "
    if not is_split(*pair):
        yield head + _NO_SPLIT[found].format(here=here.node, there=there.node)
        return
    yield head + (
        "changed on both nodes"
        if found is Verdict.SPLIT_BRAIN
        else "parted more than once; all of it is copied, whatever is said below"
    )
    yield from _changes(here, own)
    yield from _changes(there, other)
    both = on_both(*pair)
    union = own.blocks + other.blocks - both
    yield f"  on both   {_amount(both, own.size)}; {_amount(union, own.size)} are overwritten"


def _changes(node: NodeFacts, volume: VolumeFacts) -> Iterator[str]:
    runs = len(volume.runs)
    yield (
        f"  {node.node:<9} {_amount(volume.blocks, volume.size)} in {runs} extent{'s' * (runs != 1)} changed"
    )
    shown = volume.paths[:MOST_PATHS]
    for path in shown:
        yield f"      {path}"
    if len(volume.paths) > len(shown):
        yield f"      and {len(volume.paths) - len(shown)} more (--json)"
    if volume.note and volume.blocks:
        yield f"      ({volume.note})"


def _amount(blocks: int, size: int) -> str:
    return f"{human_bytes(byte_count(blocks, size))} ({blocks} block{'s' * (blocks != 1)})"


# --- policies --------------------------------------------------------------------------------------


def _policies(here: NodeFacts, there: NodeFacts) -> Iterator[str]:
    split = [pair for pair in pairs(here, there) if is_split(*pair)]
    if not split:
        return
    primaries = (here.role is Role.PRIMARY, there.role is Role.PRIMARY)
    count = sum(primaries)
    name = f"after-sb-{count}pri"
    value = (here.policies.after_sb_0pri, here.policies.after_sb_1pri, here.policies.after_sb_2pri)[count]
    if not agreed(here.policies, there.policies):
        yield "policies: the after-sb options of the nodes differ; a connection is refused"
        return
    found = {kept_by_policy(here, there, pair, primaries, here.policies) for pair in split}
    yield f"policies: {name} {value} {_keeps(found)}"
    for policy in _CANDIDATES:
        others = Policies(policy, value, value, here.policies.always_asbp)
        said = {kept_by_policy(here, there, pair, (False, False), others) for pair in split}
        yield f"  {policy:<24} {_keeps(said)}"


def _keeps(found: set[str]) -> str:
    if len(found) > 1:
        return "would not decide alike for all volumes"
    (name,) = found
    if name == CHANCE:
        return "would keep either node's data, by chance"
    return f"would keep the data of {name}" if name else "decides nothing"


def _next(here: NodeFacts, there: NodeFacts) -> Iterator[str]:
    resource = here.resource
    if not any(is_split(*pair) for pair in pairs(here, there)):
        return
    yield ""
    for node in (here, there):
        if why := unfit(here, there, node.node):
            yield fill(f"--keep {node.node} is not possible now: {why}", 80, subsequent_indent="    ")
        else:
            yield f"to keep the data of {node.node}:"
            yield f"    pydrbd split-brain resolve {resource} --keep {node.node}"


def render_json(here: NodeFacts, there: NodeFacts | None) -> str:
    """The same as JSON: the facts of both nodes, and what follows from them."""
    values: dict[str, Any] = {"resource": here.resource, "nodes": [_node_values(here)]}
    if there is not None:
        values["nodes"].append(_node_values(there))
        primaries = (here.role is Role.PRIMARY, there.role is Role.PRIMARY)
        values["volumes"] = [
            {
                "number": pair[0].number,
                "verdict": found.value if (found := verdict(*pair)) else None,
                "split_brain": is_split(*pair),
                "blocks": [volume.blocks for volume in pair],
                "blocks_on_both": on_both(*pair),
                "kept_by_policy": kept_by_policy(here, there, pair, primaries, here.policies)
                if is_split(*pair)
                else "",
            }
            for pair in pairs(here, there)
        ]
    return json.dumps(values, indent=2) + "\n"


def _node_values(node: NodeFacts) -> dict[str, Any]:
    """A node's facts with states in words, and generations as `get-gi` has them."""
    values: dict[str, Any] = plain(node)
    values |= {"role": node.role.word, "connection": node.connection.connection_word}
    for volume, shown in zip(node.volumes, values["volumes"], strict=True):
        shown["disk"] = volume.disk.word
        if volume.generation is not None:
            shown["generation"] = {name: f"{value:016X}" for name, value in asdict(volume.generation).items()}
    return values
