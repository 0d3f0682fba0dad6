"""Verbs of drbdadm, drbdsetup and drbdmeta that pydrbd refuses, each with the reason that a user reads.

Floor: outer. Neighbour: refused_options.py. docs/commands.md is made from these tables too. A verb that
`pydrbd` has by now counts as implemented, whatever stands here.
"""

from __future__ import annotations

_OWN_STEP = "the process of a resource is started with its whole configuration; use `drbdadm up` or `adjust`"
_TWO = "between two nodes of DRBD 8.4 there is one peer"
_PROXY = "DRBD Proxy is a product of its own, which pydrbd does not speak to"
FROM_FILE = "options come from the configuration: edit it, then `drbdadm adjust` (or net-options and so on)"

#: What only drbdsetup is asked for; drbdadm has a way.
SETUP_REFUSED: dict[str, str] = dict.fromkeys(
    ("new-resource", "new-minor", "new-peer", "new-path"), _OWN_STEP
)

REFUSED: dict[str, str] = {
    "proxy-up": _PROXY,
    "proxy-down": _PROXY,
    "forget-peer": f"{_TWO}, and v08 metadata have no place for another that could be forgotten",
    "del-peer": f"{_TWO}, which the configuration names; use `drbdadm disconnect`",
    "del-path": "a connection has the one path that the configuration names; use `drbdadm disconnect`",
    "del-minor": f"{_OWN_STEP}; `drbdadm down` ends it",
    "del-resource": f"{_OWN_STEP}; `drbdadm down` ends it",
    "rename-resource": f"{_OWN_STEP} (down, rename it in the configuration, up)",
    "adjust-with-progress": "`drbdadm adjust` waits until all is done",
    "restore-md": "it is drbdmeta's, or `pydrbd restore-md`",
    "verify-dump": "it is drbdmeta's",
    "sh-b-pri": "for init scripts that promote at boot; a cluster manager or `drbdadm primary` does that",
    "sh-status": "DRBD 9 has it no more; use `drbdadm status --json`",
    "syncer": "the section of DRBD 8.3; its options are in `disk` and `net`",
}
