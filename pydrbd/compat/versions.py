"""The versions that scripts ask for.

Floor: outer. Scripts compare them to choose among the ways of DRBD 8.4 and 9 and to be sure of a feature, so
these are the oldest versions of DRBD 9 whose words, outputs and options ours are: drbd-utils 9.29.0 and the
module 9.1.7. The wire protocol and metadata are those of 8.4, see `pydrbd version`.
"""

from __future__ import annotations

from pydrbd.version import __version__

UTILS = (9, 29, 0)
KERNEL = (9, 1, 7)


def _code(version: tuple[int, int, int]) -> str:
    return "0x" + "".join(f"{part:02x}" for part in version)


def version_lines(program: str) -> str:
    """The shell-safe KEY=VALUE lines of `drbdadm --version`; `program` is DRBDADM or DRBDSETUP."""
    utils, kernel = (".".join(map(str, version)) for version in (UTILS, KERNEL))
    return "\n".join(
        (
            f"{program}_BUILDTAG=pydrbd-{__version__}",
            f"{program}_API_VERSION=2",
            f"DRBD_KERNEL_VERSION_CODE={_code(KERNEL)}",
            f"DRBD_KERNEL_VERSION={kernel}",
            f"{program}_VERSION_CODE={_code(UTILS)}",
            f"{program}_VERSION={utils}",
        )
    )
