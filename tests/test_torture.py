"""Three rounds of the torture test (tests/torture): about 15 s each on an idle machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.torture.__main__ import FAULTS, run_round


@pytest.mark.parametrize("seed", [7, 19, 20])
def test_no_acknowledged_write_is_lost(seed: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    counts = run_round(seed, folder, FAULTS)
    print(counts)
    assert counts.acknowledged > 500, "the client hardly did anything"
