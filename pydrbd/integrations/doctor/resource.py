"""The checks of a resource: RESOURCE, name -> function of ResourceFacts. Floor: outer, pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydrbd.integrations.doctor.facts import Finding, ResourceFacts, fail, ok, skipped, warn

MIB, PAGE = 1 << 20, 4096
#: A path that carries less than the smallest IPv6 packet plus headers is broken somewhere.
_LEAST_MTU = 1280
#: The share of the machine's memory that a resource's buffers should stay below.
_MEMORY_SHARE = 0.25


def options(resource: ResourceFacts) -> Finding:
    if resource.unimplemented:
        return fail(
            f"pydrbd does not implement: {', '.join(resource.unimplemented)}",
            "remove the option or give it its default value; `up` refuses it",
        )
    return ok("every option that is set is implemented")


def timeouts(resource: ResourceFacts) -> Finding:
    """Time-outs that contradict each other. Sources: drbd.conf(5), and what pydrbd does with them."""
    net = resource.net
    problems = []
    if net.timeout >= 10 * min(net.ping_int, net.connect_int):
        problems.append(
            f"timeout ({net.timeout / 10:g} s) must be lower than ping-int ({net.ping_int} s) "
            f"and connect-int ({net.connect_int} s)"
        )
    if net.ping_timeout >= 10 * net.ping_int:
        problems.append(
            f"ping-timeout ({net.ping_timeout / 10:g} s) is not lower than ping-int ({net.ping_int} s)"
        )
    if net.ping_timeout > net.timeout:
        problems.append(
            f"ping-timeout ({net.ping_timeout / 10:g} s) is longer than timeout ({net.timeout / 10:g} s): "
            "a dead peer is noticed late"
        )
    if problems:
        return warn(
            "; ".join(problems), "see drbd.conf(5); the defaults (6 s, 10 s, 10 s, 0.5 s, 7) fit together"
        )
    slow = f"after {net.timeout / 10 * net.ko_count:g} s" if net.ko_count else "never (ko-count 0)"
    return ok(
        f"a dead peer is noticed after {net.ping_int + net.ping_timeout / 10:g} s, a slow one given up {slow}"
    )


def buffers(resource: ResourceFacts) -> Finding:
    most = resource.net.max_buffers * PAGE
    if resource.memory_total and most > resource.memory_total * _MEMORY_SHARE:
        return warn(
            f"max-buffers allows {most // MIB} MiB of the machine's {resource.memory_total // MIB} MiB",
            "lower max-buffers; see docs/memory.md",
        )
    return ok(f"max-buffers {resource.net.max_buffers}: {most // MIB} MiB of the peer's writes at the most")


def process(resource: ResourceFacts) -> Finding:
    found = resource.process
    if found is None:
        if resource.crashed:
            return warn(
                "its process was killed or crashed",
                f"pydrbd up {resource.name} starts it again; nothing acknowledged is lost",
            )
        return skipped(f"not up; `pydrbd up {resource.name}` starts it")
    if not found.answers:
        return fail(
            f"process {found.pid} does not answer on its control socket",
            f"look at its log; if it hangs, `pydrbd down {resource.name}` ends it",
        )
    if found.version != found.our_version:
        return warn(
            f"process {found.pid} runs pydrbd {found.version}, installed is {found.our_version}",
            f"pydrbd down {resource.name} && pydrbd up {resource.name}, when that is convenient",
        )
    grown = f", {found.rss // MIB} MiB resident" if found.rss else ""
    return ok(f"process {found.pid}{grown}")


def protection(resource: ResourceFacts) -> Finding:
    """PR_SET_IO_FLUSHER and the OOM killer."""
    found = resource.process
    if found is None:
        return skipped("not up")
    problems = []
    if found.io_flusher is False:
        problems.append("PR_SET_IO_FLUSHER is not set: a storm of dirty pages may stop this node")
    if found.oom_score_adj is not None and found.oom_score_adj > -500:
        problems.append(f"oom_score_adj is {found.oom_score_adj}: the kernel may end it when memory runs out")
    if problems:
        return warn("; ".join(problems), "start it with CAP_SYS_RESOURCE (as root; a container needs it)")
    if found.io_flusher is None or found.oom_score_adj is None:
        return skipped("/proc does not tell")
    return ok(f"PR_SET_IO_FLUSHER is set, oom_score_adj {found.oom_score_adj}")


def address(resource: ResourceFacts) -> Finding:
    if resource.local_present:
        return ok(f"{resource.local} is an address of this host")
    return fail(
        f"no interface of this host has the address {resource.local}",
        "bring the interface up, or correct `address` in this node's section",
    )


def peer(resource: ResourceFacts) -> Finding:
    """Reachability by TCP."""
    found, who = resource.peer_facts, f"{resource.peer_name} at {resource.peer}"
    match found.outcome:
        case "running":
            return ok(f"connected with {who}")
        case "connected":
            return ok(f"{who} accepts connections ({found.seconds * 1000:.1f} ms)")
        case "refused":
            return warn(
                f"{who} is reachable, but nothing listens there",
                "bring the resource up on the peer (a connected or StandAlone node does not listen either)",
            )
        case "timeout":
            return fail(
                f"{who} does not answer within {found.seconds:.0f} s",
                f"is it up? does a firewall drop TCP to {resource.peer}?",
            )
        case "":
            return skipped("not tried: this node does not have its own address")
        case _:
            return fail(f"{who}: {found.detail}", "check the route and the interface")


def round_trip(resource: ResourceFacts) -> Finding:
    """Is ping-timeout long enough for the way?"""
    found, limit = resource.peer_facts, resource.net.ping_timeout / 10
    if found.outcome not in ("connected", "refused"):
        return skipped("not measured")
    if found.seconds > limit / 4:
        return warn(
            f"a round trip takes {found.seconds * 1000:.0f} ms, and ping-timeout is {limit * 1000:.0f} ms",
            "raise ping-timeout (1/10 s) to at least four round trips",
        )
    return ok(f"{found.seconds * 1000:.1f} ms, ping-timeout {limit * 1000:.0f} ms")


def mtu(resource: ResourceFacts) -> Finding:
    found = resource.peer_facts
    if not found.path_mtu:
        return skipped("the path's MTU is not known")
    if found.path_mtu < _LEAST_MTU:
        return warn(f"the path's MTU is {found.path_mtu}", "look for a tunnel or a wrong MTU on the way")
    if found.interface == "lo":
        return ok("loopback")
    if found.interface_mtu and found.path_mtu < found.interface_mtu:
        return warn(
            f"{found.interface} has MTU {found.interface_mtu}, the path to the peer {found.path_mtu}",
            "give all interfaces and switches of the replication network the same MTU",
        )
    return ok(f"{found.path_mtu} bytes" + (f" through {found.interface}" if found.interface else ""))


def authentication(resource: ResourceFacts) -> Finding:
    if resource.net.cram_hmac_alg:
        return ok(f"the peer proves its shared-secret ({resource.net.cram_hmac_alg})")
    host = resource.peer.rpartition(":")[0].strip("[]")
    if host.startswith("127.") or host == "::1":
        return skipped("loopback")
    return warn(
        "any host that reaches the port may pose as the peer",
        "set cram-hmac-alg and shared-secret, or keep the network to the two nodes",
    )


RESOURCE: Mapping[str, Callable[[ResourceFacts], Finding]] = {
    "options": options,
    "time-outs": timeouts,
    "buffers": buffers,
    "process": process,
    "memory protection": protection,
    "own address": address,
    "peer": peer,
    "round trip": round_trip,
    "MTU": mtu,
    "authentication": authentication,
}
