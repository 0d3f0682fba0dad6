"""Options of drbdadm's and drbdsetup's verbs that pydrbd refuses, each with the reason that a user reads.

Floor: outer. Neighbours: refused.py, drbdadm.py, drbdsetup.py. A test holds these and the tables of verbs
against the options that the real programs list for each verb.
"""

from __future__ import annotations

from pydrbd.compat.refused import FROM_FILE
from pydrbd.config.options import DiskOptions, NetOptions, OptionGroup, ResourceOptions

_ONE_SIZE = "v08 metadata are made in the one form that every version of DRBD reads"
_BY_BITMAP = "a resync by bitmap comes with `drbdadm disconnect` and `connect`"
_CLIENT = "DRBD 8.4 knows no intentionally diskless node"
_REQUESTS = "the size of requests is agreed at every connection"

_GROUPS: dict[str, tuple[type[OptionGroup], ...]] = {
    "attach": (DiskOptions,),
    "new-peer": (NetOptions,),
    "new-resource": (ResourceOptions,),
}

#: (verb, option) -> reason.
REFUSED_OPTIONS: dict[tuple[str, str], str] = {
    **{
        (verb, spec.name): FROM_FILE
        for verb, groups in _GROUPS.items()
        for group in groups
        for spec in group.specs()
        if not spec.ours
    },
    ("new-peer", "_name"): FROM_FILE,
    ("adjust", "tentative"): "`drbdadm connect --tentative` does that",
    ("adjust", "discard-my-data"): "data are given up by name only: `drbdadm connect --discard-my-data`",
    ("create-md", "peer-max-bio-size"): _REQUESTS,
    ("create-md", "al-stripes"): _ONE_SIZE,
    ("create-md", "al-stripe-size-kB"): _ONE_SIZE,
    ("resize", "al-stripes"): _ONE_SIZE,
    ("resize", "al-stripe-size-kB"): _ONE_SIZE,
    ("detach", "diskless"): _CLIENT,
    ("new-minor", "diskless"): _CLIENT,
    ("new-minor", "max-bio-size"): _REQUESTS,
    ("invalidate", "reset-bitmap"): _BY_BITMAP,
    ("invalidate-remote", "reset-bitmap"): _BY_BITMAP,
    ("disk-options", "resync-after"): "which device comes first stands in the configuration, then `adjust`",
    ("secondary", "force"): "not implemented: `pydrbd unmap --force` takes the device from its users first",
    ("new-current-uuid", "force-resync"): "`drbdadm invalidate-remote` does that",
}

#: Those that take the next word for their value, besides the options of the configuration.
WITH_A_VALUE = frozenset(("peer-max-bio-size", "al-stripes", "al-stripe-size-kB", "max-bio-size"))

#: What only drbdsetup is asked for: (verb, option) -> reason.
SETUP_REFUSED_OPTIONS: dict[tuple[str, str], str] = {
    (
        "events2",
        "diff",
    ): "nothing says what it prints; `change` lines tell what is new, with --full everything",
}


def setup_refused(verb: str) -> dict[str, str]:
    """option -> reason, for a verb of drbdsetup."""
    every = {**REFUSED_OPTIONS, **SETUP_REFUSED_OPTIONS}
    return {option: reason for (known, option), reason in every.items() if known == verb}


#: Options that are taken and have nothing to do here.
WITHOUT_EFFECT = frozenset(
    ((verb, "force") for verb in ("apply-al", "get-gi", "show-gi", "dstate", "invalidate")),
)
