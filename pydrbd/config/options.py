"""The one table of DRBD's options: name, section, type, default, range, unit, what pydrbd does with it.

Floor: words. A field of one of the frozen classes below IS the row of the table: its default
stands in the class, the rest in the field's metadata. Reading, dumping, documentation and the
refusal of what is not implemented are all made from it (`TABLE`, `SPECS`). Defaults and ranges
are those of drbdsetup's `xml-help`, which the tests compare with.

An instance holds one value per option and `given`, the names that were written explicitly;
`laid_over` merges a specific section over a general one by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self, cast

from pydrbd.config.optionspec import Kind, OptionSpec, Value
from pydrbd.config.syntax import Place
from pydrbd.vocabulary import DIGESTS, HASHES, Protocol

ANY: None = None
_DEFAULT_ONLY: frozenset[Value] = frozenset()
_HASHES: frozenset[Value] = frozenset(HASHES)
_DIGESTS: frozenset[Value] = frozenset(DIGESTS)
_SPEC = "spec"


def _row(spec: OptionSpec) -> Any:
    return field(default=spec.default, metadata={_SPEC: spec})


def _number(
    default: int,
    low: int,
    high: int,
    unit: str = "",
    *,
    scale: int = 1,
    works: frozenset[Value] | None = _DEFAULT_ONLY,
    clamped: bool = False,
    old: bool = False,
) -> int:
    spec = OptionSpec(Kind.NUMBER, default, low, high, unit, scale, (), works, clamped, old=old)
    return cast(int, _row(spec))


def _flag(default: bool, works: frozenset[Value] | None = _DEFAULT_ONLY) -> bool:
    return cast(bool, _row(OptionSpec(Kind.FLAG, default, works=works)))


def _switch(works: frozenset[Value] | None = _DEFAULT_ONLY) -> bool:
    return cast(bool, _row(OptionSpec(Kind.SWITCH, False, works=works)))


def _choice(words: str, works: frozenset[Value] | None = _DEFAULT_ONLY, *, ours: bool = False) -> str:
    """One of `words`; the first is the default."""
    choices = tuple(words.split())
    return cast(str, _row(OptionSpec(Kind.CHOICE, choices[0], words=choices, works=works, ours=ours)))


def _text(works: frozenset[Value] | None = _DEFAULT_ONLY, longest: int = 0) -> str:
    """Free text; empty by default, which means none."""
    return cast(str, _row(OptionSpec(Kind.TEXT, "", maximum=longest, works=works)))


def _quorum() -> int | str:
    return cast(str, _row(OptionSpec(Kind.NUMBER_OR_WORD, "off", 1, 32, words=("off", "majority", "all"))))


_TENTHS = "1/10 s"
_SECONDS = "s"
_KIB_PER_S = "KiB/s"
_SECTORS = "sectors"


@dataclass(frozen=True, slots=True)
class Given:
    """How an option was written: its text and its place."""

    text: str
    place: Place


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """Base of the sections. Two groups are equal when values and explicitly given names are."""

    SECTION: ClassVar[str] = ""

    #: Names (with '-') of the options written explicitly, here or where this was merged from.
    given: frozenset[str] = frozenset()
    #: Text and place of each given option, for dump and for messages.
    origins: Mapping[str, Given] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )

    def laid_over(self, general: Self) -> Self:
        """`general` with what is given here put over it: the more specific section wins."""
        mine = {s.attribute: getattr(self, s.attribute) for s in self.specs() if s.name in self.given}
        origins = MappingProxyType({**general.origins, **self.origins})
        return replace(general, **mine, given=general.given | self.given, origins=origins)

    def value(self, name: str) -> Value:
        """The value of the option `name` (DRBD's spelling)."""
        return cast(Value, getattr(self, name.replace("-", "_")))

    @classmethod
    def specs(cls) -> tuple[OptionSpec, ...]:
        """The rows of this section, in the order of the table."""
        return _SPECS_OF[cls]


@dataclass(frozen=True, kw_only=True)
class NetOptions(OptionGroup):
    """Options of a connection (section `net`)."""

    SECTION = "net"

    protocol: str = cast(str, _row(OptionSpec(Kind.CHOICE, "C", words=("A", "B", "C"), works=ANY)))
    timeout: int = _number(60, 1, 600, _TENTHS, works=ANY)
    ping_timeout: int = _number(5, 1, 300, _TENTHS, works=ANY)
    ping_int: int = _number(10, 1, 120, _SECONDS, works=ANY)
    connect_int: int = _number(10, 1, 120, _SECONDS, works=ANY)
    ko_count: int = _number(7, 0, 200, works=ANY)
    max_buffers: int = _number(2048, 32, 131072, "pages", works=ANY)
    max_epoch_size: int = _number(2048, 1, 20000, "writes", works=ANY)
    unplug_watermark: int = _number(128, 1, 131072, works=ANY, old=True)
    sndbuf_size: int = _number(0, 0, 10 << 20, "bytes", works=ANY)
    rcvbuf_size: int = _number(0, 0, 10 << 20, "bytes", works=ANY)
    cram_hmac_alg: str = _text(_HASHES, 63)
    shared_secret: str = _text(ANY, 63)
    use_rle: bool = _flag(True, ANY)
    tcp_cork: bool = _flag(True, ANY)
    socket_check_timeout: int = _number(0, 0, 300, _TENTHS, works=ANY)
    verify_alg: str = _text(_DIGESTS, 63)
    csums_alg: str = _text(_DIGESTS, 63)
    csums_after_crash_only: bool = _flag(False, ANY)
    data_integrity_alg: str = _text(_DIGESTS, 63)
    allow_two_primaries: bool = _flag(False, ANY)
    after_sb_0pri: str = _choice(
        "disconnect discard-younger-primary discard-older-primary discard-zero-changes "
        "discard-least-changes discard-local discard-remote",
        ANY,
    )
    after_sb_1pri: str = _choice(
        "disconnect consensus discard-secondary call-pri-lost-after-sb violently-as0p", ANY
    )
    after_sb_2pri: str = _choice("disconnect call-pri-lost-after-sb violently-as0p", ANY)
    always_asbp: bool = _flag(False, ANY)
    #: retry-connect and auto-discard are DRBD 9's.
    rr_conflict: str = _choice(
        "disconnect call-pri-lost violently retry-connect auto-discard",
        frozenset({"call-pri-lost", "violently"}),
    )
    fencing: str = _choice("dont-care resource-only resource-and-stonith", ANY)
    on_congestion: str = _choice("block pull-ahead disconnect", ANY)
    congestion_fill: int = _number(0, 0, 20971520, _SECTORS, scale=512, works=ANY)
    congestion_extents: int = _number(1237, 67, 65534, works=ANY)
    allow_remote_read: bool = _flag(True)
    transport: str = _text(frozenset({"tcp"}), 127)

    @property
    def wire_protocol(self) -> Protocol:
        """`protocol` as the wire's word."""
        return Protocol(self.protocol)


@dataclass(frozen=True, kw_only=True)
class DiskOptions(OptionGroup):
    """Options of a volume's backing disk (section `disk`)."""

    SECTION = "disk"

    on_io_error: str = _choice("detach pass_on call-local-io-error", ANY)
    size: int = _number(0, 0, 2199023255552, _SECTORS, scale=512, works=ANY)
    #: Out of range is no error: DRBD takes the nearest number it can.
    al_extents: int = _number(1237, 67, 65534, works=ANY, clamped=True)
    max_bio_bvecs: int = _number(0, 0, 128, works=ANY, old=True)
    al_updates: bool = _flag(True, ANY)
    disk_barrier: bool = _flag(False)
    disk_flushes: bool = _flag(True)
    disk_drain: bool = _flag(True)
    md_flushes: bool = _flag(True)
    disk_timeout: int = _number(0, 0, 6000, _TENTHS, works=ANY)
    read_balancing: str = _choice(
        "prefer-local prefer-remote round-robin least-pending when-congested-remote 32K-striping "
        "64K-striping 128K-striping 256K-striping 512K-striping 1M-striping",
        frozenset(("prefer-remote", "round-robin", "least-pending", "32K-striping", "64K-striping"))
        | frozenset(("128K-striping", "256K-striping", "512K-striping", "1M-striping")),
    )
    resync_after: str = _text(ANY)
    rs_discard_granularity: int = _number(0, 0, 1 << 20, "bytes", works=ANY)
    discard_zeroes_if_aligned: bool = _flag(True, ANY)
    disable_write_same: bool = _flag(False)
    #: DRBD always bypasses the page cache; see runtime/directfile.py.
    backing_io: str = _choice("buffered direct", ANY, ours=True)


@dataclass(frozen=True, kw_only=True)
class PeerDeviceOptions(OptionGroup):
    """Options of a volume towards one peer: the pace of resync. Written in a `disk` section too."""

    SECTION = "disk"

    resync_rate: int = _number(250, 1, 8388608, _KIB_PER_S, scale=1024, works=ANY)
    c_plan_ahead: int = _number(20, 0, 300, _TENTHS, works=ANY)
    c_delay_target: int = _number(10, 1, 100, _TENTHS, works=ANY)
    c_fill_target: int = _number(100, 0, 1048576, _SECTORS, scale=512, works=ANY)
    c_max_rate: int = _number(102400, 0, 4194304, _KIB_PER_S, scale=1024, works=ANY)
    #: Written or not makes a difference: see node.py.
    c_min_rate: int = _number(250, 0, 4194304, _KIB_PER_S, scale=1024, works=ANY)
    bitmap: bool = _flag(True)


@dataclass(frozen=True, kw_only=True)
class ResourceOptions(OptionGroup):
    """Options of a resource (section `options`)."""

    SECTION = "options"

    auto_promote: bool = _flag(True, ANY)
    on_no_data_accessible: str = _choice("io-error suspend-io", ANY)
    cpu_mask: str = _text(longest=31)
    auto_promote_timeout: int = _number(20, 0, 600, _TENTHS)
    quorum: int | str = _quorum()
    on_no_quorum: str = _choice("suspend-io io-error")
    quorum_minimum_redundancy: int | str = _quorum()
    on_suspended_primary_outdated: str = _choice("disconnect force-secondary")
    peer_ack_window: int = _number(4096, 2048, 204800, _SECTORS, scale=512)
    peer_ack_delay: int = _number(100, 1, 10000, "ms")
    twopc_timeout: int = _number(300, 50, 600, _TENTHS)
    twopc_retry_timeout: int = _number(1, 1, 50, _TENTHS)
    max_io_depth: int = _number(8000, 4, 4294967295)


@dataclass(frozen=True, kw_only=True)
class StartupOptions(OptionGroup):
    """How long wait-connect and its kin wait at boot (section `startup`); 0 is for ever."""

    SECTION = "startup"

    wfc_timeout: int = _number(0, 0, 300000, _SECONDS, works=ANY)
    degr_wfc_timeout: int = _number(0, 0, 300000, _SECONDS, works=ANY)
    outdated_wfc_timeout: int = _number(0, 0, 300000, _SECONDS, works=ANY)
    wait_after_sb: bool = _flag(False, ANY)
    #: Without it a stacked resource waits twice connect-int.
    stacked_timeouts: bool = _switch(ANY)
    become_primary_on: str = cast(str, _row(OptionSpec(Kind.WORDS, "")))


@dataclass(frozen=True, kw_only=True)
class Handlers(OptionGroup):
    """Commands run at events (section `handlers`); empty is none."""

    SECTION = "handlers"

    pri_on_incon_degr: str = _text(ANY)
    pri_lost_after_sb: str = _text(ANY)
    pri_lost: str = _text(ANY)
    initial_split_brain: str = _text(ANY)
    split_brain: str = _text(ANY)
    fence_peer: str = _text(ANY)
    unfence_peer: str = _text(ANY)
    local_io_error: str = _text(ANY)
    before_resync_target: str = _text(ANY)
    after_resync_target: str = _text(ANY)
    before_resync_source: str = _text(ANY)
    out_of_sync: str = _text(ANY)
    quorum_lost: str = _text()
    disconnected: str = _text(ANY)


@dataclass(frozen=True, kw_only=True)
class GlobalOptions(OptionGroup):
    """Options of the tools (section `global`); none of them changes what pydrbd does."""

    SECTION = "global"

    usage_count: str = _choice("ask yes no", ANY)
    disable_ip_verification: bool = _switch(ANY)
    minor_count: int = _number(32, 1, 1048575, works=ANY)
    dialog_refresh: int = _number(1, 0, 600, _SECONDS, works=ANY)
    udev_always_use_vnr: bool = _switch(ANY)
    cmd_timeout_short: int = _number(5, 0, 900, _SECONDS, works=ANY)
    cmd_timeout_medium: int = _number(121, 0, 900, _SECONDS, works=ANY)
    cmd_timeout_long: int = _number(600, 0, 900, _SECONDS, works=ANY)


GROUPS: tuple[type[OptionGroup], ...] = (
    NetOptions,
    DiskOptions,
    PeerDeviceOptions,
    ResourceOptions,
    StartupOptions,
    Handlers,
    GlobalOptions,
)


def _specs_of(group: type[OptionGroup]) -> tuple[OptionSpec, ...]:
    return tuple(
        replace(f.metadata[_SPEC], section=group.SECTION, name=f.name.replace("_", "-"), group=group.__name__)
        for f in fields(group)
        if _SPEC in f.metadata
    )


_SPECS_OF: Mapping[type[OptionGroup], tuple[OptionSpec, ...]] = {group: _specs_of(group) for group in GROUPS}

#: Every option, in the order of documentation and dump.
TABLE: tuple[OptionSpec, ...] = tuple(spec for group in GROUPS for spec in _SPECS_OF[group])
#: (section as written in the file, name) -> (the class it is a field of, its row).
SPECS: Mapping[tuple[str, str], tuple[type[OptionGroup], OptionSpec]] = {
    (spec.section, spec.name): (group, spec) for group in GROUPS for spec in _SPECS_OF[group]
}
#: Older spellings that drbdadm knows, and where DRBD 8.4 wrote what 9 writes elsewhere.
ALIASES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("disk", "fencing"): ("net", "fencing"),
    ("handlers", "outdate-peer"): ("handlers", "fence-peer"),
}
#: Older spellings of "no": the keyword alone.
NEGATIONS: Mapping[tuple[str, str], str] = {
    ("disk", "no-disk-barrier"): "disk-barrier",
    ("disk", "no-disk-flushes"): "disk-flushes",
    ("disk", "no-disk-drain"): "disk-drain",
    ("disk", "no-md-flushes"): "md-flushes",
    ("net", "no-tcp-cork"): "tcp-cork",
}
