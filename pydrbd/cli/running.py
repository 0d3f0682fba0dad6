"""Resources as they run here, for what must not need a configuration: `--running`, drbdsetup, `down`.

Floor: outer. Neighbours: compat/processes.py (finds the processes), integrations/described.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pydrbd.cli.context import App, Target
from pydrbd.cli.resource import LocalProcess, LocalResource, NotUp
from pydrbd.compat.processes import Here
from pydrbd.errors import ControlError, UsageError
from pydrbd.integrations.described import view_of
from pydrbd.supervisor.remote import Remote

#: What a resource that is not quite down has in the run directory (RunPaths, and records of devices). A
#: supervisor's socket counts while there is one: it may be about to start a process.
_TRACE = re.compile(r"(?P<name>.+)\.(?:ctl|pid|(?P<supervisor>sup)|[0-9]+\.map)", re.DOTALL)


def targets(app: App, names: Iterable[str]) -> list[Target]:
    """As App.targets, of what is up. NotUp; UsageError for a volume that is not there; ControlError."""
    found: dict[tuple[str, int | None], Target] = {}
    for word in names:
        name, slash, number = word.partition("/")
        resources = all_up(app) if word == "all" else [_resource(app, name)]
        for resource in resources:
            volume = _volume(resource, number) if slash else None
            found[resource.name, volume] = Target(resource, volume)
    return list(found.values())


def all_up(app: App) -> list[LocalResource]:
    """Every resource that answers, by name."""
    return [_resource(app, process.name) for process in Here(app.node).all_up()]


def _resource(app: App, name: str) -> LocalResource:
    process = Here(app.node).process(name)
    if process is None:
        raise NotUp(name, f"{name} is not up on {app.node}.", crashed=False)
    config = str(process.description["config"])
    return LocalResource(view_of(process.description), app, Path(config) if config else None)


def _volume(resource: LocalResource, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) in resource.view.volumes):
        raise UsageError(f"Resource '{resource.name}' runs without a volume {text}")
    return int(text)


def remains(app: App, name: str) -> list[LocalProcess]:
    """What `down` can stop by that name (`all`: by any) without a configuration: also a resource whose
    process crashed, does not answer, or does not say what it is."""
    return [_by_name(app, one) for one in traces(app, name)]


def traces(app: App, name: str) -> list[str]:
    """The resources of that name (`all`: of any) that are not quite down here. No process is asked."""
    try:
        files = [_TRACE.fullmatch(path.name) for path in (app.run_dir / app.node).iterdir()]
    except OSError:
        return []
    return sorted(
        {
            file["name"]
            for file in files
            if file and name in (file["name"], "all")
            if not file["supervisor"] or Remote(app.run_dir, app.node, file["name"]).alive
        }
    )


def _by_name(app: App, name: str) -> LocalProcess:
    try:
        return _resource(app, name)
    except (NotUp, ControlError):
        return LocalProcess(name, app)
