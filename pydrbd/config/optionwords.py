"""What each option does, in a sentence or two that a user reads.

Floor: words. Neighbours: options.py (the table), optionnotes.py (why not). optiondocs.py, cli/manpages.py and
cli/adjust.py (--help) print this. A test holds that every option has its words here.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydrbd.config.optionspec import OptionSpec

_NET: Mapping[str, str] = {
    "protocol": (
        "When a write counts as done: A when it is on the way to the peer, B when the peer has it in "
        "memory, C when both disks have it."
    ),
    "timeout": "How long the peer may take to confirm what was sent; times `ko-count` it is given up.",
    "ping-timeout": "How long an answer to a ping may take before the connection counts as lost.",
    "ping-int": "How long a quiet connection stays without a ping.",
    "connect-int": "How long to wait between two attempts to reach the peer.",
    "ko-count": "After how many times `timeout` a peer that confirms nothing is given up. 0: never.",
    "max-buffers": "How much memory the peer's writes and a resync may hold here; the sender waits then.",
    "max-epoch-size": "How many writes may be under way between two barriers.",
    "unplug-watermark": "After how many requests that wait the disk is told to begin.",
    "sndbuf-size": "Size of the send buffer of the sockets. 0: the kernel tunes it.",
    "rcvbuf-size": "Size of the receive buffer of the sockets. 0: the kernel tunes it.",
    "cram-hmac-alg": (
        "The digest with which both nodes prove that they know `shared-secret`. Without it nobody is asked."
    ),
    "shared-secret": "What both nodes know, and prove to each other when they connect.",
    "use-rle": "Bitmaps are sent compressed, if the peer can do it too.",
    "tcp-cork": "Whether small packets are gathered before they are sent.",
    "socket-check-timeout": (
        "How long to look whether a new connection works before it is used. 0: only a moment, or "
        "`ping-timeout` where both nodes have dialled."
    ),
    "verify-alg": "The digest by which `verify` compares the disks. Without it there is no verify.",
    "csums-alg": "A resync copies only blocks whose digests differ. Without it all that is marked is copied.",
    "csums-after-crash-only": "`csums-alg` counts only for the resync after a crash of a Primary.",
    "data-integrity-alg": "Every write travels with this digest and is checked on arrival.",
    "allow-two-primaries": (
        "Both nodes may be Primary at the same time: for cluster file systems and live migration only."
    ),
    "after-sb-0pri": "Split brain, and no node is Primary: whose changes are thrown away.",
    "after-sb-1pri": "Split brain, and one node is Primary: whose changes are thrown away.",
    "after-sb-2pri": "Split brain, and both nodes are Primary: what is done.",
    "always-asbp": (
        "The after-sb policies also count when the nodes' data have no known common state any more."
    ),
    "rr-conflict": "What is done when a resync would have to overwrite the data of a Primary.",
    "fencing": (
        "Whether a node asks `fence-peer` before it is, or goes on as, Primary without its peer; with "
        "resource-and-stonith I/O waits for the answer."
    ),
    "on-congestion": (
        "What a Primary does when too much is on its way to the peer (protocol A): wait, pull ahead "
        "and resync later, or disconnect."
    ),
    "congestion-fill": "So much on its way is congestion. 0: any amount is none.",
    "congestion-extents": "So many active extents of 4 MiB are congestion.",
    "allow-remote-read": "Whether a node without data may read from this peer.",
    "transport": "What carries the packets.",
}
_DISK: Mapping[str, str] = {
    "on-io-error": (
        "What is done when the disk fails: let go of it and go on with the peer's, pass the error on "
        "to who asked, or run `local-io-error` and then let go of it."
    ),
    "size": "Not all of the disk is used, but so much. 0: all that both nodes have.",
    "al-extents": (
        "How many extents of 4 MiB may be written to without a note on the disk, and are compared "
        "after a crash of a Primary."
    ),
    "al-updates": (
        "Whether these notes are kept. Without them all of the disk is resynced after a crash of a Primary."
    ),
    "disk-barrier": "Order writes with barriers of the disk.",
    "disk-flushes": "Flush the disk where an order must hold.",
    "disk-drain": "Wait for the writes before a flush.",
    "md-flushes": "Flush the metadata's disk after each write to it.",
    "max-bio-bvecs": "Of how many pages a request to the disk may consist.",
    "disk-timeout": "A disk that does not answer for so long has failed. 0: it may take for ever.",
    "read-balancing": "Which node's disk serves a read.",
    "resync-after": "RESOURCE/VOLUME whose resync comes first.",
    "rs-discard-granularity": "A resync of zeroes discards ranges of this size on the target.",
    "discard-zeroes-if-aligned": "Whether a discard may stand for writing zeroes.",
    "disable-write-same": "Do not send WRITE SAME to the peer.",
    "backing-io": "Whether the disk is read and written through the page cache, or past it (O_DIRECT).",
    "resync-rate": (
        "The pace of a resync: for good where `c-plan-ahead` is 0, else the one that it begins with."
    ),
    "c-plan-ahead": (
        "How quickly the pace of a resync follows what the network does. 0: the pace is `resync-rate`."
    ),
    "c-delay-target": "How long what a resync has under way may take to arrive, where `c-fill-target` is 0.",
    "c-fill-target": "How much of a resync is under way. 0: as `c-delay-target` says.",
    "c-max-rate": "The limit of a resync's, and of a verify's, pace. 0: none.",
    "c-min-rate": (
        "The pace to which a resync slows down while applications use the disk. 0, or not written: it "
        "does not slow down."
    ),
    "bitmap": "Whether there is a bitmap for this peer.",
}
_OPTIONS: Mapping[str, str] = {
    "auto-promote": (
        "A client that opens the device for writing makes the node Primary, and the last one that "
        "closes it Secondary. It counts where it is written."
    ),
    "on-no-data-accessible": (
        "What clients get while a Primary has no good data within reach: errors, or they wait."
    ),
    "cpu-mask": "On which processors the threads run.",
    "auto-promote-timeout": "How long an open waits for an automatic promotion.",
    "quorum": "How many nodes must be there to write.",
    "on-no-quorum": "What is done without a quorum.",
    "quorum-minimum-redundancy": "How many nodes of a quorum must have good data.",
    "on-suspended-primary-outdated": (
        "What a Primary does that learns that it is Outdated while its I/O waits."
    ),
    "peer-ack-window": "After how much data the other peers are told what one has confirmed.",
    "peer-ack-delay": "After how long they are told at the latest.",
    "twopc-timeout": "How long a state change of the whole cluster may take.",
    "twopc-retry-timeout": "How long to wait before it is tried again.",
    "max-io-depth": "How many requests may be under way.",
}
_STARTUP: Mapping[str, str] = {
    "wfc-timeout": "How long `wait-connect` and `wait-sync` wait.",
    "degr-wfc-timeout": "The same where this node crashed as a Primary without its peer.",
    "outdated-wfc-timeout": "The same where the peer's disk is Outdated.",
    "wait-after-sb": "They go on waiting when the connection is StandAlone.",
    "stacked-timeouts": "These times count for a stacked resource too; without it, twice `connect-int` does.",
    "become-primary-on": "Which node becomes Primary at boot.",
}
_HANDLERS: Mapping[str, str] = {
    "pri-on-incon-degr": "A Primary has no UpToDate disk any more, here or within its reach.",
    "pri-lost-after-sb": (
        "This Primary's changes are to be thrown away after a split brain, and it cannot give up its role."
    ),
    "pri-lost": "`rr-conflict call-pri-lost`: this Primary's data would have to be overwritten.",
    "initial-split-brain": "A split brain was found, resolved or not.",
    "split-brain": "A split brain was found that nothing resolves.",
    "fence-peer": (
        "A Primary lost its peer, or is about to be Primary without it: see to it that the peer will not be."
    ),
    "unfence-peer": "Both nodes are in step again.",
    "local-io-error": "The disk of this node has failed.",
    "before-resync-target": (
        "A resync is about to overwrite this node's data; an exit status but 0 forbids it."
    ),
    "after-resync-target": "A resync is over, and this node's disk is UpToDate.",
    "before-resync-source": "A resync is about to copy this node's data; an exit status but 0 forbids it.",
    "out-of-sync": "A verify found differences.",
    "quorum-lost": "The quorum is lost.",
    "disconnected": "The connection to the peer ended.",
}
_GLOBAL: Mapping[str, str] = {
    "usage-count": "Whether the installation is counted on the web.",
    "disable-ip-verification": "Whether addresses are looked up on this machine.",
    "minor-count": "How many devices the kernel's module has room for.",
    "dialog-refresh": "How often the dialog of the init script is drawn.",
    "udev-always-use-vnr": "Names of devices have the volume's number even if there is only one.",
    "cmd-timeout-short": "How long a quick call of drbdsetup may take.",
    "cmd-timeout-medium": "How long a call of drbdsetup that waits may take.",
    "cmd-timeout-long": "How long a call of drbdsetup that runs handlers may take.",
}
#: Section -> name -> words. Of a handler: when its command is run.
DOES: Mapping[str, Mapping[str, str]] = {
    "net": _NET,
    "disk": _DISK,
    "options": _OPTIONS,
    "startup": _STARTUP,
    "handlers": _HANDLERS,
    "global": _GLOBAL,
}


def does(spec: OptionSpec) -> str:
    """What the option does."""
    return DOES[spec.section][spec.name]
