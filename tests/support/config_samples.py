"""Configuration texts for the tests, and drbdadm as an independent reader of them.

drbdadm 9.22 (Debian's drbd-utils) needs no kernel module for `dump` and for `-d` (dry run).
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from pydrbd.config import TABLE, OptionSpec
from pydrbd.config.dump import quoted
from pydrbd.config.optionspec import Kind

DRBDADM = "/usr/sbin/drbdadm"

GLOBAL = "global { disable-ip-verification; }\n"

TWO_HOSTS = """
    on alpha { device minor 1; disk /dev/vda; meta-disk internal; address 10.0.0.1:7789; }
    on beta { device minor 1; disk /dev/vdb; meta-disk internal; address 10.0.0.2:7789; }
"""


def resource(body: str, hosts: str = TWO_HOSTS, name: str = "r0") -> str:
    """One resource with `body` before its host sections."""
    return f"{GLOBAL}resource {name} {{ {body} {hosts} }}\n"


def drbdadm(path: Path, *arguments: str, node: str = "beta") -> subprocess.CompletedProcess[str]:
    """Runs drbdadm on the file `path` as if this machine were called `node`."""
    environment = {**os.environ, "__DRBD_NODE__": node, "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [DRBDADM, "-c", str(path), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=30,
        check=False,
    )


def drbdadm_dump(path: Path) -> str:
    """What drbdadm makes of the file; an AssertionError with its words if it refuses."""
    done = drbdadm(path, "dump")
    assert done.returncode == 0, f"drbdadm: exit {done.returncode}\n{done.stderr}\n{path.read_text()}"
    return done.stdout


def dry_run(path: Path, node: str) -> list[list[str]]:
    """The backend commands that `drbdadm up all` would run on `node`, their options sorted."""
    done = drbdadm(path, "-d", "up", "all", node=node)
    assert done.returncode == 0, f"drbdadm: exit {done.returncode}\n{done.stderr}\n{path.read_text()}"
    # Commands are printed with the folder that drbdadm itself was called in.
    lines = [line.rpartition("/sbin/")[2] if "/sbin/" in line else line for line in done.stdout.splitlines()]
    calls = [shlex.split(line) for line in lines if line.startswith("drbd")]
    assert calls, f"drbdadm would do nothing\n{done.stdout}{done.stderr}"
    return [
        [w for w in call if not w.startswith("--")] + sorted(w for w in call if w.startswith("--"))
        for call in calls
    ]


def tree(dumped: str) -> list[object]:
    """drbdadm's dump (one statement per line) as nested, sorted lists without comments and spacing."""
    top: list[object] = []
    stack: list[list[object]] = [top]
    for line in dumped.splitlines():
        words = " ".join(line.split())
        if not words or words.startswith("#"):
            continue
        if words.endswith("{"):
            inner: list[object] = [words]
            stack[-1].append(inner)
            stack.append(inner)
        elif words == "}":
            inner = stack.pop()
            inner[1:] = sorted(inner[1:], key=repr)
        else:
            stack[-1].append(words)
    assert stack == [top]
    top.sort(key=repr)
    return top


def other_value(spec: OptionSpec) -> str:
    """Some text that gives the option a value other than its default, one that is refused if there is any."""
    match spec.kind:
        case Kind.NUMBER:
            return str(spec.maximum if spec.default != spec.maximum else spec.minimum)
        case Kind.NUMBER_OR_WORD:
            return "majority"
        case Kind.FLAG:
            return "no" if spec.default else "yes"
        case Kind.CHOICE:
            words = [word for word in reversed(spec.words) if word != spec.default]
            return next((word for word in words if not spec.accepts(word)), words[0])
        case Kind.SWITCH:
            return ""
        case _ if spec.name == "resync-after":
            return "r0/0"
        case _:
            return quoted('a "b" \\ #;{} c')


def every_option(section: str) -> str:
    """The section with all its options, none at its default."""
    rows = [s for s in TABLE if s.section == section and s.name not in FORGOTTEN and not (s.ours or s.old)]
    return f"{section} {{ {' '.join(f'{s.name} {other_value(s)};' for s in rows)} }}"


#: Options that drbdadm 9.22 reads and does not print.
FORGOTTEN = ("become-primary-on", "stacked-timeouts", "udev-always-use-vnr")

_EXPLICIT = """
    on alpha { address 10.0.0.1:7789; node-id 3;
      volume 0 { device minor 1; disk /dev/vda; meta-disk internal; disk { size 1g; c-max-rate 10M; } }
      volume 7 { device /dev/drbd2; disk /dev/vdb; meta-disk /dev/vdc; } }
    on beta { address 10.0.0.2:7789; node-id 1;
      volume 0 { device minor 1; disk /dev/vda; meta-disk "/dev/vdd"[0]; disk { al-extents 10; } }
      volume 7 { device /dev/drbd_name minor 2; disk /dev/vdb; flexible-meta-disk /dev/vdc; } }
"""
_ADDRESSED = """
    connection { host beta address 10.1.0.2:78; host alpha address 10.1.0.1:78;
      net { ping-int 3; } disk { c-max-rate 1; } volume 0 { disk { c-min-rate 9; } } }
    on alpha { node-id 0; device minor 1; disk /dev/vda; meta-disk internal; address 10.0.0.1:7789; }
    on beta { node-id 1; device minor 1; disk /dev/vda; meta-disk internal; address 10.0.0.2:7789; }
"""

#: name -> text; the dumps of drbdadm and pydrbd have the same sections in the same places.
SAMPLES: dict[str, str] = {
    "minimal": resource(""),
    "net": resource(every_option("net")),
    "disk": resource(every_option("disk")),
    "options": resource(every_option("options")),
    "startup": resource("startup { wfc-timeout 10s; degr-wfc-timeout 4; wait-after-sb; }"),
    "handlers": resource(every_option("handlers")),
    "global": "global { disable-ip-verification; usage-count no; minor-count 64; dialog-refresh 5; }\n"
    + resource("").removeprefix(GLOBAL),
    "common": "common { net { protocol A; timeout 1; } disk { resync-rate 30M; al-extents 257; }\n"
    ' options { auto-promote no; } startup { wfc-timeout 1; } handlers { fence-peer "/x y"; } }\n'
    + resource("disk { al-updates; c-plan-ahead 3; } net { ping-int 3; }"),
    "overridden": "common { net { timeout 30; protocol A; } disk { al-extents 301; c-max-rate 1M; } }\n"
    + resource(
        "net { timeout 40; } disk { al-extents 302; }",
        _EXPLICIT.replace("size 1g; c-max-rate 10M;", "al-extents 303;"),
    ),
    "8.4 spellings": resource(
        "protocol B; net { no-tcp-cork; allow-two-primaries; } disk { no-disk-flushes; no-md-flushes; }"
    ),
    "suffixes": resource(
        "net { sndbuf-size 512k; rcvbuf-size 1M; max-buffers 8K; congestion-fill 1g; }"
        "disk { size 100000s; c-fill-target 24K; c-max-rate 4096s; c-min-rate 0; resync-rate 1s; }"
    ),
    "explicit volumes": resource("", _EXPLICIT),
    "connection": resource("", _ADDRESSED),
    "port": resource("", _ADDRESSED.replace("host beta address 10.1.0.2:78", "host beta port 79")),
    "ipv6": resource(
        "",
        TWO_HOSTS.replace("10.0.0.1:7789", "ipv6 [fd00::1]:1")
        .replace("10.0.0.2:7789", "ipv6 [fd00::2%eth0]:65535")
        .replace("{ device", "{ node-id 7; device", 1)
        .replace("beta {", "beta { node-id 6;"),
    ),
    "diskless": resource("", TWO_HOSTS.replace("disk /dev/vda", "disk none")),
    "several names": resource("", TWO_HOSTS.replace("on alpha", "on alpha gamma delta")),
    "quoted": resource("", TWO_HOSTS.replace("on alpha", 'on "alpha"'), name='"r 0"'),
    "two resources": resource("")
    + 'resource r1 { options { cpu-mask "ff,1"; } disk { resync-after r0/0; }'
    + TWO_HOSTS.replace("minor 1", "minor 2").replace("7789", "7790").replace("/dev/vd", "/dev/nvme")
    + "}",
    "skipped": resource("")
    + 'skip resource old { an unbalanced "}" # and }\n ! $ [ on { x } } skip common { }\n',
}

#: Volumes said once for all hosts: drbdadm prints them where they stand, pydrbd in the hosts.
SHARED: dict[str, str] = {
    "implicit": resource(
        "device minor 1; disk /dev/vda; meta-disk internal; disk { c-plan-ahead 1; }",
        "on alpha { address 10.0.0.1:7789; } on beta { address 10.0.0.2:7789; disk /dev/vdb; }",
    ),
    "explicit": resource(
        "volume 0 { device minor 1; disk /dev/vda; disk { al-updates no; c-min-rate 10; } }"
        "volume 3 { device drbd4; disk /dev/vdb; meta-disk /dev/vdc [12]; }",
        "on alpha { address 10.0.0.1:7789; volume 3 { disk { size 8M; } } }"
        "on beta { address 10.0.0.2:7789; volume 3 { disk /dev/vdx; meta-disk internal; } }",
    ),
    "floating": resource(
        "device minor 1; disk /dev/vda; meta-disk internal;",
        "floating 10.255.0.1:7789 { node-id 2; } floating ipv4 127.0.0.1:7789 { disk /dev/vdb; node-id 4; }",
    ),
    "mesh": resource(
        "connection-mesh { hosts alpha beta; net { timeout 22; } }",
        TWO_HOSTS.replace("on alpha {", "on alpha { node-id 0;").replace("on beta {", "on beta { node-id 1;"),
    ),
}
