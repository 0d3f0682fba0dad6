# Two nodes of pydrbd in one guest, used through the kernel's nbd client: the scenarios of
# tests/test_vm_failover.py. Each prints `ok NAME`.
set -eE
. "$SUPPORT/vm_drbd.sh"
. "$SUPPORT/vm_pydrbd.sh"
trap 'echo "failed: line $LINENO: $BASH_COMMAND"; last_words; exit 1' ERR

TREE=/usr/lib/python3/dist-packages
# XFS refuses less than 300 MiB.
SIZE=${SIZE:-320M}
A=/stores/alpha.img B=/stores/beta.img

# Two new nodes with equal (empty) disks: Connected, UpToDate, without an initial sync.
fresh_pair() {
    rm -f $A $B
    truncate -s $SIZE $A
    truncate -s $SIZE $B
    write_config "${NET-}" alpha $A 10 7901 beta $B 11 7902
    on alpha create-md r0 < /dev/null
    on beta create-md r0 < /dev/null
    on alpha up r0
    on beta up r0
    on alpha wait-connect -t 60 r0
    on alpha new-current-uuid --clear-bitmap r0/0
    [ "$(on beta dstate r0)" = UpToDate/UpToDate ]
}

# usage: pair_down_and_equal   Data areas equal after clean downs (metadata is at the end of the disks).
pair_down_and_equal() {
    in_sync alpha
    local bytes
    bytes=$(on alpha status --json r0 | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["devices"][0]["size"] * 1024)')
    on alpha down r0
    on beta down r0
    same_data $A $B "$bytes"
}

# usage: fail_over ext4|xfs   kill -9 of the Primary under a mounted file system; the other takes over.
fail_over() {
    local kind=$1 device other
    on alpha primary r0
    device=$(on alpha map r0/0)
    [[ $device == /dev/nbd* ]]
    wipefs -q -a "$device"
    mkfs.$kind -q "$device"
    mount "$device" /mnt/fs
    cp -a $TREE /mnt/fs/
    sync -f /mnt/fs
    # Unfinished business at the moment of the crash.
    dd if=/dev/urandom of=/mnt/fs/unfinished bs=64k count=20000 2> /dev/null &
    sleep 0.3
    kill_node alpha
    on beta primary r0
    other=$(on beta map r0/0)
    [ "$other" != "$device" ]
    if [ "$kind" = xfs ]; then
        # Same UUID as the dead mount; its log is replayed by the mount.
        mount -o nouuid "$other" /mnt/fs2
    else
        mount "$other" /mnt/fs2
    fi
    diff -r $TREE /mnt/fs2/dist-packages
    echo "after the crash" > /mnt/fs2/after
    umount /mnt/fs2
    if [ "$kind" = xfs ]; then xfs_repair -n "$other"; else e2fsck -f -n "$other"; fi
    # The dead side: what waits for its process gets errors, lets go, and the node comes back.
    on alpha unmap --force r0
    wait
    umount /mnt/fs
    on alpha unmap r0
    on alpha up r0
    in_sync alpha
    on beta unmap r0
    on beta secondary r0
    echo "ok fail_over_$kind"
}

# The Primary's process dies and is started again under the mounted file system: it waits and goes on.
restart_under_a_mount() {
    local device load
    on alpha primary r0
    device=$(on alpha map r0/0)
    mkfs.ext4 -q -F "$device"
    mount "$device" /mnt/fs
    fio --name=load --directory=/mnt/fs --size=4m --rw=randwrite --bs=4k --ioengine=psync --numjobs=2 --fsync=32 \
        --rate_iops=50 --verify=crc32c --verify_fatal=1 --do_verify=1 > /tmp/load.log 2>&1 &
    load=$!
    wait_until 30 '[ -s /mnt/fs/load.0.0 ]'
    sleep 1
    kill_node alpha
    on alpha up r0
    on alpha primary r0
    on alpha map r0/0
    wait $load || { cat /tmp/load.log; false; }
    umount /mnt/fs
    e2fsck -f -n "$device"
    on alpha unmap r0
    on alpha secondary r0
    in_sync alpha
    echo "ok restart_under_a_mount"
}

# The kernel's client configured by hand, with Debian's nbd-client.
nbd_client_by_hand() {
    local socket
    if nbd-client -unix "$PYDRBD_RUN_DIR/alpha/r0.sock" -name 0 /dev/nbd7 2> /tmp/refused; then
        echo "a Secondary was opened"; false
    fi
    on alpha primary r0
    socket=$(on alpha nbd-uri r0/0 | sed 's/.*socket=//')
    nbd-client -unix "$socket" -name 0 /dev/nbd7
    [ "$(blockdev --getsize64 /dev/nbd7)" -gt 0 ]
    fio_verify by_hand /dev/nbd7 8M
    nbd-client -c /dev/nbd7
    nbd-client -d /dev/nbd7
    wait_until 20 '[ ! -e /sys/block/nbd7/pid ]'
    wait_until 20 "on alpha secondary r0"
    echo "ok nbd_client_by_hand"
}

# `secondary` and `down` name who holds the device, and change nothing.
refused_while_mounted() {
    local device code
    on alpha primary r0
    device=$(on alpha map r0/0)
    mount "$device" /mnt/fs
    for verb in secondary down unmap; do
        code=0
        on alpha $verb r0 2> /tmp/refused || code=$?
        cat /tmp/refused
        [ $code = 11 ]
        grep -q "Device is held open by someone" /tmp/refused
        grep -q "/mnt/fs" /tmp/refused
    done
    touch /mnt/fs/still-writable
    sync -f /mnt/fs
    umount /mnt/fs
    on alpha secondary r0
    [ ! -e "/sys/block/${device#/dev/}/pid" ]
    echo "ok refused_while_mounted"
}

mkdir -p /mnt/fs /mnt/fs2
modprobe xfs
modprobe loop
