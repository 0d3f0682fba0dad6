"""Fuzz target: configuration files of any bytes, and all that reads what they say.

Contract: `load` gives a Config or raises ConfigError, which names a file that was read, a line and a
column that are in it, and is printable text; so does everything that works on a Config (`for_node`,
`require_implemented`, `resolve`, `dump`, the settings of engine and link). What `dump` prints is read to
the same dump again. No file outside the folder is needed, and none is written.

Input: files divided by the line SPLIT: the main one, then a.conf, b.conf and so on, which it can include.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pydrbd.config import Config, dump, for_node, load, loads, require_implemented, resolve, resources_here
from pydrbd.errors import ConfigError, PydrbdError
from pydrbd.node_options import disk_specs, engine_options, link_options
from tests.fuzz.harness import Finding, Target

SPLIT = b"\n%%%%\n"
NAMES = ("main", "a.conf", "b.conf", "c.conf")
#: The words of a message, and the texts of a file, that it may quote.
MOST_TEXT = 8000

_folder: list[Path] = []


def folder() -> Path:
    if not _folder:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        made = tempfile.TemporaryDirectory(prefix="pydrbd-fuzz-", dir=base)
        atexit.register(made.cleanup)
        _folder.append(Path(made.name))
    return _folder[0]


def one(data: bytes) -> None:
    place = folder()
    parts = data.split(SPLIT)[: len(NAMES)]
    for name in NAMES:
        (place / name).unlink(missing_ok=True)
    for name, part in zip(NAMES, parts, strict=False):
        (place / name).write_bytes(part)
    try:
        config = load(place / "main")
    except ConfigError as error:
        judge(error, place)
        return
    use(config, place)


def judge(error: ConfigError, place: Path) -> None:
    """A message for people, which points to where the fault is."""
    text = str(error)
    if len(text) > MOST_TEXT or not text.replace("\n", " ").isprintable():
        raise Finding(f"message of {len(text)} characters: {text[:500]!r}")
    if not error.file:
        raise Finding(f"no file named: {text}")
    if Path(error.file).parent != place:
        raise Finding(f"the file {error.file} is none of ours: {text}")
    try:
        lines = Path(error.file).read_bytes().split(b"\n")
    except FileNotFoundError:
        lines = [b""]
    if not 1 <= error.line <= len(lines) or not 1 <= error.column <= len(lines[error.line - 1]) + 1:
        raise Finding(f"there is no such place: {text}")


def use(config: Config, place: Path) -> None:
    """Everything that a command does with a configuration."""
    text = dump(config)
    again = dump(loads(text, config.file))
    if again != text:
        raise Finding(f"dump gives\n{text}\nand that is read as\n{again}")
    nodes = {
        name
        for resource in config.resources.values()
        for host in resource.hosts.values()
        for name in host.names
    }
    for node in sorted(nodes)[:3]:
        resources_here(config, node)
        for name in list(config.resources)[:4]:
            for work in (named, view):
                try:
                    work(config, name, node)
                except ConfigError as error:
                    if error.file:
                        judge(error, place)
                except PydrbdError as error:
                    if not str(error).replace("\n", " ").isprintable():
                        raise Finding(f"message {error!r}") from error


def named(config: Config, name: str, node: str) -> None:
    resolve(config, ["all", name, f"{name}/0"], node)


def view(config: Config, name: str, node: str) -> None:
    found = for_node(config, name, node)
    require_implemented(found)
    engine_options(found)
    link_options(found)
    disk_specs(found)


HOSTS = b"""
  on alpha { device minor 1; disk /dev/vda; meta-disk internal; address 10.0.0.1:7789; }
  on beta { device minor 1; disk /dev/vdb; meta-disk internal; address 10.0.0.2:7789; }
"""


def seeds() -> Iterable[bytes]:
    from tests.support.config_samples import every_option, resource

    yield resource("net { protocol C; }").encode()
    for section in ("net", "disk", "options", "handlers", "startup"):
        yield resource(every_option(section)).encode()
    yield (
        b'include "a.conf";\ninclude "*.conf";\n'
        + SPLIT
        + b"resource r0 { "
        + HOSTS
        + b"}"
        + SPLIT
        + b"include main;\n"
    )
    yield b"global { usage-count no; }\ncommon { net { timeout 60; } }\nskip resource x { }\n"
    yield b'resource "a b" { device minor 1; disk none; on a { address ipv6 [fe80::1]:7000; volume 0 { } } }'
    yield b"resource r0 {" + b"net {" * 200 + b"}" * 200 + b"}"
    yield b"resource r0 { disk { size 99999999999999999999999999999999G; } " + HOSTS + b"}"
    yield b"resource r\xff { }"
    yield b'resource r0 { net { shared-secret "\x00\x01"; } }'
    yield b"# comment\n\xef\xbb\xbfresource r0 { floating 10.0.0.1:1; floating 10.0.0.2:2; }"
    yield b"resource r0 { connection-mesh { hosts alpha beta; net { timeout 5; } } " + HOSTS + b"}"
    yield (
        b"resource r0 { volume 0 { device /dev/drbd1 minor 1; disk /d; flexible-meta-disk /m; }"
        b" volume 65535 { device minor 2; disk /e; meta-disk /m[255]; } "
        + HOSTS
        + b"connection { host alpha port 7; host beta address ipv4 1.2.3.4:5; path { } net { timeout 5; } } }"
    )


_KEYWORDS = b"""
resource on address device disk meta-disk volume net common global include skip connection path host
floating options handlers protocol minor internal none
"""
WORDS = (
    *_KEYWORDS.split(),
    b"{",
    b"}",
    b";",
    b'"',
    SPLIT,
    b"[0]",
    b"10.0.0.1:7789",
    b"ipv6 [::1]:1",
)
TARGET = Target("config", one, seeds, 3000, WORDS)
