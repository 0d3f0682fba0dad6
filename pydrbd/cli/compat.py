"""install-compat: drbdadm, drbdsetup and drbdmeta in a folder. Floor: outer. Neighbour: compat/."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import sysconfig
from pathlib import Path

import click

from pydrbd.cli.context import App, examples, pass_app
from pydrbd.errors import UsageError

#: program -> its module
PROGRAMS = {"drbdadm": "quick", "drbdsetup": "drbdsetup", "drbdmeta": "drbdmeta"}
#: The line by which a script of ours is known.
_MARK = "# Installed by `pydrbd install-compat`; may be installed anew or removed."
#: -s: packages in the home of whoever calls it do not get in.
_SCRIPT = """#!{python} -s
{mark}
import sys

from pydrbd.compat.{module} import main

if __name__ == "__main__":
    sys.exit(main())
"""


@click.command(
    "install-compat",
    epilog=examples("pydrbd install-compat /usr/local/lib/pydrbd", "pydrbd install-compat --force /usr/sbin"),
)
@click.option("--force", is_flag=True, help="Also in the way of drbd-utils.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@pass_app
def install_compat_command(app: App, folder: Path, force: bool) -> None:
    """Install drbdadm, drbdsetup and drbdmeta into FOLDER, for scripts and tools written for DRBD.

    They work on pydrbd's resources, take DRBD's arguments and print what DRBD's tools print. Refused
    when FOLDER holds other programs of these names, or stands before them in $PATH.
    """
    for program in PROGRAMS:
        if not force and (other := _in_the_way(folder, program)):
            raise UsageError(
                f"{folder / program} would stand in the way of {other}, which is not pydrbd's. Nothing was "
                "installed; use another folder, or --force if pydrbd shall be called instead."
            )
    for program in PROGRAMS:
        path = folder / program
        if not app.would(f"install {path}"):
            install(path, program)
            click.echo(f"installed {path}")


def install(path: Path, program: str) -> None:
    """Write one script, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{program}.new")
    new.write_text(_SCRIPT.format(python=_python(), mark=_MARK, module=PROGRAMS[program]))
    new.chmod(0o755)
    os.replace(new, path)


def _python() -> str:
    """The interpreter that finds pydrbd."""
    return sys.executable or sysconfig.get_config_var("BINDIR") + "/python3"


def _in_the_way(folder: Path, program: str) -> str:
    """The program that is not ours and would be replaced or hidden; '' if there is none."""
    here = folder / program
    if _is_foreign(here):
        return str(here)
    places = [os.path.realpath(place) for place in os.environ.get("PATH", "").split(os.pathsep) if place]
    mine = os.path.realpath(folder)
    if mine not in places:
        return ""
    later = os.pathsep.join(places[places.index(mine) + 1 :])
    found = shutil.which(program, path=later) if later else None
    return found if found and _is_foreign(Path(found)) else ""


def _is_foreign(path: Path) -> bool:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return True
        with path.open("rb") as file:
            return _MARK.encode() not in file.read(1024)
    except FileNotFoundError:
        return False
