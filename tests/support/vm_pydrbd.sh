# Shell functions for nodes of pydrbd in a guest; `. $SUPPORT/vm_pydrbd.sh` (after vm_drbd.sh, if a
# kernel node is the peer). Every node is chosen by its name in the one configuration file $RES.
# Commands are slow here (seconds, by emulation), so that tests wait with wait-connect and
# wait-sync, or look at the kernel's side, instead of polling.

export PYDRBD_RUN_DIR=/run/pydrbd
# What a test kills stays dead, unless it asks for a supervisor.
export PYDRBD_SUPERVISOR=no
RES=/tmp/r0.res
RATES='disk { c-plan-ahead 0; c-max-rate 4G; resync-rate 4G; }'
mkdir -p /stores /mnt/fs

# usage: on NODE VERB...   One pydrbd command on that node.
on() {
    local node=$1
    shift
    pydrbd -c $RES --node "$node" "$@"
}

# usage: write_config "NET OPTIONS" NODE DISK MINOR PORT [NODE DISK MINOR PORT]   With protocol $PROTOCOL, or C.
write_config() {
    { echo "resource r0 {"
      echo "  net { protocol ${PROTOCOL:-C}; connect-int 1; $1 }"
      echo "  $RATES"
      shift
      while [ $# -ge 4 ]; do
          echo "  on $1 { device minor $3; disk $2; meta-disk internal; address 127.0.0.1:$4; }"
          shift 4
      done
      echo "}"; } > $RES
}

# usage: pid_of NODE   The process of r0 on that node.
pid_of() {
    python3 - "$1" << 'PYTHON'
import sys
from pathlib import Path
from pydrbd.runtime.launch import running
print(running(Path("/run/pydrbd"), sys.argv[1], "r0") or "")
PYTHON
}

# usage: kill_node NODE   kill -9 of its process, returns when it is gone.
kill_node() {
    local pid
    pid=$(pid_of "$1")
    [ -n "$pid" ] || { echo "kill_node: $1 has no process" >&2; return 1; }
    kill -9 "$pid"
    while [ -d "/proc/$pid" ] && ! grep -q '^State:.*Z' "/proc/$pid/status" 2> /dev/null; do pause; done
}

# usage: in_sync NODE [SECONDS]   Connected, and no resync runs.
in_sync() {
    on "$1" wait-sync -t "${2:-120}" r0
}

# Called by the tests when something failed: what is known about both sides.
last_words() {
    set +e
    trap - ERR
    echo "--- last words"
    cat /proc/drbd 2> /dev/null
    local node
    for node in $(sed -n 's/^ *on \([a-z]*\) .*/\1/p' $RES 2> /dev/null); do
        echo "--- $node"
        on "$node" status --verbose --statistics r0 2>&1 | tail -20
        find "$PYDRBD_RUN_DIR/$node" -name '*.log' -exec tail -n 60 {} + 2> /dev/null
    done
    dmesg | tail -30
}
