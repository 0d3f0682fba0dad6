"""The grammar of `drbdsetup events2` and `drbdsetup status --json`, written from its documentation.

Neighbours: tests of integrations/events2 and status_json. Sources: drbdsetup(8) of drbd-utils 9, and the
expected outputs of its own tests. `Reader` takes lines and raises GrammarError at the first that a strict
reader such as drbdmon would stumble over; it also keeps what the lines say, so that a stream can be
compared with a fresh dump. `check_status` does the same for the JSON.
"""

from __future__ import annotations

import re
from typing import Any

YES_NO = re.compile(r"yes|no")
NUMBER = re.compile(r"\d+")
DECIMAL = re.compile(r"-?\d+\.\d\d")
NAME = re.compile(r"[^\s:]+")
ADDRESS = re.compile(r"(ipv4:\d+\.\d+\.\d+\.\d+|ipv6:\[[0-9a-f:]+\]):\d+")
ROLE = re.compile("Primary|Secondary|Unknown")
CONNECTION = re.compile(
    "StandAlone|Disconnecting|Unconnected|Timeout|BrokenPipe|NetworkFailure|ProtocolError|TearDown|Connecting"
    "|Connected"
)
REPLICATION = re.compile(
    "Off|Established|StartingSyncS|StartingSyncT|WFBitMapS|WFBitMapT|WFSyncUUID|SyncSource|SyncTarget|VerifyS"
    "|VerifyT|PausedSyncS|PausedSyncT|Ahead|Behind"
)
DISK = re.compile(
    "Diskless|Attaching|Detaching|Failed|Negotiating|Inconsistent|Outdated|DUnknown|Consistent|UpToDate"
)
SUSPENDED = re.compile("no|(user|no-data|fencing|quorum)(,(no-data|fencing|quorum))*")
PAUSED = re.compile("no|(user|peer|dependency)(,(peer|dependency))*")
BLOCKED = re.compile("no|upper|lower|upper,lower")
ORDERING = re.compile("none|drain|flush|barrier")
SYNC_STATE = re.compile("SplitBrain|Unrelated")

#: object -> (keys that name it, groups of keys in their order). '?': the key may be missing in its group,
#: '+': the group is there with --statistics or --full only.
OBJECTS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    "resource": (
        ("name",),
        (
            ("role",),
            ("suspended",),
            ("force-io-failures",),
            ("+write-ordering",),
            ("may_promote", "promotion_score"),
        ),
    ),
    "connection": (
        ("name", "peer-node-id", "conn-name"),
        (("connection",), ("role",), ("?sync-state",), ("+congested?", "ap-in-flight", "rs-in-flight")),
    ),
    "device": (
        ("name", "volume", "minor"),
        (
            ("backing_dev", "disk", "client", "open", "quorum"),
            (
                *("+size", "read", "written", "al-writes", "bm-writes", "upper-pending", "lower-pending"),
                *("al-suspended?", "blocked?"),
            ),
        ),
    ),
    "peer-device": (
        ("name", "peer-node-id", "conn-name", "volume"),
        (
            ("replication",),
            ("peer-disk", "peer-client"),
            ("resync-suspended",),
            ("?done",),
            ("+received", "sent", "out-of-sync", "pending", "unacked"),
            (
                *("?rs-total", "rs-dt-start-ms", "rs-paused-ms", "rs-dt0-ms", "rs-db0-sectors", "rs-dt1-ms"),
                *("rs-db1-sectors", "rs-failed", "rs-same-csum", "dbdt", "dbdt0"),
            ),
            ("?dbdt1", "eta"),
        ),
    ),
    "path": (("name", "peer-node-id", "conn-name", "local", "peer"), (("established",),)),
}
WORDS: dict[str, re.Pattern[str]] = {
    "name": NAME,
    "conn-name": NAME,
    "backing_dev": re.compile(r"\S+"),
    "role": ROLE,
    "suspended": SUSPENDED,
    "write-ordering": ORDERING,
    "connection": CONNECTION,
    "sync-state": SYNC_STATE,
    "disk": DISK,
    "peer-disk": DISK,
    "replication": REPLICATION,
    "resync-suspended": PAUSED,
    "blocked": BLOCKED,
    "local": ADDRESS,
    "peer": ADDRESS,
    "done": re.compile(r"\d{1,3}\.\d\d"),
    "dbdt": DECIMAL,
    "dbdt0": DECIMAL,
    "dbdt1": DECIMAL,
    "eta": re.compile(r"\d+|nan"),
    "helper": re.compile("[a-z-]+"),
    **dict.fromkeys(
        ("may_promote", "force-io-failures", "congested", "client", "open", "quorum", "al-suspended"), YES_NO
    ),
    **dict.fromkeys(("peer-client", "established"), YES_NO),
}
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d ")
_PARENTS = {"connection": "resource", "device": "resource", "peer-device": "connection", "path": "connection"}
Key = tuple[str, ...]


class GrammarError(AssertionError):
    """A line that is not what drbdsetup prints."""


class Reader:
    """Reads events2. `statistics`: what the command was asked for; `full`: --full."""

    def __init__(self, *, statistics: bool = False, full: bool = False, timestamps: bool = False) -> None:
        self.statistics, self.full, self.timestamps = statistics or full, full, timestamps
        self.dumped = False
        #: (object, its names) -> key -> value, as told so far.
        self.objects: dict[tuple[str, Key], dict[str, str]] = {}

    def line(self, text: str) -> None:
        """Take one line (without its end)."""
        if self.timestamps:
            stamp = _STAMP.match(text)
            self._need(stamp is not None, text, "no time stamp")
            assert stamp is not None
            text = text[stamp.end() :]
        words = text.split(" ")
        self._need("" not in words, text, "spaces")
        if words == ["exists", "-"]:
            self._need(not self.dumped, text, "a second end of the dump")
            self.dumped = True
            return
        verb, kind, *pairs = words
        self._need(all(":" in pair for pair in pairs), text, "a word without a colon")
        keys = [pair.partition(":")[0] for pair in pairs]
        values = dict(pair.partition(":")[::2] for pair in pairs)
        self._need(len(values) == len(keys), text, "a key twice")
        for key, value in values.items():
            self._need(
                WORDS.get(key, NUMBER).fullmatch(value.lstrip("-")) is not None, text, f"{key}:{value}"
            )
        if kind == "helper":
            self._helper(verb, keys, text)
        else:
            self._object(verb, kind, keys, values, text)

    def _helper(self, verb: str, keys: list[str], text: str) -> None:
        self._need(verb in ("call", "response"), text, "verb")
        tail = ["helper"] + (["status"] if verb == "response" else [])
        peer = ["peer-node-id", "conn-name"] if "conn-name" in keys else []
        device = [] if "helper:disconnected" in text.split() else ["volume", "minor"]
        self._need(keys == ["name", *peer, *device, *tail], text, "keys of a helper")

    def _object(self, verb: str, kind: str, keys: list[str], values: dict[str, str], text: str) -> None:
        self._need(kind in OBJECTS, text, "object")
        self._need(verb in ("exists", "create", "change", "destroy"), text, "verb")
        self._need((verb == "exists") != self.dumped, text, "exists before, all else after 'exists -'")
        names, groups = OBJECTS[kind]
        if verb == "destroy" and kind == "device":
            names = names[:2]
        self._need(tuple(keys[: len(names)]) == names, text, "names")
        key = tuple(values[name] for name in names if name != "minor")
        known = self.objects.get((kind, key))
        self._need((known is None) == (verb in ("exists", "create")), text, "there already, or never was")
        parent = _PARENTS.get(kind)
        if parent is not None:
            above = key[:1] if parent == "resource" else key[:3]
            self._need((parent, above) in self.objects, text, "no parent")
        if verb == "destroy":
            self._need(len(keys) == len(names), text, "more than names")
            orphans = [
                k for (k, names_) in self.objects if _PARENTS.get(k) == kind and names_[: len(key)] == key
            ]
            self._need(not orphans, text, "children are left")
            del self.objects[kind, key]
            return
        whole = verb in ("exists", "create")
        self._groups(groups, keys[len(names) :], whole, text)
        # Read again (--poll), a peer device whose counters alone changed is told without them.
        empty = kind == "peer-device" and not self.statistics
        self._need(whole or empty or len(keys) > len(names), text, "a change of nothing")
        told = self.objects.setdefault((kind, key), {})
        if "done" not in values:
            told.pop("done", None)
        told.update(values)

    def _groups(self, groups: tuple[tuple[str, ...], ...], keys: list[str], whole: bool, text: str) -> None:
        """The keys are those of the groups, in their order; all groups when `whole` or --full."""
        at = 0
        for group in groups:
            optional, counters = group[0].startswith("?"), group[0].startswith("+")
            present = False
            for entry in group:
                name, may_lack = entry.strip("?+"), entry.endswith("?")
                if at < len(keys) and keys[at] == name:
                    self._need(not counters or self.statistics, text, f"{name} without --statistics")
                    present, at = True, at + 1
                elif whole and not optional and (not counters or self.statistics):
                    self._need(False, text, f"{name} is missing")
                elif present and not may_lack:
                    self._need(False, text, f"{name} is missing in its group")
            needed = (self.full and not optional) or whole
            self._need(
                present or not needed or optional or (counters and not self.statistics), text, group[0]
            )
        self._need(at == len(keys), text, f"{keys[at:]} out of place")

    @staticmethod
    def _need(holds: bool, text: str, what: str) -> None:
        if not holds:
            raise GrammarError(f"{what}: {text}")

    def states(self) -> dict[tuple[str, Key], dict[str, str]]:
        """What is told, without counters."""
        counters = {
            "read",
            "written",
            "received",
            "sent",
            "pending",
            "unacked",
            "out-of-sync",
            "size",
            "done",
        }
        counters |= {
            "al-writes",
            "bm-writes",
            "upper-pending",
            "lower-pending",
            "ap-in-flight",
            "rs-in-flight",
        }
        counters |= {
            "dbdt",
            "dbdt0",
            "dbdt1",
            "eta",
            "blocked",
            "congested",
            "al-suspended",
            "write-ordering",
        }
        counters |= {key for key in WORDS if key.startswith("rs-")}
        return {
            name: {key: value for key, value in values.items() if key not in counters and key[:3] != "rs-"}
            for name, values in self.objects.items()
        }


# --- status --json -----------------------------------------------------------------------------------

_B, _I, _S, _F = bool, int, str, float
RESOURCE_JSON = {
    "name": NAME,
    "node-id": _I,
    "role": ROLE,
    **dict.fromkeys(("suspended", "suspended-user", "suspended-no-data", "suspended-fencing"), _B),
    "suspended-quorum": _B,
    "force-io-failures": _B,
    "write-ordering": ORDERING,
}
DEVICE_JSON = {
    "volume": _I,
    "minor": _I,
    "disk-state": DISK,
    "client": _B,
    "open": _B,
    "quorum": _B,
    "size": _I,
    **dict.fromkeys(("read", "written", "al-writes", "bm-writes", "upper-pending", "lower-pending"), _I),
}
CONNECTION_JSON = {
    "peer-node-id": _I,
    "name": NAME,
    "connection-state": CONNECTION,
    "congested": _B,
    "peer-role": ROLE,
    "tls": _B,
    "ap-in-flight": _I,
    "rs-in-flight": _I,
}
PEER_DEVICE_JSON = {
    "volume": _I,
    "replication-state": REPLICATION,
    "peer-disk-state": DISK,
    "peer-client": _B,
    "resync-suspended": PAUSED,
    "received": _I,
    "sent": _I,
    "out-of-sync": _I,
    "pending": _I,
    "unacked": _I,
    "has-sync-details": _B,
    "has-online-verify-details": _B,
    "percent-in-sync": _F,
}
SYNC_JSON = {
    **dict.fromkeys(("rs-total", "rs-dt-start-ms", "rs-paused-ms", "rs-dt0-ms", "rs-db0-sectors"), _I),
    **dict.fromkeys(("rs-dt1-ms", "rs-db1-sectors", "rs-failed", "rs-same-csum"), _I),
    **dict.fromkeys(("want", "db0/dt0 [MiB/s]", "db1/dt1 [MiB/s]"), _F),
    "estimated-seconds-to-finish": _I,
    "db/dt [MiB/s]": _F,
    "percent-resync-done": _F,
}


def check_status(value: Any) -> None:
    """Raise GrammarError unless `value` is what `status --json` gives."""
    _want(isinstance(value, list), "no array")
    for resource in value:
        _fields(resource, RESOURCE_JSON, "devices", "connections")
        for device in resource["devices"]:
            _fields(device, DEVICE_JSON)
        for connection in resource["connections"]:
            _fields(connection, CONNECTION_JSON, "paths", "peer_devices")
            for path in connection["paths"]:
                _fields(path, {"established": _B}, "this_host", "remote_host")
            for peer in connection["peer_devices"]:
                _fields(peer, PEER_DEVICE_JSON | (SYNC_JSON if peer["has-sync-details"] else {}))


def _fields(value: dict[str, Any], kinds: dict[str, Any], *lists: str) -> None:
    _want(set(value) == set(kinds) | set(lists), f"keys {sorted(set(value) ^ (set(kinds) | set(lists)))}")
    for key, kind in kinds.items():
        found = value[key]
        if isinstance(kind, re.Pattern):
            _want(isinstance(found, str) and kind.fullmatch(found) is not None, f"{key}: {found!r}")
        elif kind is float:
            _want(type(found) in (int, float), f"{key}: {found!r}")
        else:
            _want(type(found) is kind, f"{key}: {found!r}")


def _want(holds: bool, what: str) -> None:
    if not holds:
        raise GrammarError(what)
