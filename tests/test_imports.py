"""The floors: which module may import which, how large files and functions may be, what stays unloaded.

The rules are the table FLOORS below, read from the source text (AST), so that an import inside
a function or under TYPE_CHECKING counts as well. See docs/architecture.md for their reasons.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pydrbd"
SOURCES = sorted((*PACKAGE.rglob("*.py"), *(ROOT / "nbd_plugin").rglob("*.py")))

#: A file has one subject and a function fits on a screen. These are the outer limits, in lines.
MOST_FILE_LINES = 450
MOST_FUNCTION_LINES = 80
MOST_PLUGIN_LINES = 150


@dataclass(frozen=True)
class Floor:
    """`modules` (dotted beginnings) may import the floors named in `may_use`, and nothing of `never`."""

    modules: tuple[str, ...]
    may_use: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


#: What a deterministic engine must not touch: threads, sockets, files, clock, randomness, logging.
# fmt: off
IMPURE = (
    "_thread", "asyncio", "concurrent", "datetime", "fcntl", "io", "logging", "mmap", "multiprocessing", "os",
    "pathlib", "queue", "random", "secrets", "select", "selectors", "shutil", "signal", "socket",
    "subprocess", "tempfile", "threading", "time", "uuid", "uvloop",
)
# fmt: on

FLOORS = {
    "words": Floor(
        (
            "pydrbd",
            "pydrbd.advice",
            "pydrbd.errors",
            "pydrbd.units",
            "pydrbd.vocabulary",
            "pydrbd.version",
            "pydrbd.config",
        ),
        never=("asyncio", "uvloop", "threading"),
    ),
    "format": Floor(("pydrbd.format",), ("words",), never=(*IMPURE, "lark")),
    "wire": Floor(("pydrbd.wire",), ("words", "format"), never=(*IMPURE, "lark")),
    "engine": Floor(("pydrbd.engine",), ("words", "format", "wire"), never=(*IMPURE, "lark")),
    "runtime": Floor(("pydrbd.runtime", "pydrbd.hotpath"), ("words", "format", "wire", "engine")),
    "sim": Floor(
        ("pydrbd.sim",),
        ("words", "format", "wire", "engine"),
        never=("threading", "socket", "asyncio", "uvloop"),
    ),
    "control": Floor(("pydrbd.control",), ("words",), never=("uvloop", "asyncio")),
    "outer": Floor(
        (
            "pydrbd.integrations",
            "pydrbd.mapping",
            "pydrbd.metadata_probe",
            "pydrbd.metadata_tool",
            "pydrbd.node",
            "pydrbd.node_options",
            "pydrbd.node_verbs",
            "pydrbd.supervisor",
            "pydrbd.cli",
            "pydrbd.compat",
            "nbd_plugin",
        ),
        ("words", "format", "wire", "engine", "runtime", "control"),
    ),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> str:
    """The floor with the longest beginning that fits; "" if none does."""
    fits = [
        (len(prefix), name)
        for name, floor in FLOORS.items()
        for prefix in floor.modules
        if module == prefix or (module.startswith(prefix + ".") and prefix != "pydrbd")
    ]
    return max(fits)[1] if fits else ""


def imports(path: Path) -> list[tuple[int, str]]:
    """All imported modules of a file with their lines; `from a import b` gives a.b (b may be a module)."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{origin}.{alias.name}") for alias in node.names]
    return found


def broken_rules(path: Path) -> list[str]:
    """The file's breaches of the floor rules, each as `file:line: what`."""
    module = module_name(path)
    own = floor_of(module)
    place = path.relative_to(ROOT)
    if not own:
        return [f"{place}: stands on no floor; add {module} to FLOORS in {Path(__file__).name}"]
    floor = FLOORS[own]
    found = []
    for line, name in imports(path):
        target = floor_of(name)
        if target and target != own and target not in floor.may_use:
            found.append(f"{place}:{line}: {own} must not import {name} ({target})")
        if any(name == never or name.startswith(never + ".") for never in floor.never):
            found.append(f"{place}:{line}: {own} must not import {name}")
    return found


def offending(lines: list[str]) -> str:
    return "\n  ".join(["", *lines])


def test_modules_import_only_from_the_floors_below() -> None:
    broken = [breach for path in SOURCES for breach in broken_rules(path)]
    assert not broken, offending(broken)


def test_the_rules_notice_a_breach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    cases = {
        "engine/a.py": ("import time\n", "engine must not import time"),
        "engine/b.py": (
            "def f():\n    from pydrbd.runtime import driver\n",
            "engine must not import pydrbd.runtime",
        ),
        "sim/c.py": (
            "from ..runtime.driver import Driver\n",
            "sim must not import pydrbd.runtime.driver.Driver",
        ),
        "runtime/d.py": ("import pydrbd.sim.world\n", "runtime must not import pydrbd.sim.world"),
        "units.py": ("from pydrbd import engine\n", "words must not import pydrbd.engine"),
        "wire/e.py": ("from os import path\n", "wire must not import os.path"),
        "novelty.py": ("", "stands on no floor"),
        "engine/fine.py": ("from pydrbd.wire import packets\nfrom . import a\nimport dataclasses\n", ""),
    }
    for name, (text, wanted) in cases.items():
        path = tmp_path / "pydrbd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        found = broken_rules(path)
        assert (wanted in found[0]) if wanted else not found, (name, found)


def test_files_and_functions_keep_their_size() -> None:
    large = []
    for path in SOURCES:
        text, place = path.read_text(), path.relative_to(ROOT)
        length = len(text.splitlines())
        limit = MOST_PLUGIN_LINES if place.parts[0] == "nbd_plugin" else MOST_FILE_LINES
        if length > limit:
            large.append(f"{place}: {length} lines, at most {limit}")
        large += [
            f"{place}:{node.lineno}: {node.name} has {(node.end_lineno or 0) - node.lineno + 1} lines,"
            f" at most {MOST_FUNCTION_LINES}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES
        ]
    assert not large, offending(large)


def test_every_module_says_what_it_is_and_nothing_is_left_to_do() -> None:
    open_ends = []
    for path in SOURCES:
        text, place = path.read_text(), path.relative_to(ROOT)
        if text.strip() and not ast.get_docstring(ast.parse(text)):
            open_ends.append(f"{place}: no docstring")
        open_ends += [
            f"{place}:{number}: {line.strip()}"
            for number, line in enumerate(text.splitlines(), 1)
            if any(word in line for word in ("TODO", "FIXME", "XXX"))
        ]
    assert not open_ends, offending(open_ends)


def loaded_by(statement: str) -> set[str]:
    """The modules in sys.modules of a fresh interpreter after `statement`."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_status_and_the_other_commands_do_not_load_the_event_loop() -> None:
    """A command only talks to the control socket; the loop belongs to the resource's process."""
    loaded = loaded_by("import pydrbd.cli.main, pydrbd.integrations, pydrbd.control.client")
    assert "pydrbd.cli.main" in loaded
    assert not loaded & {"uvloop", "asyncio", "pydrbd.runtime.link", "pydrbd.sim"}


def test_a_whole_status_command_does_not_load_the_event_loop(tmp_path: Path) -> None:
    """Imports inside functions as well: run the command, here on a configuration without resources."""
    config = tmp_path / "empty.conf"
    config.write_text("global { usage-count no; }\n")
    arguments = ["pydrbd", "-c", str(config), "status"]
    loaded = loaded_by(
        f"sys.argv = {arguments!r}\n"
        "from pydrbd.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass"
    )
    assert not loaded & {"uvloop", "asyncio"}


def test_optimised_python_is_refused() -> None:
    run = subprocess.run(
        [sys.executable, "-O", "-c", "import pydrbd"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode != 0
    assert "assertions guard data" in run.stderr
