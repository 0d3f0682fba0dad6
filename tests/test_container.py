"""The Dockerfile is built for real, and the image runs the demo and a pair of nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.version import __version__
from tests.support.container import ROOT, Builder, Container

pytestmark = [pytest.mark.container, pytest.mark.timeout(600), pytest.mark.xdist_group("container")]

#: Runs in the container: both nodes of docker/pydrbd.conf through the image's entry point.
PAIR = r"""
set -eu
node() {
    export PYDRBD_NODE=$1 PYDRBD_RUN_DIR=/tmp/run-$1 PYDRBD_CONF=/tmp/$1.conf PYDRBD_DISKS=/disks/$1.img:16M
    shift
    "$@"
}
tell() { n=$1; shift; (node "$n" pydrbd -c /tmp/$n.conf "$@"); }
mkdir -p /disks
for n in alpha beta; do
    sed "s,/disks/r0.img,/disks/$n.img," /tmp/pair.conf > /tmp/$n.conf
    (node $n exec /opt/pydrbd/docker/entrypoint.sh) > /tmp/$n.log 2>&1 &
    eval "pid_$n=$!"
done
trap 'cat /tmp/alpha.log /tmp/beta.log' EXIT
tries=0
until tell alpha cstate r0 2>/dev/null | grep -q Connected; do
    tries=$((tries + 1)); [ $tries -lt 300 ]; sleep 0.1
done
tell alpha primary --force r0
tell alpha wait-sync r0
echo "dstate $(tell beta dstate r0)"
nbdinfo --size "$(tell alpha nbd-uri r0)"
kill $pid_alpha $pid_beta
wait $pid_alpha; echo "alpha ended $?"
wait $pid_beta; echo "beta ended $?"
trap - EXIT
ls /tmp/run-alpha/alpha/*.pid /tmp/run-beta/beta/*.pid 2>/dev/null && exit 1
cmp -n 8388608 /disks/alpha.img /disks/beta.img
echo both nodes are down
"""


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    made = Builder(tmp_path_factory.mktemp("container"))
    made.build()
    return made


@pytest.fixture
def container(builder: Builder, tmp_path: Path) -> Iterator[Container]:
    example = (ROOT / "docker/pydrbd.conf").read_text()
    local = re.sub(r"172\.31\.84\.(\d):7788", r"127.84.0.\1:7788", example)
    assert local.count("127.84.0.") == 2
    (tmp_path / "pair.conf").write_text(local)
    with builder.container(f"{tmp_path}/pair.conf:/tmp/pair.conf:ro") as made:
        yield made


def test_the_image_answers_its_version(container: Container) -> None:
    said = container.run("pydrbd", "version")
    assert f"pydrbd {__version__}" in said
    assert "8.4" in said


def test_the_demo_runs_in_the_image(container: Container) -> None:
    said = container.run("pydrbd", "demo", "--mapping", "socket")
    assert "alpha" in said
    assert "went wrong" not in said


def test_a_pair_comes_up_and_goes_down_through_the_entry_point(container: Container) -> None:
    said = container.run("sh", "-c", PAIR)
    assert "dstate UpToDate/UpToDate" in said
    assert "both nodes are down" in said, said
    assert "alpha ended 0" in said
    assert "beta ended 0" in said
