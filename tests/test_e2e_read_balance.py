"""Reads that the peer serves, with two real nodes under a client that checks its data. About 4 s."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.pair import Pair, fio

MIB = 1 << 20
# libnbd's Python module is Debian's, for the system's interpreter.
_READ = (
    "import nbd, sys; h = nbd.NBD(); h.connect_uri(sys.argv[1]); print(bytes(h.pread(4096, 0))[:4].decode())"
)


def first_bytes(uri: str) -> str:
    done = subprocess.run(["/usr/bin/python3", "-c", _READ, uri], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_peer_serves_reads_until_the_configuration_says_otherwise(run_dir: Path, tmp_path: Path) -> None:
    sections = "net { protocol C; connect-int 1; } disk { read-balancing prefer-remote; }"
    pair = Pair(tmp_path, run_dir, size=16 * MIB, sections=sections)
    try:
        pair.up_to_date()
        pair.alpha.call("primary")
        mixed = ("--rw=randrw", "--bs=4k", "--size=4m", "--iodepth=8", "--verify=crc32c")
        fio(pair.alpha.uri, *mixed)
        # Behind the nodes' backs, so that it shows who was asked.
        for node, word in ((pair.alpha, b"here"), (pair.beta, b"peer")):
            with node.disk.open("r+b") as disk:
                disk.write(word)
        assert first_bytes(pair.alpha.uri) == "peer"
        text = pair.config.read_text()
        pair.config.write_text(text.replace("prefer-remote", "prefer-local"))
        pair.alpha.call("adjust", config=str(pair.config), groups="disk", dry_run=False)
        assert first_bytes(pair.alpha.uri) == "here"
        pair.config.write_text(text)
        pair.alpha.call("adjust", config=str(pair.config), groups="disk", dry_run=False)
        assert first_bytes(pair.alpha.uri) == "peer"
        pair.beta.kill()
        assert first_bytes(pair.alpha.uri) == "here"
    finally:
        pair.close()
