"""Builds the disk image, kernel and initramfs that the virtual machines of the tests boot.

Neighbours: vm.py boots what this builds; vm_init.sh is the guest's first process.
The packages come through the machine's own apt, into a private archive directory, and are
unpacked without their maintainer scripts: that takes seconds and needs no chroot, because
nothing in the guest is started as a service. The result lies in a cache directory named
after a hash of this recipe, so a change here makes a new image and changes in the project's
code do not (the code travels to the guest in the job disk).

Invariant: a directory of the cache that holds `complete` is never written again; builders
take turns through a lock file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
INIT = HERE / "vm_init.sh"
#: Raised whenever the recipe changes in a way the hash of this file would not show.
RECIPE = 1
KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
# fmt: off
PACKAGES = (
    "base-files", "base-passwd", "bash", "coreutils", "diffutils", "findutils", "gawk", "grep",
    "gzip", "sed", "tar", "libc-bin", "util-linux", "mount", "kmod", "procps", "psmisc", "iproute2",
    "dmsetup", "fuse3", "strace", "busybox-static", "e2fsprogs", "xfsprogs", "python3", "nbdkit",
    "nbdkit-plugin-python", "nbdfuse", "nbd-client", "libnbd-bin", "python3-libnbd", "drbd-utils",
    "fio",
)
# fmt: on
#: Modules the initramfs loads before it can see the disks.
BOOT_MODULES = ("virtio_pci", "virtio_blk")
APT_OPTIONS = ("APT::Install-Recommends=false", "Debug::NoLocking=1", "APT::Sandbox::User=root")
#: The distribution's interpreter, whose compiled files are the guest's too.
PYTHON = "/usr/bin/python3"
#: Never needed in the guest, and a good part of the size.
LEFT_OUT = ("./usr/share/doc", "./usr/share/man", "./usr/share/locale", "*/botocore/data")
#: Sparse; the space left is for backing stores, because tmpfs has no direct I/O.
IMAGE_BYTES = 4 << 30
_MERGED = ("bin", "sbin", "lib", "lib64", "lib32", "libx32")


class ImageError(RuntimeError):
    """A step of building the image failed; the text holds the command and its last output."""


@dataclass(frozen=True)
class Image:
    """Paths of a finished image: bzImage, initramfs (cpio) and ext4 root disk (raw)."""

    kernel: Path
    initramfs: Path
    root_disk: Path


def cache_root() -> Path:
    """`$PYDRBD_VM_CACHE`, or a directory below the user's cache."""
    return Path(os.environ.get("PYDRBD_VM_CACHE") or Path.home() / ".cache" / "pydrbd-vm")


def image() -> Image:
    """The image of the present recipe; built now (some 20 seconds) if this machine has none yet."""
    directory = cache_root() / _recipe_hash()
    found = Image(directory / "vmlinuz", directory / "initramfs", directory / "root.img")
    if (directory / "complete").exists():
        return found
    cache_root().mkdir(parents=True, exist_ok=True)
    with (cache_root() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "complete").exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            with tempfile.TemporaryDirectory(dir=cache_root(), prefix="build-") as work:
                _build(Path(work), found)
            (directory / "complete").touch()
    return found


def _recipe_hash() -> str:
    recipe = b"\0".join((str(RECIPE).encode(), Path(__file__).read_bytes(), INIT.read_bytes()))
    return hashlib.sha256(recipe).hexdigest()[:16]


def _build(work: Path, target: Image) -> None:
    kernel, root = work / "kernel", work / "root"
    version = _unpack_kernel(work, kernel)
    _unpack_root(work, root)
    shutil.move(kernel / "lib" / "modules", root / "usr" / "lib" / "modules")
    _run("depmod", "-b", str(root), version)
    shutil.copy(kernel / "boot" / f"vmlinuz-{version}", target.kernel)
    target.initramfs.write_bytes(_initramfs(root, version))
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", str(root), str(target.root_disk),
         str(IMAGE_BYTES >> 10) + "k")  # fmt: skip


def _unpack_kernel(work: Path, kernel: Path) -> str:
    """Unpacks the kernel package that the meta package points to; returns the kernel's version."""
    depends = _run("apt-cache", "depends", KERNEL_META_PACKAGE)
    names = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image-" in line]
    if not names:
        raise ImageError(f"apt knows no package {KERNEL_META_PACKAGE}: run apt-get update first\n{depends}")
    _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", names[0], cwd=work)
    (archive,) = work.glob("linux-image-*.deb")
    _run("dpkg-deb", "-x", str(archive), str(kernel))
    return names[0].removeprefix("linux-image-")


def _unpack_root(work: Path, root: Path) -> None:
    """A root file system of PACKAGES and all they depend on, as apt resolves it from nothing."""
    archives = work / "archives"
    (archives / "partial").mkdir(parents=True)
    (work / "status").touch()
    options = (f"Dir::State::status={work}/status", f"Dir::Cache::archives={archives}", *APT_OPTIONS)
    settings = [word for option in options for word in ("-o", option)]
    _run("apt-get", "-q", "-y", *settings, "--download-only", "install", *PACKAGES)
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    leave_out = [f"--exclude={pattern}" for pattern in LEFT_OUT]
    for archive in sorted(archives.glob("*.deb")):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as unpack:
            _run("tar", "-x", "-C", str(root), "--keep-directory-symlink", *leave_out, stdin=unpack)
        if unpack.returncode:
            raise ImageError(f"dpkg-deb cannot unpack {archive.name}")
    _finish_root(root)


def _finish_root(root: Path) -> None:
    """What the maintainer scripts would have made, as far as the guest needs it."""
    for link, target in (("awk", "gawk"), ("sh", "dash" if (root / "usr/bin/dash").exists() else "bash")):
        with contextlib.suppress(FileExistsError):
            (root / "usr/bin" / link).symlink_to(target)
    for name in ("passwd", "group"):
        shutil.copy(root / "usr/share/base-passwd" / f"{name}.master", root / "etc" / name)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (root / "etc/hostname").write_text("guest\n")
    for name in ("proc", "sys", "dev", "run", "tmp", "mnt", "job"):
        (root / name).mkdir(exist_ok=True)
    _run("ldconfig", "-r", str(root))
    # Emulated, the guest would spend seconds compiling these at each boot.
    for folder in sorted((root / "usr/lib").glob("python3*")):
        _run(PYTHON, "-m", "compileall", "-q", "-x", "/(test|lib2to3|idlelib)/", "-s", str(root), str(folder))


def _initramfs(root: Path, version: str) -> bytes:
    """An initramfs (newc cpio) with busybox, the modules for the disks, and vm_init.sh as /init."""
    files: dict[str, tuple[int, bytes]] = {}
    for name in ("bin", "modules", "root", "dev"):
        files[name] = (0o40755, b"")
    files["bin/busybox"] = (0o100755, (root / "usr/bin/busybox").read_bytes())
    files["bin/sh"] = (0o120777, b"busybox")
    order: list[str] = []
    for module in BOOT_MODULES:
        for line in _run("modprobe", "-d", str(root), "-S", version, "--show-depends", module).splitlines():
            path = Path(line.split()[1])
            if path.name not in order:
                order.append(path.name)
                files[f"modules/{path.name}"] = (0o100644, path.read_bytes())
    files["modules/order"] = (0o100644, "".join(f"{name}\n" for name in order).encode())
    files["init"] = (0o100755, INIT.read_bytes())
    files["TRAILER!!!"] = (0, b"")
    return b"".join(_cpio(number, name, *entry) for number, (name, entry) in enumerate(files.items(), 1))


def _cpio(inode: int, name: str, mode: int, content: bytes) -> bytes:
    """One entry of a newc archive (kernel: Documentation/driver-api/early-userspace/buffer-format)."""
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4)


def _run(*command: str, cwd: Path | None = None, stdin: subprocess.Popen[bytes] | None = None) -> str:
    """Runs a command to its end and returns its output; ImageError with the end of the output otherwise."""
    done = subprocess.run(
        command, cwd=cwd, stdin=stdin.stdout if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
    )  # fmt: skip
    if done.returncode:
        raise ImageError(f"{' '.join(command)[:300]}: exit code {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout
