# The kernel's DRBD 8.4 and pydrbd as each other's peer: the scenarios of tests/test_vm_interop.py.
# Node `kernel` (minor 0, port 7801, /dev/drbd0) and node `ours` (port 7802, a mapped device).
# A scenario fails the script by its exit code; each prints `ok NAME`.
set -eE
. "$SUPPORT/vm_drbd.sh"
. "$SUPPORT/vm_pydrbd.sh"
trap 'echo "failed: line $LINENO: $BASH_COMMAND"; last_words; exit 1' ERR

SIZE=${SIZE:-48M}
KERNEL_STORE=/stores/kernel.img OUR_STORE=/stores/ours.img
KERNEL_NET=()

# usage: new_disks "NET OPTIONS" [OPTION...]   Two new disks, a configuration, both ends down; the kernel's node connects
# with OPTIONs.
new_disks() {
    local net=$1
    shift
    KERNEL_NET=("$@")
    rm -f $KERNEL_STORE $OUR_STORE
    truncate -s "$SIZE" $OUR_STORE
    KERNEL_DISK=$(kernel_disk $KERNEL_STORE "$SIZE")
    write_config "$net" kernel "$KERNEL_DISK" 0 7801 ours $OUR_STORE 9 7802
    kernel_create_md 0 "$KERNEL_DISK"
    on ours create-md r0 < /dev/null
}

# usage: fresh [ALGORITHM | two-primaries]   New disks, with or without a secret, or with allow-two-primaries.
fresh() {
    if [ "$1" = two-primaries ]; then
        new_disks "allow-two-primaries yes;" --allow-two-primaries
    elif [ -n "$1" ]; then
        new_disks "cram-hmac-alg $1; shared-secret \"open sesame\";" \
            "--cram-hmac-alg=$1" "--shared-secret=open sesame"
    else
        new_disks ""
    fi
}

kernel_start() {
    kernel_up r0 0 "$KERNEL_DISK" 7801 7802 "${KERNEL_NET[@]}"
    DATA_BYTES=$(kernel_data_bytes 0)
}

kernel_reconnect() {
    kernel_connect r0 7801 7802 "${KERNEL_NET[@]}"
}

both_up() {
    kernel_start
    on ours up r0
}

both_good() {
    kernel_wait 0 "${1:-120}" cs:Connected ds:UpToDate/UpToDate oos:0
}

# The same, and ours knows it: the kernel may say what it asks for before it says that its disk is good again.
both_know() {
    both_good
    wait_until 20 '[ "$(on ours dstate r0)" = UpToDate/UpToDate ]'
}

# Both Secondary and in sync; then down, and the stores must be equal.
both_down_and_equal() {
    both_good
    on ours down r0
    kernel_wait 0 20 'cs:(WFConnection|Unconnected|StandAlone)'
    kernel_down r0
    same_data $OUR_STORE "$KERNEL_DISK" "$DATA_BYTES"
}

release() {
    losetup -d "$KERNEL_DISK"
}

# --- the scenarios ---------------------------------------------------------------------------

initial_sync_from_kernel() {
    both_up
    kernel_wait 0 60 cs:Connected ds:Inconsistent/Inconsistent
    kernel_primary 0 --force
    both_good
    echo "ok initial_sync_from_kernel"
}

initial_sync_from_us() {
    both_up
    kernel_wait 0 60 cs:Connected ds:Inconsistent/Inconsistent
    on ours primary --force r0
    kernel_wait 0 60 ro:Secondary/Primary
    both_good
    on ours secondary r0
    kernel_wait 0 20 ro:Secondary/Secondary
    echo "ok initial_sync_from_us"
}

# The kernel is Primary: verified writes while connected, writes while not, resync under writes.
kernel_primary_scenario() {
    kernel_primary 0
    kernel_wait 0 20 cs:Connected ro:Primary/Secondary
    fio_verify k_connected /dev/drbd0 8M
    # Large and odd requests.
    fio_verify k_large /dev/drbd0 12M --offset=16M --bsrange=4k-1M
    kernel_disconnect 7801 7802
    kernel_wait 0 20 cs:StandAlone
    fio_verify k_alone /dev/drbd0 6M
    [ "$(kernel_oos 0)" -gt 0 ]
    kernel_reconnect
    fio_verify k_resync /dev/drbd0 6M
    both_good
    # This time we go, and come back.
    on ours disconnect r0
    kernel_wait 0 20 cs:WFConnection
    fio_verify k_alone2 /dev/drbd0 3M
    on ours connect r0
    both_good
    blkdiscard -o 8M -l 8M /dev/drbd0 2> /dev/null || echo "(no discard here)"
    kernel_secondary 0
    echo "ok kernel_primary"
}

# We are Primary, and the kernel writes what we send.
our_primary_scenario() {
    on ours primary r0
    kernel_wait 0 20 cs:Connected ro:Secondary/Primary
    local device
    device=$(on ours map r0/0)
    fio_verify o_connected "$device" 8M
    fio_verify o_large "$device" 12M --offset=16M --bsrange=4k-1M
    kernel_disconnect 7801 7802
    kernel_wait 0 20 cs:StandAlone
    fio_verify o_alone "$device" 6M
    kernel_reconnect
    fio_verify o_resync "$device" 6M
    both_good
    on ours disconnect r0
    kernel_wait 0 20 cs:WFConnection
    fio_verify o_alone2 "$device" 3M
    on ours connect r0
    both_good
    on ours unmap r0
    on ours secondary r0
    kernel_wait 0 20 ro:Secondary/Secondary
    echo "ok our_primary"
}

# usage: fresh_fencing [POLICY]   As `fresh`, with fencing on both nodes; what the handlers were called for is in
# /tmp/called.*, what our fence-peer answers in /tmp/fence.ours.
fresh_fencing() {
    rm -f /tmp/called.*
    echo 4 > /tmp/fence.ours
    printf '#!/bin/sh\necho "$1" >> /tmp/called.ours\n[ "$1" != fence-peer ] || exit $(cat /tmp/fence.ours)\n' \
        > /tmp/manager.ours
    printf '#!/bin/sh\necho "$1" >> /tmp/called.%s\n[ "$1" != fence-peer ] || exit 4\n' kernel > /tmp/manager.kernel
    chmod +x /tmp/manager.*
    printf /tmp/manager.kernel > /sys/module/drbd/parameters/usermode_helper
    local handlers='fence-peer "/tmp/manager.ours fence-peer"; unfence-peer "/tmp/manager.ours unfence-peer";'
    new_disks "fencing ${1:-resource-only}; } handlers { $handlers"
}

# usage: called NODE HANDLER   Was it called?
called() {
    grep -q "^$2\$" "/tmp/called.$1" 2> /dev/null
}

# An orderly end of the connection makes the Secondary Outdated, whoever asks for it, and nobody is fenced.
fencing_scenario() {
    $DRBDSETUP disk-options 0 --fencing=resource-only
    on ours primary r0
    kernel_wait 0 20 cs:Connected ro:Secondary/Primary
    on ours disconnect r0
    kernel_wait 0 20 cs:WFConnection ds:Outdated/
    [ "$(on ours dstate r0)" = UpToDate/Outdated ]
    on ours connect r0
    both_know
    kernel_disconnect 7801 7802
    kernel_wait 0 20 cs:StandAlone ds:Outdated/
    wait_until 20 '[ "$(on ours dstate r0)" = UpToDate/Outdated ]'
    kernel_reconnect
    both_good
    on ours secondary r0
    kernel_primary 0
    on ours disconnect r0
    kernel_wait 0 20 cs:WFConnection ds:UpToDate/Outdated
    [ "$(on ours dstate r0)" = Outdated/DUnknown ]
    on ours connect r0
    both_know
    kernel_disconnect 7801 7802
    kernel_wait 0 20 cs:StandAlone ds:UpToDate/Outdated
    wait_until 20 '[ "$(on ours dstate r0)" = Outdated/DUnknown ]'
    kernel_reconnect
    both_good
    ! called ours fence-peer
    ! called kernel fence-peer
    wait_until 20 called ours unfence-peer
    echo "ok fencing_in_order"
    # We die under the kernel: it fences us; the kernel's node goes away under us: we fence it.
    kill_node ours
    kernel_wait 0 30 ds:UpToDate/Outdated
    called kernel fence-peer
    on ours up r0
    both_good
    kernel_secondary 0
    on ours primary r0
    kernel_wait 0 20 cs:Connected ro:Secondary/Primary
    ip link set lo down
    wait_until 60 called ours fence-peer
    wait_until 20 '[ "$(on ours dstate r0)" = UpToDate/Outdated ]'
    ip link set lo up
    both_good
    on ours secondary r0
    kernel_wait 0 20 ro:Secondary/Secondary
    echo "ok fencing_by_handlers"
}

# We are Primary and lose the kernel's node under load: we stand still, and it gets what was under way when it is back.
stonith_scenario() {
    on ours primary r0
    kernel_wait 0 20 cs:Connected ro:Secondary/Primary
    local device load before
    device=$(on ours map r0/0)
    echo 1 > /tmp/fence.ours
    before=$(awk '{print $5}' "/sys/block/${device#/dev/}/stat")
    fio_verify o_still "$device" 10M &
    load=$!
    wait_until 20 '[ "$(awk "{print \$5}" "/sys/block/${device#/dev/}/stat")" != '"$before"' ]'
    ip link set lo down
    wait_until 60 called ours fence-peer
    wait_until 20 'on ours status r0 | grep -q suspended:fencing'
    before=$(awk '{print $5}' "/sys/block/${device#/dev/}/stat")
    sleep 3
    [ "$(awk '{print $5}' "/sys/block/${device#/dev/}/stat")" = "$before" ]
    kill -0 $load
    ip link set lo up
    both_good
    ! on ours status r0 | grep -q suspended
    wait $load
    echo "ok stonith_met_again"
    # This time the handler fences it.
    echo 4 > /tmp/fence.ours
    ip link set lo down
    wait_until 60 '[ "$(on ours dstate r0)" = UpToDate/Outdated ]'
    fio_verify o_fenced "$device" 3M
    ip link set lo up
    both_good
    on ours unmap r0
    on ours secondary r0
    kernel_wait 0 20 ro:Secondary/Secondary
    echo "ok stonith_fenced"
}

# What one node refuses the other, disks that are called Outdated, and resyncs that wait.
marks_scenario() {
    on ours primary r0
    kernel_wait 0 20 cs:Connected ro:Secondary/Primary
    ! kernel_primary 0
    both_good
    on ours secondary r0
    kernel_primary 0
    local status=0
    on ours primary r0 > /tmp/refused 2>&1 || status=$?
    [ $status = 11 ] && grep -q "Multiple primaries not allowed" /tmp/refused
    echo "ok refusals"
    on ours disconnect r0
    on ours outdate r0
    [ "$(on ours dstate r0)" = Outdated/DUnknown ]
    status=0
    on ours primary r0 > /tmp/refused 2>&1 || status=$?
    [ $status = 17 ]
    fio_verify k_alone /dev/drbd0 2M
    # Each side may have the resync wait, and it waits for both.
    on ours pause-sync r0
    on ours connect r0
    kernel_wait 0 60 cs:PausedSyncS
    $DRBDSETUP pause-sync 0
    on ours resume-sync r0
    kernel_wait 0 20 cs:PausedSyncS
    $DRBDSETUP resume-sync 0
    both_good
    kernel_secondary 0
    on ours disconnect r0
    kernel_wait 0 20 cs:WFConnection
    $DRBDSETUP outdate 0
    kernel_wait 0 20 ds:Outdated/DUnknown
    on ours connect r0
    both_good
    echo "ok marks"
}

# usage: grow SIZE   Both backing stores have SIZE now.
grow() {
    truncate -s "$1" $KERNEL_STORE $OUR_STORE
    losetup -c "$KERNEL_DISK"
}

# Both devices come to have more than $1 bytes, and the same; DATA_BYTES is what they have.
both_larger() {
    wait_until 60 '[ "$(kernel_data_bytes 0)" -gt '"$1"' ]'
    both_good
    DATA_BYTES=$(kernel_data_bytes 0)
    wait_until 20 'on ours status --verbose --statistics r0 | grep -q "size:$((DATA_BYTES / 1024)) "'
}

# Both disks grow, and each side is asked to resize, as Primary and as its peer.
resize_scenario() {
    local device before=$DATA_BYTES
    on ours primary r0
    kernel_wait 0 20 cs:Connected ro:Secondary/Primary
    device=$(on ours map r0/0)
    grow 96M
    on ours resize r0
    both_larger "$before"
    # The server keeps the size of an export for each connection; a new process makes a new one.
    on ours restart r0
    both_good
    wait_until 20 '[ "$(blockdev --getsize64 '"$device"')" = '"$DATA_BYTES"' ]'
    fio_verify o_grown "$device" 4M "--offset=$((before - 1048576))"
    on ours unmap r0
    echo "ok we_resize_as_primary"
    before=$DATA_BYTES
    grow 128M
    $DRBDSETUP resize 0
    both_larger "$before"
    on ours secondary r0
    kernel_wait 0 20 ro:Secondary/Secondary
    echo "ok kernel_resizes_beside_us"
    before=$DATA_BYTES
    kernel_primary 0
    grow 160M
    $DRBDSETUP resize 0
    both_larger "$before"
    fio_verify k_grown /dev/drbd0 4M "--offset=$((before - 1048576))"
    echo "ok kernel_resizes_as_primary"
    before=$DATA_BYTES
    grow 192M
    on ours resize r0
    both_larger "$before"
    fio_verify k_grown2 /dev/drbd0 4M "--offset=$((before - 1048576))"
    kernel_secondary 0
    kernel_wait 0 20 ro:Secondary/Secondary
    echo "ok we_resize_beside_the_kernel"
}

# A resync here waits behind another device of this node, in either role, and the kernel's side waits with it.
after_scenario() {
    truncate -s 16M /stores/r9.img
    { echo "resource r9 {"
      echo "  on ours { device minor 19; disk /stores/r9.img; meta-disk internal; address 127.0.0.1:7811; }"
      echo "  on other { device minor 20; disk /stores/r9o.img; meta-disk internal; address 127.0.0.1:7812; }"
      echo "}"; } >> $RES
    on ours create-md r9 < /dev/null
    on ours up r9
    on ours pause-sync r9
    sed -i "s/^  disk { /  disk { resync-after r9; /" $RES
    on ours adjust r0
    on ours status r0 | grep -q resync-suspended:dependency
    on ours disconnect r0
    kernel_primary 0
    fio_verify k_after /dev/drbd0 2M
    on ours connect r0
    # p: the peer has paused it.
    kernel_wait 0 60 cs:PausedSyncS ' r-p'
    on ours explain r0 | grep -q "behind that of r9/0"
    on ours resume-sync r9
    both_good
    kernel_secondary 0
    on ours pause-sync r9
    on ours invalidate-remote r0
    kernel_wait 0 60 cs:PausedSyncT ' r-p'
    on ours down r9
    both_good
    echo "ok after"
}

# usage: write_beside NAME SHIFT [fio options]   Random writes on both devices at once, on ours SHIFT bytes behind the
# kernel's (0: to the same blocks).
write_beside() {
    local name=$1 offset=$2 loads= device
    shift 2
    for device in "$(cat /tmp/mapped)" /dev/drbd0; do
        fio --name="$name" --filename="$device" --offset="$offset" --rw=randwrite --ioengine=libaio --iodepth=8 \
            --direct=1 --norandommap --randrepeat=0 --refill_buffers --time_based --fsync=50 "$@" \
            > "/tmp/fio.$name.${device##*/}.log" 2>&1 &
        loads="$loads $!"
        offset=0
    done
    local load
    for load in $loads; do
        wait "$load" || { tail -20 /tmp/fio.$name.*.log; return 1; }
    done
}

# Does our node decide where writes meet, in the present connection?
we_decide() {
    grep "where writes of both nodes meet" /run/pydrbd/ours/r0.log | tail -1 | grep -q "this node decides"
}

# Both nodes are Primary and write at the same time: to blocks of their own, by turns to the same ones, and then at
# the same time to the same ones. The devices give the same afterwards. Ours decides, whoever dialed first.
two_primaries_scenario() {
    local round
    kernel_primary 0
    on ours primary r0
    kernel_wait 0 20 cs:Connected ro:Primary/Primary ds:UpToDate/UpToDate
    on ours map r0/0 > /tmp/mapped
    for round in 1 2; do
        write_beside apart 1M --bs=4k --size=1M --runtime=8
        kernel_wait 0 20 cs:Connected ro:Primary/Primary
        fio_verify turn_k /dev/drbd0 1M
        fio_verify turn_o "$(cat /tmp/mapped)" 1M
        fio_verify turn_k /dev/drbd0 1M
        same_data /dev/drbd0 "$(cat /tmp/mapped)" "$DATA_BYTES"
        we_decide
        write_beside same 0 --bs=4k --size=64k --runtime=8
        kernel_wait 0 20 cs:Connected ro:Primary/Primary
        write_beside parts 0 --bsrange=1k-32k --blockalign=1k --size=256k --runtime=8
        kernel_wait 0 20 cs:Connected ro:Primary/Primary
        same_data /dev/drbd0 "$(cat /tmp/mapped)" "$DATA_BYTES"
        # The next connection, perhaps with the other one as judge; not while both are Primary.
        [ $round = 2 ] && break
        kernel_secondary 0
        on ours disconnect r0
        kernel_wait 0 20 cs:WFConnection
        on ours connect r0
        both_good
        kernel_primary 0
        kernel_wait 0 20 cs:Connected ro:Primary/Primary
    done
    grep "writes of both nodes met" /run/pydrbd/ours/r0.log
    dmesg | grep -A5 "ASSERT" && return 1
    on ours unmap r0
    on ours secondary r0
    kernel_secondary 0
    kernel_wait 0 20 ro:Secondary/Secondary
    echo "ok two_primaries"
}

# Our process dies under the kernel's writes, and is started again.
we_crash_as_secondary() {
    kernel_primary 0
    fio_verify k_crash /dev/drbd0 10M &
    local load=$!
    wait_until 20 '[ "$(kernel_state 0 | grep -c " nr:0 dw:0 ")" = 0 ]'
    kill_node ours
    wait $load
    on ours up r0
    both_good
    kernel_secondary 0
    echo "ok we_crash_as_secondary"
}

# Our process dies as Primary with I/O under way; the device waits, and goes on.
we_crash_as_primary() {
    on ours primary r0
    local device load before
    device=$(on ours map r0/0)
    before=$(awk '{print $5}' "/sys/block/${device#/dev/}/stat")
    fio_verify o_crash "$device" 10M &
    load=$!
    wait_until 20 '[ "$(awk "{print \$5}" "/sys/block/${device#/dev/}/stat")" != '"$before"' ]'
    kill_node ours
    on ours up r0
    on ours primary r0
    on ours map r0/0
    wait $load
    both_good
    on ours unmap r0
    on ours secondary r0
    echo "ok we_crash_as_primary"
}

# Each side attaches the other's disk, after clean downs, and they find themselves in sync.
swap_disks() {
    losetup -d "$KERNEL_DISK"
    mv $KERNEL_STORE /stores/swap && mv $OUR_STORE $KERNEL_STORE && mv /stores/swap $OUR_STORE
    KERNEL_DISK=$(kernel_disk $KERNEL_STORE "$SIZE")
    write_config "$(sed -n 's/.*connect-int 1;\(.*\)}/\1/p' $RES)" \
        kernel "$KERNEL_DISK" 0 7801 ours $OUR_STORE 9 7802
    drbdmeta --force 0 v08 "$KERNEL_DISK" internal get-gi
    local synced
    kernel_start
    kernel_wait 0 20 ds:UpToDate
    on ours up r0
    both_good
    synced=$(kernel_state 0 | sed -n 's/.* ns:\([0-9]*\) nr:\([0-9]*\).*/\1 \2/p')
    [ "$synced" = "0 0" ] || { echo "data was sent although both disks were in sync: $synced"; false; }
    echo "ok swap_disks"
}

# A wrong secret: no connection, no damage, and it connects once the secret is right.
wrong_secret() {
    kernel_up r0 0 "$KERNEL_DISK" 7801 7802 --cram-hmac-alg=sha256 --shared-secret=wrong
    on ours up r0
    # The kernel is told "wrong" by us or tells us so; it must not reach Connected meanwhile.
    if kernel_wait 0 8 'cs:(Connected|SyncSource|SyncTarget)' 2> /dev/null; then
        echo "connected with different secrets"; false
    fi
    kernel_down r0
    on ours down r0
    both_up
    both_good
    echo "ok wrong_secret"
}

# usage: fresh_congested   As `fresh`, under protocol A, where 32 KiB on their way are too much for either node.
fresh_congested() {
    PROTOCOL=A
    new_disks "on-congestion pull-ahead; congestion-fill 64;" --on-congestion=pull-ahead --congestion-fill=64
    both_up
    kernel_wait 0 60 cs:Connected ds:Inconsistent/Inconsistent
    on ours primary --force r0
    both_good
}

# Each node in turn pulls ahead of the other, and comes back, also in the middle of the resync.
congestion_scenario() {
    local device seen
    device=$(on ours map r0/0)
    seen=$(dmesg | grep -c -e '-> Behind' || true)
    fio_verify o_ahead "$device" 8M --bsrange=4k-256k --iodepth=16
    [ "$(dmesg | grep -c -e '-> Behind')" -gt "$seen" ]
    grep -q 'conn( Established -> Ahead )' /run/pydrbd/ours/r0.log
    both_good 180
    grep -q 'conn( Ahead -> SyncSource )' /run/pydrbd/ours/r0.log
    on ours unmap r0
    on ours secondary r0
    kernel_wait 0 20 ro:Secondary/Secondary
    echo "ok we_pull_ahead"
    kernel_primary 0
    fio_verify k_ahead /dev/drbd0 8M --bsrange=4k-256k --iodepth=16
    grep -q -e '-> Behind )' /run/pydrbd/ours/r0.log
    both_good 180
    grep -q 'conn( Behind -> SyncTarget )' /run/pydrbd/ours/r0.log
    kernel_secondary 0
    echo "ok kernel_pulls_ahead"
}
