"""docs/testing.md: the tests with the kernel's DRBD that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_the_manual_names_tests_that_exist() -> None:
    page = (TESTS.parent / "docs" / "testing.md").read_text()
    table = page.partition("## With the kernel's DRBD\n")[2].partition("\n## ")[0]
    names = set(re.findall(r"`(test_\w+)`", table))
    files = set(re.findall(r"`(test_\w+\.py)`", table))
    assert len(names) > 10
    sources = "".join((TESTS / name).read_text() for name in files)
    assert not {name for name in names if f"def {name}(" not in sources}
