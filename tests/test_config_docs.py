"""docs/configuration.md: its table is the code's, and its examples are read by pydrbd and drbdadm."""

from __future__ import annotations

import re
from pathlib import Path

from pydrbd.config import for_node, load, loads, require_implemented
from pydrbd.config.optiondocs import with_table
from tests.support.config_samples import drbdadm

_PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"


def _examples() -> list[str]:
    text = _PAGE.read_text().partition("## Examples")[2]
    blocks = re.split(r"\n(?=\S)", text)
    return [
        m for block in blocks for m in re.findall(r"(?:^    .*\n|^\n)+", block, re.MULTILINE) if m.strip()
    ]


def test_the_table_is_up_to_date() -> None:
    assert _PAGE.read_text() == with_table(_PAGE.read_text()), "run: python -m pydrbd.config.optiondocs"


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
