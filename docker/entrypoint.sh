#!/bin/sh
# One node as a container: create what is missing, bring all resources up, stay until told to stop.
#
# Configuration: /etc/pydrbd.conf (or PYDRBD_CONF), the same file on both nodes.
# Node name: the container's host name (or PYDRBD_NODE).
# Disks: a file named in PYDRBD_DISKS ("/disks/r0.img:256M /disks/r1.img:1G") is created, sparse,
# if it is not there; its resource then gets metadata, unless it has some already.
# Nothing that exists is ever overwritten: create-md refuses without --force, and that is no error here.
set -eu

config=${PYDRBD_CONF:-/etc/pydrbd.conf}
pydrbd() { /opt/pydrbd/.venv/bin/pydrbd -c "$config" "$@"; }

say() { echo "${PYDRBD_NODE:-$(uname -n)}: $*"; }

create_disks() {
    for entry in ${PYDRBD_DISKS:-}; do
        file=${entry%:*} size=${entry##*:}
        [ -e "$file" ] || { say "creating $file ($size)"; truncate -s "$size" "$file"; }
    done
}

# A resource without valid metadata gets some.
create_metadata() {
    pydrbd get-gi all >/dev/null 2>&1 && return 0
    pydrbd create-md all || say "create-md changed nothing; going on with what is there"
}

stop() {
    trap '' TERM INT
    say "going down"
    # The sleep below would outlive this shell where the container has no process namespace of its own.
    kill "$sleeper" 2>/dev/null || true
    pydrbd down all || say "down did not succeed everywhere"
    exit 0
}

create_disks
create_metadata
sleeper=
trap stop TERM INT
pydrbd up all
pydrbd status all || true
say "up; promote with: pydrbd primary RESOURCE"
# sleep in the background, because a shell runs its trap only between commands.
while :; do
    sleep 3600 &
    sleeper=$!
    wait "$sleeper" || true
done
