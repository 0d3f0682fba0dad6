"""Sequences of commands and failures on a pair of engines, each step run to its rest before the next.

`explore` draws one from a seed, `replay` runs a given one, `minimise` takes steps out of one that fails: any
part of a sequence is one too. Neighbours: sequence_run.py (what the steps do, what is checked); the simulator
proper (pydrbd.sim) looks for races.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from tests.support.sequence_cut import CUT, CutRun
from tests.support.sequence_run import Run, Step
from tests.support.sequence_several import COUNTED, SeveralRun
from tests.support.sequence_volume import SequenceError
from tests.support.sequence_wider import WIDER, options_of

#: Actions (`Run._do_NAME`) and how often each is drawn.
ACTIONS: dict[str, int] = {
    "promote": 6,
    "demote": 4,
    "write": 8,
    "write_other": 5,
    "flush": 4,
    "detach": 4,
    "attach": 6,
    "fail": 4,
    "mend": 4,
    "disconnect": 3,
    "connect": 5,
    "sever": 4,
    "heal": 5,
    "crash": 4,
    "start": 8,
    "power": 4,
    "invalidate": 2,
    "invalidate_remote": 2,
    "outdate": 1,
    "pause": 2,
    "resume": 2,
}


#: Those that make sense with several volumes only.
OF_SEVERAL: dict[str, int] = {"start_half": 4, "flap": 8, "burst": 8}
#: Those that are about the whole node or its connection; the others are about one of its volumes.
OF_THE_NODE = {
    *("promote", "demote", "disconnect", "connect", "sever", "heal", "crash", "start", "power"),
}


def parameters(seed: int) -> dict[str, Any]:
    return {"kernel": seed % 3 == 0, "reads_fail": seed % 2 == 0, "lossy": seed % 5 < 2}


def explore(
    seed: int, most: int = 9, *, wider: bool = False, cut: bool = False
) -> tuple[list[Step], str, Run]:
    """Draw a sequence and run it: its steps, and what is wrong ("": nothing).

    `wider`: WIDER as well; `cut`: CUT besides.
    """
    rng = random.Random(f"sequence {seed}")
    run = CutRun(options=options_of(seed), **parameters(seed)) if wider or cut else Run(**parameters(seed))
    actions: dict[str, float] = {**ACTIONS, **(WIDER if wider or cut else {}), **(CUT if cut else {})}
    names, weights = list(actions), list(actions.values())
    steps: list[Step] = []

    def draw() -> None:
        # Most begin with a Primary, whose first write counts.
        if rng.random() < 0.7:
            steps.append(("promote", 0))
            run.do(steps[-1])
        length = rng.randint(3, most)
        while len(steps) < length:
            step = (rng.choices(names, weights)[0], rng.randrange(2))
            if run.can(step):
                steps.append(step)
                run.do(step)
        run.finish()

    return steps, _verdict_of(draw), run


def explore_several(seed: int, most: int = 12, volumes: int = 2) -> tuple[list[Step], str, Run]:
    """The same for several volumes."""
    rng = random.Random(f"sequence {seed} of {volumes} volumes")
    run = SeveralRun(volumes, **parameters(seed))
    weights = _weights_of_several(rng)
    # One of the volumes sees most of the steps, as the others see what is done to the node.
    often = (rng.randrange(volumes), rng.choice((0.0, 0.5, 0.8)))
    steps: list[Step] = [("promote", 0)] if rng.random() < 0.7 else []

    def draw() -> None:
        for step in steps:
            run.do(step)
        length = rng.randint(3, most)
        while len(steps) < length:
            step = (rng.choices(list(weights), list(weights.values()))[0], rng.randrange(2))
            if step[0] not in OF_THE_NODE:
                at = often[0] if rng.random() < often[1] else rng.randrange(volumes)
                step = (*step[:2], rng.randrange(2, 24) if step[0] in COUNTED else at)
            if run.can(step):
                steps.append(step)
                run.do(step)
        run.finish()

    return steps, _verdict_of(draw), run


def _weights_of_several(rng: random.Random) -> dict[str, int]:
    """There is more to draw from: some of it is not in a sequence at all, and some again and again."""
    needed = ("promote", "write", "crash", "start")
    actions = (ACTIONS | OF_SEVERAL).items()
    return {name: often * max(rng.choice((0, 1, 1, 4)), name in needed) for name, often in actions}


def replay(
    steps: Iterable[Step], options: dict[str, Any] | None = None, volumes: int = 1, **parameters: Any
) -> tuple[str, Run]:
    """Run these steps: what is wrong ("": nothing). `options`: of both engines."""
    several = volumes > 1
    run = SeveralRun(volumes, **parameters) if several else CutRun(options=options, **parameters)

    def go() -> None:
        for step in steps:
            run.do(step)
        run.finish()

    return _verdict_of(go), run


def _verdict_of(go: Callable[[], None]) -> str:
    try:
        go()
    except SequenceError as error:
        return str(error)
    except Exception as error:  # whatever the engine raises is a finding
        return f"raises {error!r}"
    return ""


def minimise(
    steps: Iterable[Step], options: dict[str, Any] | None = None, **parameters: Any
) -> tuple[list[Step], str]:
    """Take steps out as long as something is wrong."""
    left = list(steps)
    wrong = replay(left, options, **parameters)[0]
    again = True
    while again:
        again = False
        for index in range(len(left)):
            fewer = left[:index] + left[index + 1 :]
            verdict = replay(fewer, options, **parameters)[0]
            if verdict[:12] == wrong[:12]:
                left, wrong, again = fewer, verdict, True
                break
    return left, wrong
