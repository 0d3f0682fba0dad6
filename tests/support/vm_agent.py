"""In a guest of vm_pair.py: takes commands from the second serial line and answers them, one at a time.

A line is "TAG pydrbd WORDS" (a pydrbd command, run in this process: starting Python takes seconds under
emulation) or "TAG sh TEXT" (a line of shell). The answer is its output and a line "@TAG EXITCODE".
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shlex
import subprocess

from pydrbd.cli.main import run
from pydrbd.runtime import launch

LINE = "/dev/ttyS1"
#: Seconds that a process may take to start: emulated, and on a host that may be busy with all other tests.
START_LIMIT = 250.0


def answer(kind: str, text: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    if kind == "sh":
        done = subprocess.run(
            ["bash", "-c", text], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = run(shlex.split(text))
    return code, output.getvalue()


def main() -> None:
    os.environ["PYDRBD_SUPERVISOR"] = "no"  # nothing here dies alone, and two more Pythons are slow to start
    launch.start = functools.partial(launch.start, timeout=START_LIMIT)
    with open(LINE) as line:
        print("@ready 0", flush=True)
        for command in line:
            tag, kind, text = command.rstrip("\n").split(" ", 2)
            if kind == "end":
                return
            code, output = answer(kind, text)
            print(
                output + ("" if output.endswith("\n") or not output else "\n") + f"@{tag} {code}", flush=True
            )


if __name__ == "__main__":
    main()
