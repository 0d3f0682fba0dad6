"""Why an option is not implemented, or has nothing to do here, in words that a user reads.

Floor: words. Neighbours: options.py (what is implemented), view.py (the refusal), optiondocs.py (the tables
of docs/configuration.md). A test holds that every option which is refused in some value has its reason here.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydrbd.config.optionspec import OptionSpec

_NINE = "DRBD 9's; two nodes of DRBD 8.4 have nothing like it"
_FLUSHED = "what was flushed would not survive a loss of power; pydrbd always flushes"
_QUORUM = "DRBD 9's: between two nodes there is no majority; use `fencing`"
_HASHES = "hashlib has no other that the kernel has too"
_AT_BOOT = "for the init script of DRBD 8.4; a cluster manager or `pydrbd-primary@.service` does that"

#: Section and name -> the reason, for values that are refused.
REFUSED: Mapping[tuple[str, str], str] = {
    ("net", "cram-hmac-alg"): _HASHES,
    ("net", "verify-alg"): _HASHES,
    ("net", "csums-alg"): _HASHES,
    ("net", "data-integrity-alg"): _HASHES,
    ("net", "rr-conflict"): f"retry-connect, auto-discard: {_NINE}",
    ("net", "allow-remote-read"): _NINE,
    ("net", "transport"): "the peer is reached by TCP only, as with DRBD 8.4",
    ("disk", "disk-barrier"): "no kernel since 2.6.36 has barriers; pydrbd flushes",
    ("disk", "disk-flushes"): _FLUSHED,
    ("disk", "disk-drain"): "writes would be reordered across flushes",
    ("disk", "md-flushes"): "the metadata would not survive a loss of power; pydrbd always flushes",
    ("disk", "read-balancing"): "when-congested-remote asks for a sign that the kernel gives no more",
    ("disk", "disable-write-same"): "pydrbd never sends WRITE SAME",
    ("disk", "bitmap"): _NINE,
    ("options", "cpu-mask"): "`taskset` or CPUAffinity= of the unit says on which processors a process runs",
    ("options", "auto-promote-timeout"): "an open that cannot be had is refused at once",
    ("options", "quorum"): _QUORUM,
    ("options", "on-no-quorum"): _QUORUM,
    ("options", "quorum-minimum-redundancy"): _QUORUM,
    ("options", "on-suspended-primary-outdated"): _QUORUM,
    ("options", "peer-ack-window"): _NINE,
    ("options", "peer-ack-delay"): _NINE,
    ("options", "twopc-timeout"): _NINE,
    ("options", "twopc-retry-timeout"): _NINE,
    ("options", "max-io-depth"): _NINE,
    ("startup", "become-primary-on"): _AT_BOOT,
    ("handlers", "quorum-lost"): _QUORUM,
}
#: Options that are taken in all values and change nothing, and why.
WITHOUT_EFFECT: Mapping[tuple[str, str], str] = {
    ("net", "tcp-cork"): "packets that are ready together are sent together",
    ("net", "unplug-watermark"): "requests are never held back to be sent together",
    ("disk", "max-bio-bvecs"): "disks and files take requests of any number of pages",
    ("disk", "discard-zeroes-if-aligned"): "what is discarded reads as zeroes in any case",
    ("disk", "rs-discard-granularity"): "a range of zeroes is always discarded on the target, not copied",
    **dict.fromkeys(
        (
            *(("global", "usage-count"), ("global", "disable-ip-verification"), ("global", "minor-count")),
            *(("global", "dialog-refresh"), ("global", "udev-always-use-vnr")),
            *(("global", f"cmd-timeout-{span}") for span in ("short", "medium", "long")),
        ),
        "of DRBD's own tools",
    ),
}


def reason(spec: OptionSpec) -> str:
    """Why some of the option's values are refused, or why it changes nothing; '' if neither is so."""
    key = (spec.section, spec.name)
    if spec.works is None:
        return WITHOUT_EFFECT.get(key, "")
    return REFUSED[key]
