"""Runs bash scripts as root in a virtual machine with Debian's own kernel (nbd, DRBD 8.4, ext4, xfs).

Neighbours: vm_image.py builds what is booted, vm_init.sh is the guest's first process,
vm_drbd.sh holds shell functions for the kernel's DRBD (scripts find all of tests/support/*.sh
in $SUPPORT). Software emulation only, so it runs wherever QEMU does: a boot takes seconds,
and the guest is several times slower than the host.

In the guest: the project's sources and the Python packages it needs are on PYTHONPATH, the
command `pydrbd` on PATH, the network is the guest's own loopback, and every file the script
leaves in $RESULT comes back. The image is never modified.
"""

from __future__ import annotations

import compileall
import contextlib
import importlib.metadata
import importlib.util
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.vm_image import Image, image

PROJECT = Path(__file__).resolve().parents[2]
SOURCES = ("pydrbd", "nbd_plugin")
RESULT_BYTES = 256 << 20
_PANIC = re.compile(rb"Kernel panic|Attempted to kill init|---\[ end Kernel")
_START = """\
export PYTHONPATH=/job/project PATH="/job/bin:$PATH"
# Where an installation by pip would put them.
site=$(ls -d /usr/lib/python3.*)
mkdir -p "/usr/local/lib/${site##*/}" && ln -sfn /job/packages "/usr/local/lib/${site##*/}/dist-packages"
export SUPPORT=/job/support RESULT=/job/result
cd /job/files
# Through a pipe: commands must not take the serial line for a terminal.
bash /job/script 2>&1 | cat
exit "${PIPESTATUS[0]}"
"""
_COMMAND = '#!/bin/sh\nexec /usr/bin/python3 -m pydrbd.cli.main "$@"\n'


class VmError(AssertionError):
    """The guest did not run the job to its end (panic, hang, QEMU failed); it ends with the last words."""


@dataclass(frozen=True)
class VmResult:
    """What came back: the script's exit code and output, its result files, and the guest's kernel log."""

    exit_code: int
    output: str
    dmesg: str
    seconds: float
    files: dict[str, bytes] = field(default_factory=dict)

    def check(self) -> VmResult:
        """Itself if the script ended with 0, an AssertionError with its output otherwise."""
        if self.exit_code:
            raise AssertionError(
                f"the script in the guest ended with {self.exit_code}\n--- output\n{self.output[-12000:]}"
                f"\n--- end of the kernel log\n{self.dmesg[-3000:]}"
            )
        return self


class Vm:
    """A test bed over one image; each `run` boots a fresh guest."""

    def __init__(self, booted: Image | None = None) -> None:
        self._image = booted or image()

    def scenarios(self, script: str, *expected: str, timeout: float = 1100) -> None:
        """Run `script`, and demand a line "ok NAME" of each scenario that is `expected` of it."""
        result = self.run(script, timeout=timeout).check()
        missing = [name for name in expected if f"ok {name}\n" not in result.output]
        assert not missing, f"{missing} did not run:\n{result.output}"

    def run(
        self,
        script: str,
        files: Mapping[str, bytes | Path] | None = None,
        disks: Sequence[Path] = (),
        *,
        timeout: float = 300,
        memory: int = 2048,
        cpus: int = 2,
        log: Path | None = None,
    ) -> VmResult:
        """Boots a guest, runs `script` with bash as root in it, and returns when it has powered off.

        `files` appear in the script's working directory, `disks` (raw images, written to) as /dev/vdd,
        /dev/vde and so on. `timeout` is in seconds over all, `memory` in MiB. The output is streamed to
        `log` while the guest runs. VmError if the guest did not come to the end of the job.
        """
        if shutil.which("qemu-system-x86_64") is None:
            raise VmError("qemu-system-x86_64 is not installed (Debian package qemu-system-x86)")
        with tempfile.TemporaryDirectory(prefix="pydrbd-vm-") as work_name:
            work = Path(work_name)
            write_job(work / "job.tar", script, files or {})
            with (work / "result.tar").open("wb") as result_disk:
                result_disk.truncate(RESULT_BYTES)
            output = log or work / "output"
            output.write_bytes(b"")
            started = time.monotonic()
            command = _qemu(self._image, work, output, disks, memory, cpus)
            _boot(command, work / "console", output, timeout)
            return _result(work, output, time.monotonic() - started)


def machine(booted: Image, memory: int, cpus: int) -> list[str]:
    """QEMU's command line up to disks, serial lines and network; vm_init.sh says which it expects."""
    # Nothing may be left behind, not even when the test run itself is killed.
    arguments = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
    arguments += ["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(cpus)]
    arguments += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    arguments += ["-m", str(memory)]
    arguments += ["-kernel", str(booted.kernel), "-initrd", str(booted.initramfs)]
    # An emulated timer may be late at boot when the host is busy; the kernel would take it for broken.
    return [*arguments, "-append", "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic no_timer_check"]


def _qemu(
    booted: Image, work: Path, output: Path, disks: Sequence[Path], memory: int, cpus: int
) -> list[str]:
    drives = [
        f"file={booted.root_disk},snapshot=on,cache=unsafe",
        f"file={work}/job.tar,readonly=on",
        f"file={work}/result.tar,cache=unsafe",
        *(f"file={disk},cache=unsafe" for disk in disks),
    ]
    arguments = [*machine(booted, memory, cpus), "-nic", "none"]
    arguments += ["-serial", f"file:{work}/console", "-serial", f"file:{output}"]
    for drive in drives:
        arguments += ["-drive", f"if=virtio,format=raw,{drive}"]
    return arguments


def _boot(command: list[str], console: Path, output: Path, timeout: float) -> None:
    """Runs QEMU until the guest powers off; VmError after `timeout` seconds or a failure of QEMU."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as qemu:
        try:
            _, errors = qemu.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise VmError(f"the guest did not end within {timeout} s{_last_words(console, output)}") from None
        finally:
            qemu.kill()
    said = console.read_bytes() if console.exists() else b""
    if qemu.returncode:
        raise VmError(f"QEMU ended with {qemu.returncode}: {errors.decode(errors='replace')}")
    if _PANIC.search(said):
        raise VmError(f"the guest's kernel panicked{_last_words(console, output)}")
    if b"vm-init: done" not in said:
        raise VmError(f"the guest ended before its job was done{_last_words(console, output)}")


def _last_words(console: Path, output: Path) -> str:
    parts = []
    for title, path in (("output", output), ("console", console)):
        text = path.read_bytes().decode(errors="replace") if path.exists() else ""
        parts.append(f"\n--- end of the {title}\n{text[-4000:]}")
    return "".join(parts)


def _result(work: Path, output: Path, seconds: float) -> VmResult:
    files: dict[str, bytes] = {}
    with tarfile.open(work / "result.tar", "r:") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None:
                files[member.name.removeprefix("./")] = content.read()
    text = output.read_bytes().decode(errors="replace")
    dmesg = files.pop(".dmesg", b"").decode(errors="replace")
    return VmResult(int(files.pop(".exit")), text, dmesg, seconds, files)


def write_job(target: Path, script: str, files: Mapping[str, bytes | Path]) -> None:
    """The job disk: a tar of the script, its files, the project and the packages it needs.

    Compiled files go along where there are any (Python itself checks whether they are up to date).
    """
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, "start", _START.encode())
        _add(tar, "script", script.encode())
        _add(tar, "bin/pydrbd", _COMMAND.encode(), mode=0o755)
        for name, content in files.items():
            _add(tar, f"files/{name}", content if isinstance(content, bytes) else content.read_bytes())
        _add(tar, "files/.keep", b"")
        for path in sorted((PROJECT / "tests" / "support").iterdir()):
            if path.suffix in (".sh", ".py"):
                _add(tar, f"support/{path.name}", path.read_bytes())
        for path in _project_files():
            _add_source(tar, f"project/{path.relative_to(PROJECT)}", path)
        for name, path in package_files():
            _add_source(tar, f"packages/{name}", path)


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), mode, int(time.time())
    tar.addfile(entry, io.BytesIO(content))


def _add_source(tar: tarfile.TarFile, name: str, path: Path) -> None:
    """A file with its time, and if it is Python, its compiled form: emulated, compiling takes seconds."""
    tar.add(path, name, recursive=False)
    compiled = Path(importlib.util.cache_from_source(str(path))) if path.suffix == ".py" else path
    if compiled is not path and compiled.exists():
        tar.add(compiled, f"{name.rpartition('/')[0]}/__pycache__/{compiled.name}")


def _project_files() -> Iterator[Path]:
    for source in SOURCES:
        compileall.compile_dir(PROJECT / source, quiet=2)
        for path in sorted((PROJECT / source).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def package_files() -> Iterator[tuple[str, Path]]:
    """(name below site-packages, path) of every file of the packages that pydrbd needs at run time."""
    wanted, seen = ["pydrbd"], set[str]()
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.distribution(name)
            wanted += [
                match[0]
                for line in found.requires or ()
                if "extra ==" not in line and (match := re.match(r"[\w.-]+", line))
            ]
            for file in found.files or ():
                path = Path(str(found.locate_file(file)))
                if name != "pydrbd" and ".." not in file.parts and file.suffix != ".pyc" and path.is_file():
                    yield str(file), path
