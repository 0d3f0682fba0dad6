"""drbdadm's verbs: what each is given, what it stands for, and what it does.

Floor: outer. Neighbours: drbdadm.py (options, names), backend.py (the lines of a dry run), adm_actions.py
(what is more than one command of pydrbd). docs/commands.md is made from this table and from refused.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from pydrbd.compat import adm_actions as act
from pydrbd.compat import backend as to
from pydrbd.compat.getopt import NONE, OPTIONAL, REQUIRED, Option
from pydrbd.compat.group_options import group_options

if TYPE_CHECKING:
    from pydrbd.compat.drbdadm import Call

Action = Callable[["Call"], int]


class Takes(Enum):
    """What a verb is given."""

    NOTHING = "nothing"
    NAMES = "resources, or nothing for all"
    RESOURCES = "whole resources"
    VOLUMES = "resources or volumes"
    VOLUME = "volumes by name, or a resource without `volume`"


class Kind(Enum):
    """Where a verb is listed."""

    COMMAND = "command"
    HELPER = "for scripts"
    EXPERT = "for experts"
    HANDLER = "called by events"


@dataclass(frozen=True, slots=True)
class AdmVerb:
    """A verb of drbdadm. `lines`: what --dry-run prints; None for what only prints anyway."""

    takes: Takes
    action: Action
    lines: to.Lines | None
    options: tuple[Option, ...] = field(default=())
    kind: Kind = Kind.COMMAND


def _options(kind: str, names: str) -> tuple[Option, ...]:
    return tuple(Option(name, kind) for name in names.split())


_FORCE = _options(OPTIONAL, "force")
_OLD_FORCE = (*_FORCE, *_options(NONE, "overwrite-data-of-peer"))
_WAITS = (
    *_options(REQUIRED, "wfc-timeout degr-wfc-timeout outdated-wfc-timeout"),
    *_options(OPTIONAL, "wait-after-sb"),
)
_SKIPS = _options(NONE, "skip-disk skip-net")

_RES, _VOL, _ONE, _NONE = Takes.RESOURCES, Takes.VOLUMES, Takes.VOLUME, Takes.NOTHING


def _commands() -> dict[str, AdmVerb]:
    return {
        "adjust": AdmVerb(_RES, act.adjust, None, _SKIPS),
        "apply-al": AdmVerb(_VOL, act.same, to.on_metadata("apply-al"), _FORCE),
        "attach": AdmVerb(_VOL, act.same, to.attach),
        "connect": AdmVerb(
            _RES, act.same, to.on_peer("connect"), _options(OPTIONAL, "discard-my-data tentative")
        ),
        "create-md": AdmVerb(
            _VOL,
            act.create_md,
            to.create_md,
            (*_FORCE, *_options(REQUIRED, "max-peers")),
        ),
        "cstate": AdmVerb(_RES, act.query, to.on_peer("cstate")),
        "detach": AdmVerb(_VOL, act.same, to.on_minors("detach"), _FORCE),
        "disconnect": AdmVerb(_RES, act.same, to.on_peer("disconnect"), _FORCE),
        "disk-options": AdmVerb(_VOL, act.options, to.disk_options, group_options("disk")),
        "down": AdmVerb(_RES, act.same, to.on_resource("down")),
        "dstate": AdmVerb(_VOL, act.query, to.setup_then_meta(to.on_minors("dstate"), "dstate"), _FORCE),
        "dump": AdmVerb(Takes.NAMES, act.dump, None),
        "dump-md": AdmVerb(_VOL, act.same, to.on_metadata("dump-md"), _FORCE),
        "dump-xml": AdmVerb(Takes.NAMES, act.dump, None),
        "get-gi": AdmVerb(_VOL, act.same, to.setup_then_meta(to.on_peer_devices("get-gi"), "get-gi"), _FORCE),
        "hidden-commands": AdmVerb(_NONE, act.hidden_commands, None),
        "invalidate": AdmVerb(
            _VOL,
            act.invalidate,
            to.setup_then_meta(to.on_minors("invalidate"), "invalidate"),
            (*_FORCE, *_options(REQUIRED, "sync-from-peer-node-id")),
        ),
        "invalidate-remote": AdmVerb(_VOL, act.same, to.on_peer_devices("invalidate-remote")),
        "net-options": AdmVerb(_RES, act.options, to.net_options, group_options("net")),
        "new-path": AdmVerb(_RES, act.has_peer, to.new_path),
        "new-peer": AdmVerb(_RES, act.has_peer, to.new_peer),
        "outdate": AdmVerb(_VOL, act.same, to.setup_then_meta(to.on_minors("outdate"), "outdate")),
        "pause-sync": AdmVerb(_VOL, act.same, to.on_peer_devices("pause-sync")),
        "peer-device-options": AdmVerb(
            _VOL, act.options, to.peer_device_options, group_options("peer-device")
        ),
        "primary": AdmVerb(_RES, act.primary, to.on_resource("primary"), _OLD_FORCE),
        "resize": AdmVerb(
            _VOL,
            act.if_implemented,
            to.on_minors("resize"),
            (*_options(REQUIRED, "size"), *_options(OPTIONAL, "assume-clean assume-peer-has-space")),
        ),
        "resource-options": AdmVerb(_RES, act.options, to.resource_options, group_options("resource")),
        "resume-sync": AdmVerb(_VOL, act.same, to.on_peer_devices("resume-sync")),
        "role": AdmVerb(_RES, act.query, to.on_resource("role")),
        "secondary": AdmVerb(_RES, act.same, to.on_resource("secondary")),
        "show-gi": AdmVerb(
            _VOL, act.same, to.setup_then_meta(to.on_peer_devices("show-gi"), "show-gi"), _FORCE
        ),
        "status": AdmVerb(
            Takes.NAMES, act.query, to.on_resource("status"), _options(NONE, "json statistics")
        ),
        "up": AdmVerb(_RES, act.same, to.up),
        "verify": AdmVerb(
            _VOL, act.if_implemented, to.on_peer_devices("verify"), _options(REQUIRED, "start stop")
        ),
        "wait-con-int": AdmVerb(_NONE, act.wait_for_all, to.wait("wait-connect-resource")),
        "wait-connect": AdmVerb(_RES, act.same, to.wait("wait-connect-resource"), _WAITS),
        "wait-sync": AdmVerb(_RES, act.same, to.wait("wait-sync-resource"), _WAITS),
        "wipe-md": AdmVerb(_VOL, act.same, to.on_metadata("wipe-md"), _FORCE),
    }


def _helpers() -> dict[str, AdmVerb]:
    def helper(takes: Takes, action: Action, lines: to.Lines | None = None) -> AdmVerb:
        return AdmVerb(takes, action, lines, (), Kind.HELPER)

    return {
        "new-resource": helper(_RES, act.new_resource, to.new_resource),
        "sh-dev": helper(_VOL, act.sh(act.sh_dev)),
        "sh-ip": helper(_VOL, act.sh(act.sh_ip)),
        "sh-lr-of": helper(_RES, act.sh_lr_of),
        "sh-ll-dev": helper(_VOL, act.sh(act.sh_ll_dev)),
        "sh-md-dev": helper(_VOL, act.sh(act.sh_md_dev)),
        "sh-md-idx": helper(_VOL, act.sh(act.sh_md_idx)),
        "sh-minor": helper(_VOL, act.sh(act.sh_minor)),
        "sh-mod-parms": helper(_NONE, act.sh_mod_parms),
        "sh-nop": helper(_NONE, act.sh_nop),
        "sh-resource": helper(_VOL, act.sh_resource),
        "sh-resources": helper(_NONE, act.sh_resources),
        "sh-udev": helper(_ONE, act.sh_udev),
    }


def _experts() -> dict[str, AdmVerb]:
    def expert(takes: Takes, action: Action, lines: to.Lines, *options: Option) -> AdmVerb:
        return AdmVerb(takes, action, lines, options, Kind.EXPERT)

    clear = _options(OPTIONAL, "clear-bitmap")
    return {
        "check-resize": expert(_VOL, act.check_resize, to.on_minors("check-resize")),
        "new-current-uuid": expert(_ONE, act.same, to.on_minors("new-current-uuid"), *clear),
        "new-minor": expert(_VOL, act.has_volume, to.new_minor),
        "resume-io": expert(_VOL, act.same, to.on_minors("resume-io")),
        "set-gi": expert(_ONE, act.set_gi, to.on_metadata("set-gi"), *_FORCE),
        "suspend-io": expert(_VOL, act.same, to.on_minors("suspend-io")),
    }


HANDLERS = (
    *("after-resync-target", "before-resync-source", "before-resync-target", "disconnected", "fence-peer"),
    *("initial-split-brain", "local-io-error", "out-of-sync", "pri-lost", "pri-lost-after-sb"),
    *("pri-on-incon-degr", "quorum-lost", "split-brain", "unfence-peer"),
)

VERBS: dict[str, AdmVerb] = {
    **_commands(),
    **_helpers(),
    **{name: AdmVerb(_RES, act.handler, None, (), Kind.HANDLER) for name in HANDLERS},
    **_experts(),
}
