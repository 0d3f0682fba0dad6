"""pydrbd and drbdadm read the same from the same files, and each reads what the other dumps."""

from __future__ import annotations

from pathlib import Path

import pytest

from pydrbd.config import dump, load, loads
from pydrbd.errors import ConfigError
from tests.support.config_samples import (
    SAMPLES,
    SHARED,
    drbdadm,
    drbdadm_dump,
    dry_run,
    resource,
    tree,
)

ALL = SAMPLES | SHARED


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", SAMPLES)
def test_drbdadm_dumps_our_dump_as_the_original(name: str, tmp_path: Path) -> None:
    original = _write(tmp_path, "original", SAMPLES[name])
    ours = _write(tmp_path, "ours", dump(load(original)))
    assert tree(drbdadm_dump(ours)) == tree(drbdadm_dump(original))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("node", ["alpha", "beta"])
def test_drbdadm_would_do_the_same_with_our_dump(name: str, node: str, tmp_path: Path) -> None:
    original = _write(tmp_path, "original", ALL[name])
    ours = _write(tmp_path, "ours", dump(load(original)))
    assert dry_run(ours, node) == dry_run(original, node)


@pytest.mark.parametrize("name", ALL)
def test_we_read_drbdadms_dump_as_the_original(name: str, tmp_path: Path) -> None:
    original = _write(tmp_path, "original", ALL[name])
    theirs = _write(tmp_path, "theirs", drbdadm_dump(original))
    assert load(theirs) == load(original)


@pytest.mark.parametrize("name", ALL)
def test_our_dump_reads_back_and_is_stable(name: str) -> None:
    config = loads(ALL[name])
    text = dump(config)
    assert loads(text) == config
    assert dump(loads(text)) == text


#: Files that both refuse (drbdadm with exit code 10, pydrbd's ConfigError has the same).
WRONG = {
    "unknown section": resource("nett { }"),
    "unknown option": resource("net { ping-timout 3; }"),
    "unknown handler": resource('handlers { foo "x"; }'),
    "disk option in net": resource("net { al-extents 300; }"),
    "too large": resource("net { timeout 601; }"),
    "too large by suffix": resource("net { ping-int 10s; }"),
    "too small": resource("net { ping-int 0; }"),
    "suffix": resource("disk { c-max-rate 1T; }"),
    "upper case yes": resource("disk { disk-flushes Yes; }"),
    "choice": resource("net { after-sb-0pri discard-zero; }"),
    "protocol": resource("protocol D;"),
    "no semicolon": resource("net { timeout 30 ping-int 4; }"),
    "no semicolon at the end": resource("net { timeout 30 }"),
    "a lone semicolon": resource(";"),
    "ambiguous": resource("net { timeout 30; timeout 40; }"),
    "two net sections": resource("net { timeout 30; } net { ping-int 4; }"),
    "two resources": resource("") + resource("").split("\n", 1)[1],
    "two commons": "common { } common { }" + resource(""),
    "same node-id": resource("").replace("address", "node-id 3; address"),
    "same host twice": resource("").replace("on beta", "on alpha"),
    "node-id range": resource("").replace("on beta {", "on beta { node-id 40;"),
    "port range": resource("").replace("10.0.0.2:7789", "10.0.0.2:70000"),
    "no port": resource("").replace("10.0.0.2:7789", "10.0.0.2"),
    "host name as address": resource("").replace("10.0.0.2:7789", "beta.example:7789"),
    "ipv6 without the word": resource("").replace("10.0.0.2:7789", "[fd00::2]:7789"),
    "single quotes": resource("net { shared-secret 'abc'; }"),
    "a quote in a word": resource("net { shared-secret ab'c; }"),
    "a quote in a path": resource("").replace("/dev/vda", "/dev/v'da"),
    "long secret": resource(f"net {{ shared-secret {'x' * 64}; }}"),
    "long cpu mask": resource(f"options {{ cpu-mask {'f' * 32}; }}"),
    "secret over two lines": resource('net { shared-secret "a\nb"; }'),
    "no device": resource("").replace("device minor 1;", "", 1),
    "minor and name differ": resource("").replace("device minor 1", "device /dev/drbd1 minor 2"),
    "implicit here, explicit there": resource("").replace(
        "on beta { device minor 1; disk /dev/vdb; meta-disk internal;",
        "on beta { volume 0 { device minor 1; disk /dev/vdb; meta-disk internal; }",
    ),
    "volumes differ": resource(
        "",
        "on alpha { address 10.0.0.1:1; volume 0 { device minor 1; disk /dev/a; } }"
        "on beta { address 10.0.0.2:1; volume 1 { device minor 1; disk /dev/a; } }",
    ),
    "same minor": resource("")
    + resource("").split("\n", 1)[1].replace("r0", "r1").replace("7789", "7790").replace("vd", "sd"),
    "same address": resource("")
    + resource("").split("\n", 1)[1].replace("r0", "r1").replace("minor 1", "minor 2").replace("vd", "sd"),
    "connection without node-ids": resource("connection { host alpha; host beta; }"),
    "skip inside options": resource("net { skip timeout 3; }"),
    "included file missing": resource("") + 'include "nowhere.res";',
    "include without semicolon": resource("") + 'include "nowhere*"',
    "a word too many closing": resource("") + "}",
}


@pytest.mark.parametrize("name", WRONG)
def test_both_refuse(name: str, tmp_path: Path) -> None:
    path = _write(tmp_path, "wrong", WRONG[name])
    assert drbdadm(path, "-d", "up", "all").returncode == 10
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code == 10
    assert (caught.value.file, caught.value.line > 0, caught.value.column > 0) == (str(path), True, True)


#: What pydrbd reads and drbdadm 9.22 does not: 8.4's place of fencing, nbd devices, plain paths.
EXTENSIONS = {
    "fencing in disk": resource("disk { fencing resource-only; }"),
    "nbd device": resource("").replace("device minor 1", "device /dev/nbd0"),
    "nbd device with minor": resource("").replace("device minor 1", "device /dev/nbd0 minor 4"),
    "path": resource("").replace("device minor 1", "device /run/r0/disk"),
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_extensions_of_pydrbd(name: str, tmp_path: Path) -> None:
    path = _write(tmp_path, "extension", EXTENSIONS[name])
    assert drbdadm(path, "dump").returncode == 10
    config = load(path)
    assert loads(dump(config)) == config


def test_fencing_from_disk_goes_to_net_where_drbdadm_reads_it(tmp_path: Path) -> None:
    original = _write(tmp_path, "original", EXTENSIONS["fencing in disk"])
    ours = _write(tmp_path, "ours", dump(load(original)))
    assert "--fencing=resource-only" in next(c for c in dry_run(ours, "beta") if "new-peer" in c)


def test_includes_are_found_as_drbdadm_finds_them(tmp_path: Path) -> None:
    for folder in (tmp_path / "d" / "e", tmp_path / "e"):
        folder.mkdir(parents=True)
    (tmp_path / "d" / "e" / "common.inc").write_text("common { net { timeout 77; } }")
    (tmp_path / "e" / "common.inc").write_text("common { net { timeout 78; } }")
    (tmp_path / "d" / "one.inc").write_text('include "e/*.inc"; include "nothing*"; include "../main";')
    main = _write(tmp_path, "main", resource("") + 'include "d/one.inc"; include d/one.inc;')
    assert load(main).common.net.timeout == 77
    assert tree(drbdadm_dump(_write(tmp_path, "ours", dump(load(main))))) == tree(drbdadm_dump(main))
