"""drbdmeta: v08 metadata of a disk whose resource is not up.

Floor: outer. Neighbour: metadata_tool.py, which does the work and holds the disk's lock meanwhile. Form:
`drbdmeta [--force] DEVICE v08 METADATA_DEVICE INDEX COMMAND [ARGUMENTS]`; INDEX is internal,
flex-internal, flex-external or a number. Exit codes are drbdmeta's: 1 refused or no metadata, 5 outdate of
what is less, 10 I/O, 20 wrong use, 40 data in the way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydrbd import metadata_tool as tool
from pydrbd.compat.getopt import NONE, REQUIRED, Option, Parsed, parse
from pydrbd.compat.refused import REFUSED
from pydrbd.compat.run import Ended, guarded, out, say
from pydrbd.config.model import MetaDisk, MetaDiskKind
from pydrbd.errors import ExistingDataError, MetadataError
from pydrbd.format.gi import Generation, MdFlag, parse_gi

USAGE = 20
_BAD_VALUE = 10
_UUID_DIGITS = 16
_OPTIONS = (
    Option("force", NONE, "f"),
    Option("verbose", NONE, "v"),
    Option("ignore-sanity-checks", NONE),
    Option("node-id", REQUIRED),
    Option("al-stripes", REQUIRED),
    Option("al-stripe-size-kB", REQUIRED),
    Option("peer-max-bio-size", REQUIRED),
    Option("version", NONE, "V"),
    Option("help", NONE, "h"),
)
#: Options with the one value that pydrbd's metadata have.
_ONLY = {"al-stripes": "1", "al-stripe-size-kB": "32"}

Command = Callable[[Parsed, str, MetaDisk, list[str]], str]


def _create_md(parsed: Parsed, disk: str, meta: MetaDisk, words: list[str]) -> str:
    if words and words[0] != "1":
        raise Ended(USAGE, f"drbdmeta: max_peers {words[0]}: v08 metadata have a place for exactly one peer")
    force, careless = parsed.flag("force"), parsed.flag("ignore-sanity-checks")
    try:
        return tool.create_md(disk, meta, force=force, ignore_sanity_checks=careless)
    except ExistingDataError as error:
        if not error.forcible or force:
            raise
        _confirm(parsed, f"{error}\nWrite new metadata all the same?")
        return tool.create_md(disk, meta, force=True, ignore_sanity_checks=careless)


def _set_gi(parsed: Parsed, disk: str, meta: MetaDisk, words: list[str]) -> str:
    if not words:
        raise Ended(USAGE, "drbdmeta: set-gi needs the identifiers")
    try:
        parse_gi(words[0], Generation(0), MdFlag(0))
    except MetadataError as error:
        raise Ended(_BAD_VALUE, f"drbdmeta: {error}") from None
    _confirm(parsed, "Write new GI to disk?")
    return tool.set_gi(words[0], disk, meta)


def _write_dev_uuid(_parsed: Parsed, disk: str, meta: MetaDisk, words: list[str]) -> str:
    if not words:
        raise Ended(_BAD_VALUE, "drbdmeta: write-dev-uuid needs the identifier")
    digits = words[0].lower().removeprefix("0x")
    if not (0 < len(digits) <= _UUID_DIGITS and set(digits) <= set("0123456789abcdef")):
        raise Ended(_BAD_VALUE, f"drbdmeta: '{words[0]}' is not an identifier of up to 16 hexadecimal digits")
    return tool.write_dev_uuid(int(digits, 16), disk, meta)


def _wipe_md(parsed: Parsed, disk: str, meta: MetaDisk, _words: list[str]) -> str:
    if tool.nothing_to_wipe(disk, meta):
        say(tool.NOTHING_TO_WIPE)
        return ""
    _confirm(parsed, "Do you really want to wipe out the DRBD meta data?")
    return f"Wiping meta data...\n{tool.wipe_md(disk, meta)}"


def _restore_md(parsed: Parsed, disk: str, meta: MetaDisk, words: list[str]) -> str:
    text = _text(words, "restore-md")
    try:
        return tool.restore_md(text, disk, meta, force=parsed.flag("force"))
    except ExistingDataError as error:
        if not error.forcible or parsed.flag("force"):
            raise
        _confirm(parsed, f"{error}\nOverwrite it all the same?")
        return tool.restore_md(text, disk, meta, force=True)


def _verify_dump(_parsed: Parsed, disk: str, meta: MetaDisk, words: list[str]) -> str:
    return tool.verify_dump(_text(words, "verify-dump"), disk, meta)


def _text(words: list[str], command: str) -> str:
    if not words:
        raise Ended(USAGE, f"drbdmeta: {command} needs a file")
    try:
        return Path(words[0]).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:
        raise Ended(USAGE, f"open of '{words[0]}' failed: {error}") from None


def _plain(work: Callable[[str, MetaDisk], str]) -> Command:
    return lambda _parsed, disk, meta, _words: work(disk, meta)


COMMANDS: dict[str, Command] = {
    "get-gi": _plain(tool.get_gi),
    "show-gi": _plain(tool.show_gi),
    "dump-md": lambda parsed, disk, meta, _words: tool.dump_md(disk, meta, force=parsed.flag("force")),
    "apply-al": _plain(tool.apply_al),
    "wipe-md": _wipe_md,
    "outdate": _plain(tool.outdate),
    "invalidate": _plain(tool.invalidate),
    "dstate": _plain(tool.dstate),
    "create-md": _create_md,
    "set-gi": _set_gi,
    "restore-md": _restore_md,
    "verify-dump": _verify_dump,
    "check-resize": _plain(tool.check_resize),
    "read-dev-uuid": _plain(tool.read_dev_uuid),
    "write-dev-uuid": _write_dev_uuid,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run drbdmeta and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run `drbdmeta ARGUMENTS`; its exit code."""
    return guarded("drbdmeta", USAGE, _usage(), lambda: _run(list(arguments)))


def _usage() -> str:
    commands = "\n".join(f"  {name}" for name in COMMANDS)
    return (
        "USAGE: drbdmeta [--force] DEVICE v08 METADATA_DEVICE INDEX COMMAND [ARGUMENTS]\n\n"
        f"INDEX: internal, flex-internal, flex-external or a number\n\nCOMMANDS:\n{commands}"
    )


def _run(arguments: list[str]) -> int:
    parsed = parse("drbdmeta", arguments, _OPTIONS)
    if parsed.flag("version"):
        from pydrbd.compat.versions import version_lines

        out(version_lines("DRBDMETA"))
        return 0
    if parsed.flag("help"):
        out(_usage())
        return 0
    words = parsed.words
    if len(words) < 2:
        raise Ended(USAGE, _usage())
    if words[1] != "v08":
        raise Ended(USAGE, f"drbdmeta: format {words[1]}: pydrbd's metadata are v08")
    if len(words) < 4:
        raise Ended(USAGE, "Too few arguments for format")
    if len(words) < 5:
        raise Ended(USAGE, "command missing")
    for name, only in _ONLY.items():
        if parsed.value(name, only) != only:
            raise Ended(USAGE, f"drbdmeta: --{name} {parsed.value(name)}: only {only} is implemented")
    name = words[4]
    command = COMMANDS.get(name)
    if command is None:
        reason = REFUSED.get(name)
        raise Ended(USAGE, f"drbdmeta: {name}: {reason}" if reason else f"Unknown command '{name}'.")
    disk, meta = _place(words[2], words[3])
    if text := command(parsed, disk, meta, words[5:]):
        out(text.rstrip("\n"))
    return 0


def _place(device: str, index: str) -> tuple[str, MetaDisk]:
    """Data disk ('' if nothing says which) and place of the metadata."""
    if index in ("internal", "flex-internal"):
        return device, MetaDisk()
    if index == "flex-external":
        return "", MetaDisk(MetaDiskKind.FLEXIBLE_EXTERNAL, device)
    if index.isascii() and index.isdigit() and len(index) < 6:
        return "", MetaDisk(MetaDiskKind.INDEXED, device, int(index))
    raise Ended(USAGE, f"'{index}' is not a valid index number.")


def _confirm(parsed: Parsed, question: str) -> None:
    """Ask, unless --force is given. Ended when the answer is no, or nobody is there to ask."""
    if parsed.flag("force"):
        say(f"\n{question}\n*** confirmation forced via --force option ***")
        return
    answer = ""
    if sys.stdin.isatty():
        say(f"\n{question}\n[need to type 'yes' to confirm]")
        answer = sys.stdin.readline().strip()
    if answer != "yes":
        raise Ended(1, "Operation canceled. Nothing was changed; use --force where nobody can be asked.")


if __name__ == "__main__":
    main()
