# A storm of dirty pages in a guest with little memory: the scenario of tests/test_vm_memory.py.
# /dev/vdd and /dev/vde are the backing disks. Each part prints `ok NAME`.
set -eE
. "$SUPPORT/vm_drbd.sh"
. "$SUPPORT/vm_pydrbd.sh"
trap 'echo "failed: line $LINENO: $BASH_COMMAND"; last_words; exit 1' ERR
mkdir -p /mnt/fs

# usage: pair_up MODE   Both nodes up with that backing-io, Connected; new metadata the first time.
pair_up() {
    RATES="disk { c-plan-ahead 0; c-max-rate 4G; resync-rate 4G; backing-io $1; }"
    write_config "" alpha /dev/vdd 10 7901 beta /dev/vde 11 7902
    if [ -z "$MADE" ]; then
        on alpha create-md r0 < /dev/null
        on beta create-md r0 < /dev/null
    fi
    on alpha up r0
    on beta up r0
    on alpha wait-connect -t 60 r0
    if [ -z "$MADE" ]; then on alpha new-current-uuid --clear-bitmap r0/0; MADE=yes; fi
}

# All threads of both processes write pages back for others, and the OOM killer passes by.
protected() {
    local node pid
    for node in alpha beta; do
        pid=$(pid_of $node)
        [ "$(cat /proc/$pid/oom_score_adj)" = -1000 ]
        [ "$(cat /proc/self/oom_score_adj)" = 0 ]
    done
    on alpha doctor r0 > /tmp/doctor || { cat /tmp/doctor; false; }
    grep "memory protection" /tmp/doctor
    grep -q "ok *memory protection *PR_SET_IO_FLUSHER is set, oom_score_adj -1000" /tmp/doctor
    echo "ok protected"
}

# usage: storm MODE MEBIBYTES   Writes more than the memory onto a mounted device, and says how it went.
storm() {
    local mode=$1 amount=$2 device watch begin end
    pair_up "$mode"
    on alpha primary r0
    protected
    device=$(on alpha map r0/0)
    mkfs.ext4 -q -F "$device"
    mount "$device" /mnt/fs
    python3 "$SUPPORT/vm_memory.py" "${device#/dev/}" /tmp/gap &
    watch=$!
    begin=$(date +%s%N)
    dd if=/dev/zero of=/mnt/fs/big bs=1M count="$amount" conv=fsync 2> /tmp/dd.log || { cat /tmp/dd.log; false; }
    end=$(date +%s%N)
    kill $watch
    wait $watch
    echo "storm $mode: $amount MiB in $(( (end - begin) / 1000000 )) ms, longest gap $(cat /tmp/gap) s," \
        "resident $(resident alpha) and $(resident beta) KiB"
    [ "$(stat -c %s /mnt/fs/big)" = $((amount << 20)) ]
    umount /mnt/fs
    e2fsck -f -n "$device"
    on alpha down r0
    on beta down r0
    echo "ok storm_$mode"
}

# usage: resident NODE   The most memory its process had, in KiB.
resident() {
    sed -n 's/^VmHWM:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$(pid_of "$1")/status"
}

# Nobody was killed, nobody waited for minutes.
kernel_is_content() {
    if dmesg | grep -iE "out of memory|oom-kill|blocked for more than|I/O error"; then false; fi
    echo "ok kernel_is_content"
}
