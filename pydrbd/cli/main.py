"""The command line: the table of verbs, the general options, and how errors end.

Floor: outer. Neighbours: context.py (what every verb gets), one file per subject for the verbs.
A verb's file is imported when the verb is used, so that `pydrbd status` starts fast. Every
expected error is its own text on stderr and its own exit code; nobody sees a traceback unless
PYDRBD_DEBUG=1 asks for it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from pydrbd.cli.context import ERRORS, App
from pydrbd.errors import PydrbdError, with_notes
from pydrbd.version import __version__

#: verb -> (module in pydrbd.cli, one line of help). The order is the order of `pydrbd --help`.
VERBS: dict[str, tuple[str, str]] = {
    "create-md": ("metadata", "Write new metadata to the backing disks."),
    "up": ("lifecycle", "Start a resource: attach its disks and connect to the peer."),
    "adjust": ("adjust", "Make a resource run as the edited configuration says."),
    "net-options": ("adjust", "Take over the section 'net' of the edited configuration."),
    "disk-options": ("adjust", "Take over the options of the disks."),
    "peer-device-options": ("adjust", "Take over the pace of resyncs."),
    "resource-options": ("adjust", "Take over the section 'options'."),
    "down": ("lifecycle", "Stop a resource and its process."),
    "restart": ("supervise", "Replace a resource's process, under a mounted file system if need be."),
    "attach": ("lifecycle", "Attach a backing disk."),
    "detach": ("lifecycle", "Detach a backing disk."),
    "primary": ("role", "Make this node Primary: its device can be used."),
    "secondary": ("role", "Make this node Secondary again."),
    "connect": ("connection", "Connect to the peer."),
    "disconnect": ("connection", "Disconnect from the peer."),
    "invalidate": ("sync", "Discard the local data and fetch all of it from the peer."),
    "invalidate-remote": ("sync", "Discard the peer's data and send all of ours."),
    "outdate": ("sync", "Mark the local data as outdated."),
    "pause-sync": ("sync", "Pause the resync."),
    "resume-sync": ("sync", "Let the resync go on."),
    "suspend-io": ("sync", "Hold back the requests of all clients."),
    "resume-io": ("sync", "Let the requests of clients go on."),
    "new-current-uuid": ("sync", "Start a new data generation, for instance to skip the first sync."),
    "resize": ("resize", "Let a device grow with its disks, while it is in use."),
    "verify": ("verify", "Compare the data of both nodes while they are in use."),
    "scrub": ("scrub", "Verify one resource after the other, from a timer."),
    "split-brain": ("split_brain", "Show a split brain, and resolve it from one node."),
    "overlay": ("overlay", "Read what a node gave up in a split brain."),
    "status": ("show", "Show the state of the resources that are up."),
    "events2": ("events2", "Print what exists and every change of state, as drbdsetup does."),
    "monitor": ("monitor", "Show all resources live on the whole screen, and act on them."),
    "explain": ("explain", "Say in plain words what the state means and what to do next."),
    "history": ("history", "Show what happened to a resource, when and why."),
    "latency": ("latency", "Show where the time of reads, writes and flushes goes."),
    "role": ("show", "Print the role."),
    "cstate": ("show", "Print the connection state."),
    "dstate": ("show", "Print the disk states, local and peer's."),
    "get-gi": ("metadata", "Print the generation identifiers on one line."),
    "set-gi": ("metadata", "Change the generation identifiers in the metadata."),
    "show-gi": ("metadata", "Print the generation identifiers with explanations."),
    "dump-md": ("metadata", "Print the metadata as text."),
    "apply-al": ("metadata", "Mark what a crashed Primary may have been writing as out of sync."),
    "restore-md": ("metadata", "Write metadata that dump-md has printed."),
    "wipe-md": ("metadata", "Remove the metadata from the backing disks."),
    "dump": ("show", "Print the configuration, normalised."),
    "dump-xml": ("show", "Print the configuration as XML."),
    "wait-connect": ("wait", "Wait until the peer is connected."),
    "wait-sync": ("wait", "Wait until a running resync is finished."),
    "map": ("mapping", "Make the volumes usable as block devices."),
    "unmap": ("mapping", "Take the block devices away."),
    "nbd-uri": ("show", "Print the URI of a volume for NBD clients."),
    "doctor": ("doctor", "Check this machine and its resources, and say what to change."),
    "supervise": ("supervise", "Watch over a resource's process, in the foreground."),
    "install-units": ("supervise", "Write the units for systemd."),
    "install-man": ("manpages", "Write the manual pages."),
    "completion": ("completion", "Print the completion script for a shell."),
    "install-compat": ("compat", "Install drbdadm, drbdsetup and drbdmeta for scripts."),
    "demo": ("demo", "Show two nodes on this machine, a crash and a fail-over."),
    "version": ("show", "Print versions."),
}


class Verbs(click.Group):
    """A group that imports a verb's file only when the verb is used."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = VERBS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"pydrbd.cli.{entry[0]}")
        command = getattr(module, cmd_name.replace("-", "_") + "_command")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS:
            from difflib import get_close_matches

            near = get_close_matches(args[0], VERBS, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"Unknown command '{args[0]}'{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  pydrbd up all\n  pydrbd status\n  pydrbd primary r0\n  pydrbd create-md --help",
)
@click.option(
    "-c",
    "--config-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration; default: the first of /etc/pydrbd.conf, /etc/drbd.conf that exists.",
)
@click.option(
    "--node",
    metavar="NAME",
    envvar="PYDRBD_NODE",
    default="",
    help="The 'on NAME' section that is this node; default: $PYDRBD_NODE, else `uname -n`.",
)
@click.option("-d", "--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option(
    "--running", is_flag=True, help="Take resources from what runs, and do not read the configuration."
)
@click.version_option(__version__, "-V", "--version", message="pydrbd %(version)s", help="Print the version.")
@click.pass_context
def pydrbd(ctx: click.Context, config_file: Path | None, node: str, dry_run: bool, running: bool) -> None:
    """Mirror block devices between two nodes: DRBD 8.4 in userspace.

    RESOURCE arguments are resource names, RESOURCE/VOLUME, or 'all'. PYDRBD_RUN_DIR (default
    /run/pydrbd) is where processes keep their sockets, pid files and logs. With --running,
    resources that are up can be looked at, changed and stopped while the configuration is
    broken or does not name them any more.
    """
    ctx.obj = App(config_file=config_file, node=node, dry_run=dry_run, running=running)


class TerminatedError(BaseException):
    """SIGTERM: ends a command as Ctrl-C does, with its clean-ups, and exit code 143."""


def _on_term(_signal: int, _frame: Any) -> None:
    raise TerminatedError


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0, or the exit code that the error carries."""
    if "_PYDRBD_COMPLETE" in os.environ:
        pydrbd.main(prog_name="pydrbd")
    signal.signal(signal.SIGTERM, _on_term)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str], errors: list[PydrbdError] | None = None) -> int:
    """Run one command and answer its exit code; errors are printed to stderr, and added to `errors`."""
    errors = [] if errors is None else errors
    try:
        # Not Group.main(): that has its own opinion about interrupts and closed pipes.
        with pydrbd.make_context("pydrbd", list(arguments)) as context:
            context.meta[ERRORS] = errors
            result = pydrbd.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        error.show()
        return 1
    except click.ClickException as error:
        error.show()
        return 1
    except TerminatedError:
        return 128 + signal.SIGTERM
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except PydrbdError as error:
        _say(with_notes(error))
        errors.append(error)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output went away (| head): that is no error. Keep exit from flushing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # the boundary: a bug is one line, not a traceback
        if os.environ.get("PYDRBD_DEBUG") == "1":
            raise
        _say(
            f"pydrbd: internal error: {type(error).__name__}: {error}; please report it, with the output of "
            "the same command under PYDRBD_DEBUG=1"
        )
        return 20
    return result if isinstance(result, int) else 0


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
