"""install-man, and the manual pages themselves: made from the commands' help and the table of options.

Floor: outer. Nothing is said here that --help and docs/configuration.md do not say: a page cannot differ from
what the program does. The pages are roff with the `man` macros; `man --warnings` finds nothing in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from pydrbd.cli.context import App, examples, pass_app
from pydrbd.config.options import GROUPS, OptionGroup
from pydrbd.config.optionspec import Kind, OptionSpec, value_text
from pydrbd.config.optionwords import does
from pydrbd.version import __version__

Lines = Iterator[str]

_EXIT_CODES = (
    ("0", "Done."),
    ("1", "Wrong use, an unknown resource, metadata that are missing or in the way."),
    ("4", "verify, scrub: blocks are out of sync and were not repaired."),
    ("5", "A wait took too long, a verify was interrupted, or a disk is lower than Outdated."),
    (
        "10",
        "The configuration is not valid, a resource is not up, or another failure that has a number.",
    ),
    ("11", "The state change was refused."),
    ("16", "A resync needs a local disk."),
    ("17", "There is no UpToDate data."),
    ("20", "An internal or system error."),
    ("40", "create-md found data in the way."),
)
_ENVIRONMENT = (
    ("PYDRBD_NODE", "The name of this node, instead of `uname -n`."),
    ("PYDRBD_RUN_DIR", "Where processes keep their sockets, pid files and logs; default /run/pydrbd."),
    ("PYDRBD_VIA", "`split-brain`: the command that runs pydrbd on the other node."),
    ("PYDRBD_OVERLAYS", "Where overlay files are; default /var/lib/pydrbd/overlays."),
    ("PYDRBD_SIZES", "Where the sizes of disks are noted; default /var/lib/pydrbd/sizes."),
    ("PYDRBD_SUPERVISOR", "'no': `up` starts no supervisor."),
    ("PYDRBD_PURE", "'1': the process runs without the compiled hot path."),
    ("PYDRBD_DEBUG", "'1': an internal error shows its traceback."),
)
_FILES = (
    ("/etc/pydrbd.conf, /etc/drbd.conf", "The configuration: the first of them that exists."),
    ("/run/pydrbd/NODE/RESOURCE.log", "What a resource's process says."),
)


@click.command("install-man", epilog=examples("pydrbd install-man /usr/local/share/man"))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@pass_app
def install_man_command(app: App, folder: Path) -> None:
    """Write the manual pages pydrbd(8) and pydrbd.conf(5) below FOLDER."""
    for name, text in pages().items():
        path = folder / name
        if not app.would(f"write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            click.echo(f"wrote {path}")


def pages() -> dict[str, str]:
    """Path below a folder of manual pages -> the page."""
    return {
        "man8/pydrbd.8": "\n".join(_commands_page()) + "\n",
        "man5/pydrbd.conf.5": "\n".join(_options_page()) + "\n",
    }


# --- roff ----------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Text that roff prints as it is; `words` in backquotes become bold."""
    safe = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("^", "\\(ha")
    safe = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", safe).replace("`", "\\(ga").replace("~", "\\(ti")
    safe = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in safe)
    return "\\&" + safe if safe.startswith(".") else safe


def _head(name: str, section: int, title: str) -> Lines:
    yield f'.TH "{name.upper()}" "{section}" "" "pydrbd {__version__}" "{title}"'
    # Neither hyphenated nor stretched: commands are to be read as they are typed.
    yield from (".nh", ".ad l")


def _section(title: str) -> str:
    return f'.SH "{title}"'


def _bold(text: str) -> str:
    return f"\\fB{_plain(text)}\\fR"


def _definitions(rows: Iterable[tuple[str, str]]) -> Lines:
    for term, text in rows:
        yield from (".TP", _bold(term), _plain(text))


def _paragraphs(text: str) -> Lines:
    """Click's help text: paragraphs; one that begins with \\b keeps its lines."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        lines = [line.strip() for line in paragraph.splitlines()]
        if lines[0] == "\b":
            yield from (".nf", *(_plain(line) for line in lines[1:]), ".fi")
        else:
            yield _plain(" ".join(lines))


# --- pydrbd(8) -----------------------------------------------------------------------------------


def _commands_page() -> Lines:
    from pydrbd.cli.main import VERBS, pydrbd

    context = click.Context(pydrbd, info_name="pydrbd")
    yield from _head("pydrbd", 8, "System Administration")
    yield from (_section("NAME"), "pydrbd \\- mirror block devices between two nodes: DRBD 8.4 in userspace")
    yield _section("SYNOPSIS")
    yield f"{_bold('pydrbd')} [OPTIONS] COMMAND [ARGUMENTS]"
    yield from (_section("DESCRIPTION"), *_paragraphs(pydrbd.help or ""))
    yield from (_section("OPTIONS"), *_definitions(_options_of(pydrbd, context)))
    yield _section("COMMANDS")
    for verb in VERBS:
        command = pydrbd.get_command(context, verb)
        assert command is not None
        yield from _command(verb, command, context)
    yield from (_section("EXIT STATUS"), *_definitions(_EXIT_CODES))
    yield from (_section("ENVIRONMENT"), *_definitions(_ENVIRONMENT))
    yield from (_section("FILES"), *_definitions(_FILES))
    yield from (_section("SEE ALSO"), f"{_bold('pydrbd.conf')}(5), {_bold('nbdkit')}(1)")


def _command(verb: str, command: click.Command, parent: click.Context) -> Lines:
    context = click.Context(command, info_name=verb, parent=parent)
    yield f'.SS "{_plain(verb)}"'
    pieces = " ".join(command.collect_usage_pieces(context))
    yield from (".PP", f"{_bold('pydrbd ' + verb)} {_plain(pieces)}", ".PP")
    yield from _paragraphs(command.help or "")
    yield from _definitions(_options_of(command, context))
    if command.epilog:
        yield from (".PP", *_paragraphs(command.epilog))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from _command(f"{verb} {name}", below, context)


def _options_of(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in command.get_params(context):
        # Every command has --help; it is told once.
        told = context.parent is None or parameter.name != "help"
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) and told else None
        if record is not None:
            yield record


# --- pydrbd.conf(5) ------------------------------------------------------------------------------

_INTRO = """
pydrbd reads the configuration of DRBD 8.4 and 9: the same files serve both. `global { }` stands once,
`common { }` holds what all resources share, `resource NAME { }` describes one. `include "PATTERN";` takes
further files in.

A resource has two `on HOST { }` sections with `address IP:PORT;`, and for each volume `device`, `disk` and
`meta-disk`; directly, or in `volume N { }`. What stands in the resource itself holds for both hosts.
"""
_SAMPLE = """\
resource r0 {
    device    minor 0;
    disk      /dev/vg/r0;
    meta-disk internal;
    on alpha { address 10.0.0.1:7789; }
    on beta  { address 10.0.0.2:7789; }
}"""


def _options_page() -> Lines:
    yield from _head("pydrbd.conf", 5, "File Formats")
    yield from (_section("NAME"), "pydrbd.conf \\- configuration of pydrbd")
    yield from (_section("DESCRIPTION"), *_paragraphs(_INTRO))
    yield from (_section("EXAMPLE"), ".nf", *map(_plain, _SAMPLE.splitlines()), ".fi")
    yield _section("OPTIONS")
    yield _plain("A value that is not implemented is refused by name when the resource is started.")
    for group in GROUPS:
        yield f'.SS "{_plain(_title(group))}"'
        for spec in group.specs():
            yield from (".TP", _bold(spec.name), _plain(_about(spec)))
    yield from (_section("FILES"), *_definitions(_FILES[:1]))
    yield from (_section("SEE ALSO"), f"{_bold('pydrbd')}(8)")


def _title(group: type[OptionGroup]) -> str:
    sentence = (group.__doc__ or "").strip().partition(". ")[0].partition(" (section")[0].rstrip(".")
    return f"Section {group.SECTION}: {sentence[0].lower()}{sentence[1:]}"


def _about(spec: OptionSpec) -> str:
    default = "not set" if spec.kind is Kind.SWITCH else value_text(spec, spec.default) or "none"
    parts = [does(spec), f"Default: {default}{' ' + spec.unit if spec.unit and default != 'none' else ''}."]
    if spec.range_text:
        parts.append(f"Allowed: {spec.range_text}{' ' + spec.unit if spec.unit else ''}.")
    if spec.ours:
        parts.append("DRBD does not know this option.")
    if spec.old:
        parts.append("DRBD 9 does not know this option.")
    if spec.works is not None:
        also = ", ".join(sorted(value_text(spec, value) for value in spec.works))
        parts.append(f"Implemented: the default and {also}." if also else "Implemented: the default only.")
    return " ".join(parts)
