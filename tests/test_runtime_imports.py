"""Nothing is imported while requests are served: reading a file then may need the device that is served."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pydrbd.metadata_tool import create_md
from tests.support.pair import _ports

#: Two nodes in one interpreter: requests, loss and return of the connection, a resync, failed commands.
_PROGRAM = """
import sys, time
from pathlib import Path
from pydrbd.config import for_node, load
from pydrbd.node import Node
from pydrbd.errors import PydrbdError
from pydrbd.vocabulary import Conn

config, run_dir = Path(sys.argv[1]), Path(sys.argv[2])
nodes = [Node(for_node(load(config), "r0", name), run_dir) for name in ("alpha", "beta")]
for node in nodes:
    node.paths.folder.mkdir(parents=True, exist_ok=True)
    node.start()
before = set(sys.modules)

def wait(conn):
    deadline = time.monotonic() + 20
    while not all(node.snapshot().volumes[0].conn is conn for node in nodes):
        assert time.monotonic() < deadline, [node.snapshot() for node in nodes]
        time.sleep(0.02)

alpha, beta = nodes
for node in nodes:
    node.command("attach", {"volume": 0})
    node.command("connect", {})
wait(Conn.CONNECTED)
alpha.command("new-current-uuid", {"volume": 0, "clear_bitmap": True})
alpha.command("primary", {})
run, engine = alpha.driver.run, alpha.engine
for number in range(100):
    run(engine.write(0, number * 4096, bytes([number]) * 4096))
run(engine.flush(0))
run(engine.trim(0, 0, 65536))
assert run(engine.read(0, 99 * 4096, 4096)) == bytes([99]) * 4096
beta.link._driver.call(lambda: beta.engine.drop(beta.engine.session, Conn.NETWORK_FAILURE, "a test"))
run(engine.write(0, 0, bytes(1 << 20)))
deadline = time.monotonic() + 20
while beta.snapshot().volumes[0].conn is not Conn.CONNECTED or beta.snapshot().volumes[0].out_of_sync:
    assert time.monotonic() < deadline
    time.sleep(0.02)
wait(Conn.CONNECTED)
for verb, args in (("status", {}), ("get-gi", {"volume": 0}), ("nbd-info", {}), ("version", {}), ("none", {}),
                   ("detach", {"volume": 7}), ("wait", {"condition": "synced", "seconds": 1.0})):
    try:
        alpha.command(verb, args)
    except PydrbdError:
        pass
alpha.command("detach", {"volume": 0})
alpha.command("attach", {"volume": 0})
wait(Conn.CONNECTED)
print("late:", sorted(set(sys.modules) - before))
sys.stdout.flush()
for node in nodes:
    node.close()
"""


def test_no_module_is_loaded_after_the_start(session_folder: Path, tmp_path: Path) -> None:
    sections = ""
    for name, port in zip(("alpha", "beta"), _ports("127.0.0.1"), strict=True):
        disk = tmp_path / name
        with disk.open("wb") as file:
            file.truncate(16 << 20)
        create_md(str(disk))
        sections += (
            f"on {name} {{ device /dev/drbd0; disk {disk}; meta-disk internal; address 127.0.0.1:{port}; }}\n"
        )
    config = tmp_path / "pair.res"
    config.write_text(f"resource r0 {{ net {{ connect-int 1; }}\n{sections} }}")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(config), str(session_folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "late: []" in done.stdout, f"{done.stdout}\n{done.stderr[-4000:]}"
