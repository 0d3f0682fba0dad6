"""What the three entry points share: errors and exit codes, and passing work on to pydrbd's own commands.

Floor: outer. Neighbours: cli/main.py, imported only when a command is really passed on.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

from pydrbd.compat.getopt import BadOption
from pydrbd.errors import PydrbdError, with_notes


class Ended(Exception):
    """The command ends here with `code`; `text` goes to stderr."""

    def __init__(self, code: int, text: str = "") -> None:
        self.code, self.text = code, text
        super().__init__(text)


def say(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(text + "\n")


def out(text: str) -> None:
    """A line on stdout."""
    sys.stdout.write(text + "\n")


def pydrbd(
    arguments: Sequence[str],
    *,
    config: str = "",
    node: str = "",
    running: bool = False,
    errors: list[PydrbdError] | None = None,
) -> int:
    """The exit code of `pydrbd ARGUMENTS`, run in this process; `running`: without the configuration. What
    it prints as errors is added to `errors`."""
    from pydrbd.cli.main import run

    general = [*(("-c", config) if config else ()), *(("--node", node) if node else ())]
    general += ["--running"] if running else []
    sys.stdout.flush()
    return run([*general, *arguments], errors)


def plain(options: Sequence[str]) -> list[str]:
    """`options` as pydrbd's commands take them: their flags stand without a value, or not at all."""
    return [option.removesuffix("=yes") for option in options if not option.endswith("=no")]


def implements(verb: str) -> bool:
    """Whether pydrbd has a command of that name."""
    from pydrbd.cli.main import VERBS

    return verb in VERBS


def guarded(program: str, usage_code: int, hint: str, work: Callable[[], int]) -> int:
    """The exit code of `work`, with every expected error printed as `program` would."""
    try:
        code = work()
        sys.stdout.flush()
    except BadOption as error:
        say(f"{error}\n{hint}")
        return usage_code
    except Ended as end:
        if end.text:
            say(end.text)
        return end.code
    except PydrbdError as error:
        say(with_notes(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # As in cli/main.py: a reader that went away is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("PYDRBD_DEBUG") == "1":
            raise
        say(
            f"{program}: internal error: {type(error).__name__}: {error}; please report it, with the "
            "output of the same command under PYDRBD_DEBUG=1"
        )
        return 20
    return code
