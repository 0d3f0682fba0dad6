"""What this machine is like: reads /proc and /sys, asks programs for their versions.

Floor: outer. Nothing here changes anything, and nothing waits longer than a few seconds.
"""

from __future__ import annotations

import os
import platform
import resource as limits
import shutil
import subprocess
import sys
from pathlib import Path

from pydrbd.errors import PydrbdError
from pydrbd.integrations.doctor.facts import HostFacts

_SECONDS = 5.0
#: Bits of CapEff (capabilities(7)) that matter here.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24}


def gather_host(
    node: str, run_dir: Path, *, config_problem: str = "", resources: int = 0, hosts: tuple[str, ...] = ()
) -> HostFacts:
    """The facts of this machine; what the configuration says is given by the caller."""
    dump = _plugin()
    memory = _meminfo()
    problem, file_system = _run_dir(run_dir)
    return HostFacts(
        kernel=platform.release(),
        node=node,
        uname=os.uname().nodename,
        root=os.geteuid() == 0,
        capabilities=_capabilities(),
        nbd_problem=_nbd_problem(),
        nbd_module_installed=_module_installed("nbd"),
        fuse_device=os.path.exists("/dev/fuse"),
        nbdfuse=shutil.which("nbdfuse") is not None,
        loop_control=os.path.exists("/dev/loop-control"),
        nbdkit=_first_line(["nbdkit", "--version"]),
        plugin_problem=_plugin_problem(dump),
        plugin_python=(dump or {}).get("python_version", ""),
        python=platform.python_version(),
        drbd_utils=_drbd_utils(),
        kernel_drbd=os.path.exists("/proc/drbd"),
        nofile=limits.getrlimit(limits.RLIMIT_NOFILE)[0],
        memory_total=memory.get("MemTotal", 0),
        memory_available=memory.get("MemAvailable", 0),
        run_dir=str(run_dir),
        run_dir_problem=problem,
        run_dir_fs=file_system,
        hung_task_panic=_number("/proc/sys/kernel/hung_task_panic") == 1,
        hung_task_seconds=_number("/proc/sys/kernel/hung_task_timeout_secs"),
        config_problem=config_problem,
        resources=resources,
        hosts=hosts,
    )


def output_of(command: list[str]) -> str | None:
    """Standard output, None when the program is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _first_line(command: list[str]) -> str:
    lines = (output_of(command) or "").splitlines()
    return lines[0].strip() if lines else ""


def _capabilities() -> frozenset[str]:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff"):
            mask = int(line.split()[1], 16)
            return frozenset(name for name, bit in _CAPABILITIES.items() if mask >> bit & 1)
    return frozenset()


def _nbd_problem() -> str:
    from pydrbd.mapping import netlink

    try:
        netlink.family()
    except (PydrbdError, OSError) as error:
        return str(error)
    return ""


def _module_installed(name: str) -> bool:
    if os.path.exists(f"/sys/module/{name}"):
        return True
    modinfo = shutil.which("modinfo") or "/usr/sbin/modinfo"
    return output_of([modinfo, "-n", name]) is not None


def _plugin() -> dict[str, str] | None:
    dump = output_of(["nbdkit", "--dump-plugin", "python"])
    if dump is None:
        return None
    return dict(line.split("=", 1) for line in dump.splitlines() if "=" in line)


def _plugin_problem(dump: dict[str, str] | None) -> str:
    if dump is None:
        return "nbdkit has no Python plugin"
    theirs = dump.get("python_version", "").split(".")[:2]
    mine = [str(number) for number in sys.version_info[:2]]
    if theirs != mine:
        return (
            f"nbdkit's plugin embeds Python {'.'.join(theirs)}, but pydrbd is installed for {'.'.join(mine)}"
        )
    return ""


def _drbd_utils() -> str:
    for line in (output_of(["drbdadm", "--version"]) or "").splitlines():
        if line.startswith("DRBDADM_VERSION="):
            return f"drbd-utils {line.partition('=')[2]}"
    return ""


def _meminfo() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {
        name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if rest
    }


def _run_dir(path: Path) -> tuple[str, str]:
    """(what is wrong with it, its file system)."""
    from pydrbd.integrations.doctor.gather_disk import file_system_of

    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    problem = "" if os.access(there, os.W_OK | os.X_OK) else "not writable"
    if path.exists() and not path.is_dir():
        problem = "not a directory"
    return problem, file_system_of(str(there))[0]


def _number(path: str) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return 0
