"""Builds and runs the project's container image with Debian's buildah, without any container engine.

Neighbours: test_container.py; vm_image.py says where this machine's cache is. The base image of
the Dockerfile's FROM line is made by debootstrap from the machine's own Debian mirror, once per
machine, and imported under that name, so that no registry is asked. What the build needs of this
machine (apt's settings, certificates, the locked wheels) goes in as read-only mounts of copies:
the Dockerfile knows nothing of them.

Invariants: `--isolation chroot` shares /dev and the network with the host, so nothing writable of
the host is ever mounted. Each buildah has a mount namespace of its own, so no mount can stay; and
it lets go of other tests' mounts, which would otherwise be held there while it runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.leaks import MARK
from tests.support.vm_image import cache_root

ROOT = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
#: The version of SUITE's python3.
PYTHON = "3.11"
BASE_IMAGE = f"docker.io/library/debian:{SUITE}-slim"
IMAGE = "localhost/pydrbd-test"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
#: apt settings that say how to reach a mirror; the rest of apt's configuration stays outside.
APT_PREFIXES = ("Acquire::http", "Acquire::ftp", "Acquire::Check-", "Acquire::ForceIPv", "Acquire::Retries")


class ContainerError(RuntimeError):
    """A step failed; the text holds the command and the end of its output."""


@dataclass(frozen=True)
class Builder:
    """buildah on a store in the cache (layers survive), with its run-time files in `work`."""

    work: Path

    def build(self) -> None:
        """Builds IMAGE from the Dockerfile; layers that did not change come from the cache."""
        with _locked("containers.lock"):
            if self._buildah("images", "--quiet", BASE_IMAGE, check=False).returncode:
                self._import_base(base_archive())
            # With vfs every layer is a copy of everything below it: slow, and many times the space.
            layers = f"--layers={'true' if _storage_driver() == 'overlay' else 'false'}"
            options = [layers, "--isolation", "chroot", "--pull-never", *self._host_settings()]
            self._buildah("bud", *options, "--tag", IMAGE, str(ROOT))
            self._buildah("rmi", "--prune", "--force", check=False)

    @contextlib.contextmanager
    def container(self, *volumes: str) -> Iterator[Container]:
        """A container from IMAGE; `volumes` as source:target:ro. It is removed at the end."""
        made = self._buildah("from", "--pull-never", *_pairs("--volume", volumes), IMAGE)
        name = made.stdout.strip().splitlines()[-1]
        try:
            yield Container(self, name)
        finally:
            self._buildah("rm", name)

    def _import_base(self, archive: Path) -> None:
        name = self._buildah("from", "scratch").stdout.strip()
        self._buildah("add", "--quiet", name, str(archive), "/")
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._buildah("config", "--cmd", "bash", "--env", path, name)
        self._buildah("commit", "--quiet", "--rm", name, BASE_IMAGE)

    def _host_settings(self) -> list[str]:
        """--volume options that carry what apt and pip need from this machine into the build.

        The wheels of the runtime lock are fetched out here, where pip is configured; in the build
        pip finds them in a folder, and still checks their hashes.
        """
        folder = self.work / "host"
        folder.mkdir(exist_ok=True)
        (folder / "apt.conf").write_text(_apt_settings())
        if CERTIFICATES.exists():
            shutil.copy(CERTIFICATES, folder / "certificates.crt")
        lock = ROOT / "requirements-runtime.lock"
        options = ["--quiet", "--require-hashes", "--only-binary", ":all:", "--python-version", PYTHON]
        _run(str(ROOT / ".venv/bin/pip"), "download", *options, "-r", str(lock), "-d", str(folder / "wheels"))
        (folder / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /run/host/wheels\n")
        return _pairs(
            "--volume",
            (
                f"{folder}:/run/host:ro",
                f"{folder}/apt.conf:/etc/apt/apt.conf.d/99host:ro",
                f"{folder}/pip.conf:/etc/pip.conf:ro",
            ),
        )

    def _buildah(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        store = ["buildah", "--storage-driver", _storage_driver(), "--root", str(cache_root() / "containers")]
        command = _alone(*store, "--runroot", str(self.work / "runroot"), *arguments)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if check and done.returncode:
            said = (done.stdout + done.stderr)[-4000:]
            raise ContainerError(f"{' '.join(command)}: exit code {done.returncode}\n{said}")
        return done


@dataclass(frozen=True)
class Container:
    """A container that commands can be run in, each to its end."""

    builder: Builder
    name: str

    def run(self, *command: str, environment: tuple[str, ...] = (), check: bool = True) -> str:
        """Runs `command` and returns stdout and stderr together; ContainerError if it fails."""
        marks = _pairs("--env", (f"{MARK}={os.environ.get(MARK, '')}", *environment))
        options = ["--isolation", "chroot", "--cap-add", "CAP_SYS_ADMIN", *marks]
        done = self.builder._buildah("run", *options, self.name, "--", *command, check=False)
        said = done.stdout + done.stderr
        if check and done.returncode:
            raise ContainerError(f"{' '.join(command)}: exit code {done.returncode}\n{said[-6000:]}")
        return said


def base_archive() -> Path:
    """A tar of a minimal Debian SUITE for FROM, made by debootstrap (half a minute) once per machine."""
    archive = cache_root() / f"base-{SUITE}.tar"
    with _locked("base.lock"):
        if not archive.exists():
            with tempfile.TemporaryDirectory(dir=cache_root(), prefix="base-") as work:
                _debootstrap(Path(work) / "root")
                _run("tar", "-C", f"{work}/root", "--one-file-system", "-cf", f"{work}/base.tar", ".")
                Path(work, "base.tar").rename(archive)
    return archive


def _debootstrap(root: Path) -> None:
    _run(*_alone("debootstrap", "--variant=minbase", SUITE, str(root), _mirror()))
    for leftover in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")):
        leftover.unlink()


def _mirror() -> str:
    """The Debian mirror that this machine's apt uses."""
    lines = _run("apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)")
    for line in lines.splitlines():
        origin, _, rest = line.partition(" ")
        codename, _, rest = rest.partition(" ")
        component, _, uri = rest.partition(" ")
        if origin == "Debian" and component == "main" and "-" not in codename and uri.startswith("http"):
            return uri
    return DEFAULT_MIRROR


def _apt_settings() -> str:
    """How to reach a mirror from here (proxies, checks), as an apt.conf; certificates from our copy."""
    lines = _run("apt-config", "dump").splitlines()
    kept = [line for line in lines if line.startswith(APT_PREFIXES) and not line.endswith(' "";')]
    if CERTIFICATES.exists():
        kept.append('Acquire::https::CAInfo "/run/host/certificates.crt";')
    return "".join(f"{line}\n" for line in kept)


#: Lets go of the first $1 arguments after it, mount points, and becomes the rest.
_LET_GO = 'n=$1; shift; while [ $n -gt 0 ]; do umount -l "$1" 2>&-; shift; n=$((n - 1)); done; exec "$@"'


def _alone(*command: str) -> list[str]:
    """`command` in a mount namespace of its own, without mounts that another test may want to unmount.

    Unmounting in one namespace does not reach a copy in another unless they are shared, and a
    block device with a mount anywhere is in use.
    """
    points = _passing_mounts((ROOT, cache_root(), Path(tempfile.gettempdir())))
    namespace = ["unshare", "--mount", "--propagation", "slave"]
    return [*namespace, "sh", "-c", _LET_GO, "sh", str(len(points)), *points, *command]


def _passing_mounts(needed: tuple[Path, ...]) -> list[str]:
    """Mount points on NBD, loop and FUSE, except those that one of the `needed` folders lies on."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        where, _, what = line.partition(" - ")
        point = Path(where.split()[4].encode().decode("unicode_escape"))
        kind, source = what.split()[:2]
        passing = kind.partition(".")[0] == "fuse" or source.startswith(("/dev/loop", "/dev/nbd"))
        if passing and not any(folder.resolve().is_relative_to(point) for folder in needed):
            points.append(str(point))
    return points


def _storage_driver() -> str:
    """overlay where the kernel has it (layers share their files), else vfs (each layer a whole copy)."""
    return "overlay" if "\toverlay\n" in Path("/proc/filesystems").read_text() else "vfs"


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    cache_root().mkdir(parents=True, exist_ok=True)
    with (cache_root() / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pairs(option: str, values: tuple[str, ...] | list[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _run(*command: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise ContainerError(f"{' '.join(command)}: exit code {done.returncode}\n{said}")
    return done.stdout
