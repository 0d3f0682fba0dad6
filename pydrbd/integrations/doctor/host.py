"""The checks of this machine: HOST, name -> function of HostFacts. Floor: outer, pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydrbd.integrations.doctor.facts import Finding, HostFacts, fail, ok, skipped, warn

MIB = 1 << 20
#: Descriptors of a resource's process: two for each NBD and control client, disks, sockets.
LEAST_FILES = 1024
#: What one resource may take, see docs/memory.md.
RESOURCE_BYTES = 128 * MIB
_MEMORY_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs"})


def configuration(host: HostFacts) -> Finding:
    """Can it be read, and is this node in it?"""
    if host.config_problem:
        return fail(host.config_problem, "correct the configuration; see docs/configuration.md")
    if not host.resources:
        names = ", ".join(host.hosts) or "none"
        return fail(
            f"no resource has a section for this node, {host.node}; the hosts in it are: {names}",
            f"name the section after `uname -n` ({host.uname}), or say --node NAME",
        )
    number = "1 resource" if host.resources == 1 else f"{host.resources} resources"
    return ok(f"{number} for node {host.node}")


def node_name(host: HostFacts) -> Finding:
    if host.node == host.uname:
        return ok(host.node)
    return warn(
        f"this node is called {host.node} here, but `uname -n` says {host.uname}",
        "fine for tests; in production every command needs --node or PYDRBD_NODE then",
    )


def privileges(host: HostFacts) -> Finding:
    missing = [name for name in ("CAP_SYS_ADMIN", "CAP_SYS_RESOURCE") if name not in host.capabilities]
    if not missing:
        return ok("CAP_SYS_ADMIN and CAP_SYS_RESOURCE")
    meaning = {
        "CAP_SYS_ADMIN": "block devices cannot be mapped",
        "CAP_SYS_RESOURCE": "PR_SET_IO_FLUSHER and oom_score_adj cannot be set, so a node that is short of "
        "memory may hang or lose the process",
    }
    who = "run it as root" if not host.root else "give the container or service the capability"
    return warn("; ".join(f"no {name}: {meaning[name]}" for name in missing), who)


def nbd(host: HostFacts) -> Finding:
    """The kernel's nbd client, with netlink."""
    if not host.nbd_problem:
        return ok("the kernel's nbd client answers on netlink")
    if host.nbd_module_installed:
        return warn(
            "the module nbd is there but not loaded",
            "modprobe nbd nbds_max=0 max_part=0 (pydrbd does so itself when it may)",
        )
    if host.nbdfuse and host.fuse_device and host.loop_control:
        return warn(
            f"no kernel nbd client ({host.nbd_problem}); FUSE and a loop device are used instead",
            "install the module nbd: only with it can the process restart under a mounted file system",
        )
    return fail(
        f"no way to make a block device: {host.nbd_problem}",
        "load the module nbd, or install nbdfuse with /dev/fuse and /dev/loop-control; "
        "NBD clients (`pydrbd nbd-uri`) work without",
    )


def fuse(host: HostFacts) -> Finding:
    missing = [
        name
        for name, there in (
            ("nbdfuse", host.nbdfuse),
            ("/dev/fuse", host.fuse_device),
            ("/dev/loop-control", host.loop_control),
        )
        if not there
    ]
    if not missing:
        return ok("nbdfuse, /dev/fuse and /dev/loop-control are there")
    if not host.nbd_problem:
        return skipped(f"not needed beside nbd (missing: {', '.join(missing)})")
    return warn(f"missing: {', '.join(missing)}", "apt install nbdfuse (or libnbd-bin); modprobe fuse loop")


def nbdkit(host: HostFacts) -> Finding:
    if not host.nbdkit:
        return fail("nbdkit is not installed", "apt install nbdkit nbdkit-plugin-python")
    if host.plugin_problem:
        return fail(host.plugin_problem, "apt install nbdkit-plugin-python, and a venv of that Python")
    return ok(f"{host.nbdkit}, its plugin embeds Python {host.plugin_python}")


def drbd_utils(host: HostFacts) -> Finding:
    if host.kernel_drbd:
        return warn(
            "the kernel's DRBD is loaded; it may want the same minors, ports and disks",
            "give a resource to one of the two: `drbdadm down RES` before `pydrbd up RES`",
        )
    return ok(host.drbd_utils) if host.drbd_utils else skipped("drbd-utils is not installed; not needed")


def kernel(host: HostFacts) -> Finding:
    return ok(f"Linux {host.kernel}")


def open_files(host: HostFacts) -> Finding:
    if host.nofile >= LEAST_FILES:
        return ok(f"RLIMIT_NOFILE {host.nofile}")
    return warn(
        f"RLIMIT_NOFILE is {host.nofile}: clients are refused when descriptors run out",
        f"ulimit -n {LEAST_FILES}, or LimitNOFILE={LEAST_FILES} in the unit",
    )


def memory(host: HostFacts) -> Finding:
    """Is there room for what the resources may take at the most?"""
    need = RESOURCE_BYTES * max(host.resources, 1)
    text = f"{host.memory_available // MIB} of {host.memory_total // MIB} MiB available"
    if not host.memory_total:
        return skipped("/proc/meminfo cannot be read")
    if host.memory_available < need:
        return warn(
            f"{text}, and {max(host.resources, 1)} resource(s) may take {need // MIB} MiB",
            "add memory, or lower max-buffers; see docs/memory.md",
        )
    return ok(text)


def run_directory(host: HostFacts) -> Finding:
    if host.run_dir_problem:
        return fail(
            f"{host.run_dir}: {host.run_dir_problem}", "make it writable for root, or set PYDRBD_RUN_DIR"
        )
    if host.run_dir_fs not in _MEMORY_SYSTEMS:
        return warn(
            f"{host.run_dir} is on {host.run_dir_fs or 'some file system'}: the log waits for that disk",
            "use the default /run/pydrbd (tmpfs), or set PYDRBD_RUN_DIR to another tmpfs; never put it on a "
            "replicated device",
        )
    return ok(f"{host.run_dir} ({host.run_dir_fs})")


def hung_tasks(host: HostFacts) -> Finding:
    if host.hung_task_panic and host.hung_task_seconds:
        return warn(
            f"the kernel panics when I/O takes {host.hung_task_seconds} s (hung_task_panic)",
            "sysctl kernel.hung_task_panic=0, if I/O may wait while a process restarts",
        )
    return ok("slow I/O does not make the kernel panic")


HOST: Mapping[str, Callable[[HostFacts], Finding]] = {
    "configuration": configuration,
    "node name": node_name,
    "kernel": kernel,
    "privileges": privileges,
    "nbd client": nbd,
    "fuse and loop": fuse,
    "nbdkit": nbdkit,
    "drbd-utils": drbd_utils,
    "open files": open_files,
    "memory": memory,
    "run directory": run_directory,
    "hung tasks": hung_tasks,
}
