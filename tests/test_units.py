"""The systemd units: what install-units writes is what systemd understands."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from pydrbd.cli.supervise import UNITS
from tests.support.cli import CliNode


def written(folder: Path) -> dict[str, str]:
    CliNode("alpha", folder / "none.res", folder, []).ok("install-units", str(folder))
    return {unit: (folder / unit).read_text() for unit in UNITS}


def test_units_run_this_pydrbd_and_never_send_sigterm(tmp_path: Path) -> None:
    texts = written(tmp_path)
    for name, text in texts.items():
        assert "@PYDRBD@" not in text
        if "@." in name:
            assert "KillSignal=SIGKILL" in text
            # After the network; mounts come later, and go first at shutdown.
            assert "Before=remote-fs-pre.target" in text
    main = texts["pydrbd@.service"]
    assert "After=network-online.target" in main
    command = next(line for line in main.splitlines() if line.startswith("ExecStart="))
    program = command.removeprefix("ExecStart=").split(" supervise ")[0].split()
    shown = subprocess.run([*program, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "supervise" in shown.stdout
    assert f"ExecStart={shlex.join(program)} scrub\n" in texts["pydrbd-scrub.service"]


def test_the_death_of_the_supervisor_stops_nothing_else(tmp_path: Path) -> None:
    """Measured with systemd 252: it restarts all that require a service that it starts again after a crash,
    so the file system was unmounted; PropagatesStopTo= unmounted it as well, and for good. And it runs
    ExecStop= also after a main process that has ended by itself, without MAINPID."""
    texts = written(tmp_path)
    for binding in ("Requires=pydrbd@", "BindsTo=", "PartOf=", "Requisite=", "PropagatesStopTo="):
        lines = [line for text in texts.values() for line in text.splitlines() if line.startswith(binding)]
        assert not lines
    (line,) = [line for line in texts["pydrbd@.service"].splitlines() if line.startswith("ExecStop=")]
    words = shlex.split(line.removeprefix("ExecStop=").replace("$$", "$"))
    assert words[-2:] == ["down", "%i"]
    command = [*words[: words.index("sh") + 1], "echo", *words[-2:]]
    said = {
        pid: subprocess.run(
            command, capture_output=True, text=True, timeout=10, env={"MAINPID": pid}, check=True
        )
        for pid in ("", "4711")
    }
    assert said[""].stdout == ""
    assert said["4711"].stdout == "down %i\n"


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    written(tmp_path)
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        # Where there is no systemd the units cannot be used either; the other test still holds.
        return
    # `man` asks for manual pages, which are not installed everywhere.
    for unit in UNITS:
        instance = tmp_path / unit.replace("@.", "@r0.")
        done = subprocess.run(
            [analyze, "verify", "--man=no", "--recursive-errors=no", str(instance)],
            capture_output=True,
            text=True,
            timeout=60,
            env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
            check=False,
        )
        ours = [line for line in done.stderr.splitlines() if "pydrbd" in line]
        assert not ours, done.stderr
        assert done.returncode == 0, done.stderr
