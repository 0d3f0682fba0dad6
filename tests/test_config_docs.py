"""docs/configuration.md: its table is the code's, and its examples are read by pydrbd and drbdadm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pydrbd.config import for_node, load, loads, require_implemented
from pydrbd.config.optiondocs import with_table
from pydrbd.config.options import SPECS, TABLE
from pydrbd.config.optionspec import Kind
from pydrbd.config.optionwords import DOES, does
from pydrbd.errors import NotImplementedOption
from tests.support.config_samples import drbdadm, other_value

TWO = """
resource r0 {
  on alpha { device minor 0; disk /nowhere/a; address 10.0.0.1:7789; }
  on beta { device minor 0; disk /nowhere/b; address 10.0.0.2:7790; }
}
"""
_PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"


def _examples() -> list[str]:
    text = _PAGE.read_text().partition("## Examples")[2]
    blocks = re.split(r"\n(?=\S)", text)
    return [
        m for block in blocks for m in re.findall(r"(?:^    .*\n|^\n)+", block, re.MULTILINE) if m.strip()
    ]


def test_the_table_is_up_to_date() -> None:
    assert _PAGE.read_text() == with_table(_PAGE.read_text()), (
        "run: python -m pydrbd.config.optiondocs docs/configuration.md"
    )


def test_the_examples_can_be_brought_up() -> None:
    examples = _examples()
    assert len(examples) == 3
    for text in examples:
        config = loads(text)
        for name in config.resources:
            require_implemented(for_node(config, name, "alpha", lambda family, host: host == "192.168.7.1"))


def test_drbdadm_reads_the_first_example_too(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("skip global { }" + _examples()[0].replace("usage-count no;", "disable-ip-verification;"))
    assert drbdadm(path, "dump").returncode == 0
    assert list(load(path).resources) == ["r0"]


def _rows() -> dict[tuple[str, str, str], list[str]]:
    """(section, heading, option) -> the cells of its row after the name."""
    found: dict[tuple[str, str, str], list[str]] = {}
    heading = section = ""
    for line in _PAGE.read_text().partition("## Options\n")[2].splitlines():
        if match := re.fullmatch(r"### Section `(\w+)`: (.*)", line):
            section, heading = match.groups()
        elif match := re.match(r"\| `([\w-]+)`(?: \([\w ]+\))? \| ", line):
            found[section, heading, match[1]] = [cell.strip() for cell in line.strip("|").split(" | ")[1:]]
    return found


ROWS = _rows()


def test_the_table_has_every_option() -> None:
    assert {(section, name) for section, _, name in ROWS} == {(spec.section, spec.name) for spec in TABLE}


def test_every_option_has_words_for_what_it_does_and_no_other_has() -> None:
    told = {(section, name) for section, names in DOES.items() for name in names}
    assert told == {(spec.section, spec.name) for spec in TABLE}
    assert all(re.fullmatch(r"[A-Z`].*[.]", does(spec)) and "|" not in does(spec) for spec in TABLE)


@pytest.mark.parametrize(("section", "heading", "name"), ROWS)
def test_an_option_is_taken_or_refused_as_its_row_says(section: str, heading: str, name: str) -> None:
    spec = SPECS[section, name][1]
    *_, implemented, why = ROWS[section, heading, name]
    other = f"{section} {{ {name} {other_value(spec)}; }}"
    if section == "global":
        assert implemented == ("taken, without effect" if why else "yes")
        assert list(loads(other + TWO).resources) == ["r0"]
        return
    if spec.kind is Kind.TEXT and spec.works:
        other = f"{section} {{ {name} no-such-word; }}"
    if name == "on-congestion":
        other += " protocol A;"  # it has no meaning with another one
    text = TWO.replace("resource r0 {", f"resource r0 {{ {other}")
    if name == "resync-after":
        # Another resource than the one that waits for it.
        second = TWO.replace("r0", "r9").replace("minor 0", "minor 9").replace("nowhere", "elsewhere")
        text = text.replace("r0/0", "r9/0") + second.replace("10.0.0", "10.0.9")
    view = for_node(loads(text), "r0", "alpha")
    if implemented in ("yes", "taken, without effect"):
        require_implemented(view)
        assert (implemented == "yes") is (why == "")
        return
    with pytest.raises(NotImplementedOption) as refused:
        require_implemented(view)
    assert why, "a refusal has a reason"
    assert f"{section}/{name}" in str(refused.value)
    assert f"({why}" in str(refused.value)
