"""completion: what a shell needs to complete pydrbd's commands, options and resources. Floor: outer."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from pydrbd.cli.context import examples

_SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
#: main.py looks for it.
VARIABLE = "_PYDRBD_COMPLETE"


@click.command(
    "completion",
    epilog=examples(
        "pydrbd completion bash > /etc/bash_completion.d/pydrbd",
        "pydrbd completion zsh > /usr/local/share/zsh/site-functions/_pydrbd",
        "pydrbd completion fish > ~/.config/fish/completions/pydrbd.fish",
    ),
)
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def completion_command(shell: str) -> None:
    """Print the script that makes SHELL complete commands, options and the names of resources."""
    from pydrbd.cli.main import pydrbd

    click.echo(_SHELLS[shell](pydrbd, {}, "pydrbd", VARIABLE).source())
