"""Wrong configurations: where the message points and what it says; no input gives anything else."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydrbd.config import TABLE, Config, dump, for_node, load, loads, require_implemented, unimplemented
from pydrbd.config import reader as config_reader
from pydrbd.config.optionspec import Kind, OptionSpec
from pydrbd.errors import ConfigError, NotImplementedOption
from tests.support.config_samples import SAMPLES, SHARED, TWO_HOSTS, resource


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("resource r0 {\n  net { ping-timout 3; }\n}", 2, 9, "'ping-timout' (did you mean 'ping-timeout'?)"),
        ("resorce r0 { }", 1, 1, "'resorce' is unknown at the top of a file (did you mean 'resource'?)"),
        ("resource r0 { nett { } }", 1, 15, "'nett' is unknown in resource 'r0' (did you mean 'net'?)"),
        ("common {\n on x { } }", 2, 2, "'on' is unknown in 'common'"),
        ("common { net { al-extents 7; } }", 1, 16, "belongs in the 'disk' section, not in 'net'"),
        ("common { net { timeout 601; } }", 1, 24, "is too large: '601', allowed is 1-600 1/10 s"),
        ("common { net { protocol X; } }", 1, 25, "cannot be 'X' (one of: A, B, C)"),
        (
            "common { net { after-sb-1pri discard-secundary; } }",
            1,
            30,
            "cannot be 'discard-secundary' (did you mean 'discard-secondary'?)",
        ),
        ("common { net {\n timeout 5\n ping-int 3;\n} }", 2, 10, "takes one value, but got '5 ping-int 3'"),
        ("common { net {\n timeout 5\n} }", 3, 1, "';' or '{' expected, but got '}'"),
        ('common {\n net { shared-secret "abc; }\n}', 2, 22, "the string '\"abc; }' is not ended by"),
        ("common {\n net { shared-secret 'abc'; }\n}", 2, 22, 'strings stand in "double quotes"'),
        ("common {\n net { shared-secret a'bc; }\n}", 2, 23, "a ' cannot stand in a word"),
        ("common 'x' { }", 1, 8, "a ' cannot stand in a word"),
        ("'common' { }", 1, 1, "a ' cannot stand in a word"),
        ("common {\n", 2, 1, "the file ends here, but a word or '}' is still missing"),
        ("common { }\n }", 2, 2, "a word expected, but got '}'"),
        ("common {\x00 }", 1, 9, "the control character '\\x00' cannot stand"),
        ("common { syncer { } }", 1, 10, "pydrbd does not support the 'syncer' section"),
        ("resource r { stacked-on-top-of x { node-id 0; } }", 1, 14, "there is no resource 'x'"),
        ("resource r { stacked-on-top-of { } }", 1, 14, "takes the name of a resource and a section"),
        ("resource r { stacked-on-top-of x { disk /dev/a; } }", 1, 36, "is unknown on stacked-on-top-of x"),
        ('resource r { "net" { } }', 1, 14, "'net' is unknown in resource 'r'"),
        ("resource all { }", 1, 10, "'all' cannot be the name of a resource"),
        ("resource ../x { }", 1, 10, "'../x' cannot be the name of a resource"),
        ("resource r { connection { host a; } }", 1, 14, "exactly two 'host' statements, but here are 1"),
        (
            resource(
                "connection { host alpha; host bet; }",
                TWO_HOSTS.replace("alpha {", "alpha { node-id 0;").replace("beta {", "beta { node-id 1;"),
            ),
            2,
            40,
            "there is no 'on' section for 'bet' (did you mean 'beta'?)",
        ),
        (
            resource("net { timeout 3; } net { }"),
            2,
            34,
            "a second 'net' section here; the first is at -:2:15",
        ),
        (resource("net { timeout 3; timeout 4; }"), 2, 32, "'timeout' is '4' here and '3' at -:2:21"),
        (resource("").replace("7789", "0", 1), 3, 75, "port 0 is out of range [1..65535]"),
        (resource("").replace("10.0.0.2", "10.0.0.256"), 4, 74, "'10.0.0.256' is not an ipv4 address"),
        (resource("").replace("minor 1", "miner 1", 1), 3, 16, "'device' takes a name, 'minor' and a number"),
        (
            resource("").replace("internal", "/dev/x[y]", 1).replace("/dev/x[y]", '"/dev/x"[y]'),
            3,
            65,
            "'[y]'",
        ),
    ],
)
def test_where_and_what(text: str, line: int, column: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(text)
    assert words in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column), str(caught.value)
    assert str(caught.value).startswith(f"-:{line}:{column}: ")
    assert caught.value.__cause__ is None


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing", "fifo", "."):
        with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
            load(tmp_path / name)
    monkeypatch.setattr(config_reader, "DEFAULT_FILES", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(ConfigError, match=r"neither .*/a nor .*/b exists"):
        load()
    (tmp_path / "b").write_text(resource("", name="b"))
    assert list(load().resources) == ["b"]
    (tmp_path / "a").write_text(resource("", name="a"))
    assert list(load().resources) == ["a"]


def test_included_files_that_cannot_be_read(tmp_path: Path) -> None:
    main = tmp_path / "main"
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing", "fifo", ".", "x" * 300, "a\tb"):
        main.write_text(f'\n  include "{name}";')
        with pytest.raises(ConfigError) as caught:
            load(main)
        assert (caught.value.file, caught.value.line, caught.value.column) == (str(main), 2, 3)


def test_a_wrong_word_in_an_included_file_is_reported_there(tmp_path: Path) -> None:
    (tmp_path / "main").write_text("include part;")
    (tmp_path / "part").write_text("common {\n nett { } }")
    with pytest.raises(ConfigError, match="'nett'") as caught:
        load(tmp_path / "main")
    assert (caught.value.file, caught.value.line) == (str(tmp_path / "part"), 2)


def test_files_that_include_one_another_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('include "b"; include "./a"; include "*";')
    (tmp_path / "b").write_text('include "a"; common { net { timeout 7; } }')
    assert load(tmp_path / "a").common.net.timeout == 7
    for number in range(100):
        (tmp_path / f"n{number}").write_text(f'include "n{number + 1}";')
    with pytest.raises(ConfigError, match="more than 64 deep"):
        load(tmp_path / "n0")


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"# \xc3\xa9\n common { \xff }")
    with pytest.raises(ConfigError, match="byte 0xff is not UTF-8") as caught:
        load(tmp_path / "file")
    assert (caught.value.line, caught.value.column) == (2, 11)


T = TypeVar("T")


def _attempt(action: Callable[[], T]) -> tuple[T | None, ConfigError | None]:
    """The result or the ConfigError; anything else that is raised fails the test."""
    try:
        return action(), None
    except ConfigError as wrong:
        return None, wrong


@pytest.mark.parametrize("word", ["a {", "skip {", "skip a { b {", "skip x { } ", "a ", ";", "}", '"a" '])
def test_deep_and_long_inputs_end_in_time(word: str) -> None:
    _, wrong = _attempt(lambda: loads(word * 30_000))
    assert len(str(wrong)) < 1000


#: Pieces that make up configurations, right and wrong ones.
_PIECES = sorted(
    {w for text in (SAMPLES | SHARED).values() for w in re.findall(r'"[^"\n]*"|[{};]|[^\s{};"]+', text)}
)


def _only_config_errors(config: Config) -> None:
    text = dump(config)
    assert loads(text) == config
    for name, section in config.resources.items():
        for host in section.hosts.values():
            here = host.names[0]
            view, _ = _attempt(partial(for_node, config, name, here, lambda *_: True))
            if view is not None:
                _, wrong = _attempt(partial(require_implemented, view))
                assert wrong is None or wrong.line
                # Or what is given does not go together, which is said first.
                refused = wrong is not None and not isinstance(wrong, NotImplementedOption)
                assert refused or (wrong is not None) == bool(unimplemented(view))
                assert wrong is not None or not view.wrong


def _read(raw: bytes) -> Config | None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(raw)
        file.flush()
        config, wrong = _attempt(lambda: load(Path(file.name)))
    if wrong is not None:
        assert min(wrong.line, wrong.column) > 0
        assert wrong.file == file.name
        assert str(wrong).isprintable()
    return config


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_give_only_config_errors(raw: bytes) -> None:
    config = _read(raw)
    if config is not None:
        _only_config_errors(config)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([*_PIECES, "{", "}", ";", "skip", "include"]) | st.text(max_size=5), max_size=60)
)
def test_words_in_any_order_give_only_config_errors(pieces: list[str]) -> None:
    config, _ = _attempt(lambda: loads(" ".join(pieces)))
    if config is not None:
        _only_config_errors(config)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_samples_with_changed_words_give_only_config_errors(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(sorted((SAMPLES | SHARED).values())))
    pieces = re.findall(r'"[^"\n]*"|[{};]|[^\s{};"]+', text)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(pieces)))
        end = min(len(pieces), start + data.draw(st.integers(0, 3)))
        pieces[start:end] = data.draw(st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=3))
    config, _ = _attempt(lambda: loads(" ".join(pieces)))
    if config is not None:
        _only_config_errors(config)


_LINE_TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20)


def _value(spec: OptionSpec) -> st.SearchStrategy[str]:
    match spec.kind:
        case Kind.NUMBER | Kind.NUMBER_OR_WORD:
            return st.integers(spec.minimum, spec.maximum).map(str)
        case Kind.FLAG:
            return st.sampled_from(["yes", "no", ""])
        case Kind.CHOICE:
            return st.sampled_from(spec.words)
        case Kind.SWITCH:
            return st.just("")
        case Kind.WORDS:
            return st.sampled_from(["both", "host0 host1", '"host 0"'])
        case _ if spec.name == "resync-after":
            return st.just("r/1")
        case _:
            return _LINE_TEXT.filter(lambda t: not spec.maximum or len(t.encode()) <= spec.maximum).map(
                lambda t: '"' + t.replace("\\", "\\\\").replace('"', '\\"') + '"'
            )


@st.composite
def _section(draw: st.DrawFn, name: str) -> str:
    rows = draw(
        st.lists(st.sampled_from([s for s in TABLE if s.section == name]), unique_by=lambda s: s.name)
    )
    return f"{name} {{ {' '.join(f'{s.name} {draw(_value(s))};' for s in rows)} }}"


@st.composite
def _sections(draw: st.DrawFn) -> str:
    names = draw(st.lists(st.sampled_from(["net", "disk", "options", "startup", "handlers"]), unique=True))
    return " ".join(draw(_section(name)) for name in names)


@st.composite
def _host(draw: st.DrawFn, number: int, volumes: list[int]) -> str:
    parts = []
    for volume in volumes:
        meta = draw(st.sampled_from(["internal", f"/dev/m{volume}", f"/dev/m[{volume}]"]))
        disk = draw(st.sampled_from(["none", f"/dev/d{volume}"]))
        options = draw(st.just("") | _section("disk"))
        parts.append(f"volume {volume} {{ device minor {volume}; disk {disk}; meta-disk {meta}; {options} }}")
    address = draw(st.sampled_from([f"10.0.0.{number + 1}:1", f"ipv6 [::{number + 1}]:1"]))
    return f"on host{number} {{ node-id {number}; address {address}; {' '.join(parts)} }}"


@st.composite
def _configs(draw: st.DrawFn) -> str:
    volumes = draw(st.lists(st.integers(0, 100), unique=True, max_size=3))
    hosts = [draw(_host(number, volumes)) for number in range(draw(st.integers(0, 3)))]
    return (
        f"{draw(_section('global'))} common {{ {draw(_sections())} }} "
        f"resource r {{ {' '.join(hosts)} {draw(_sections())} }}"
    )


@settings(max_examples=200, deadline=None)
@given(_configs())
def test_what_is_dumped_reads_back_as_it_was(text: str) -> None:
    config = loads(text)
    assert loads(dump(config)) == config
    assert dump(loads(dump(config))) == dump(config)
    _only_config_errors(config)
