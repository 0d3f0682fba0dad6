"""Fuzzes one target in this process: `python -m tests.fuzz.child TARGET [libFuzzer's options and folders]`.

Neighbours: harness (targets and limits), __main__ (starts this). libFuzzer never returns: the process
ends with 0, or with another code after a finding, which it has written to -artifact_prefix.
"""

from __future__ import annotations

import resource
import shlex
import sys
from pathlib import Path

import atheris

from tests.fuzz import harness


def limit_address_space() -> None:
    """More than harness.ADDRESS_SPACE on top of what is there ends in a MemoryError: a finding."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + harness.ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def main() -> None:
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["pydrbd", "tests.fuzz.planted"]):
        target = harness.load(name)
    # libFuzzer starts itself anew to merge corpora, by the words of argv[0] in a shell.
    again = f"{shlex.quote(sys.executable)} -m tests.fuzz.child {name}"
    atheris.Setup([again, *options], harness.within_limits(target.one))
    limit_address_space()
    atheris.Fuzz()


if __name__ == "__main__":
    main()
