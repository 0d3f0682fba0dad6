# Crashes and restarts under a mounted file system, in a guest; `. $SUPPORT/vm_restart.sh` (after vm_failover.sh).

# usage: restart_rounds CRASHES RESTARTS   ext4 under fio: no error, no remount, fsck clean.
restart_rounds() {
    local device
    on alpha primary r0
    device=$(on alpha map r0/0)
    mkfs.ext4 -q -F "$device"
    mount -o errors=remount-ro "$device" /mnt/fs
    PYDRBD_SUPERVISOR=yes on alpha up r0
    echo "at $SECONDS s: rounds begin"
    python3 "$SUPPORT/vm_restart.py" "$1" "$2"
    echo "at $SECONDS s: rounds end"
    grep -q "^$device /mnt/fs ext4 rw," /proc/mounts
    ! dmesg | grep -E -i 'i/o error|remount|aborting journal|EXT4-fs error'
    umount /mnt/fs
    e2fsck -f -n "$device"
    on alpha status r0
    on alpha unmap r0
    on alpha secondary r0
    echo "ok restart_rounds"
}

# The peer takes over while the Primary's process is dead: what waits here fails, and is never written.
taken_over() {
    local device code=0
    on alpha primary r0
    device=$(on alpha map r0/0)
    mkfs.ext4 -q -F "$device"
    mount "$device" /mnt/fs
    echo old > /mnt/fs/file
    sync -f /mnt/fs
    kill_node alpha
    # Waits: its process is dead and stays so for now.
    (echo late > /mnt/fs/file && sync -f /mnt/fs) 2> /tmp/late &
    on beta primary r0
    other=$(on beta map r0/0)
    mount "$other" /mnt/fs2
    echo new > /mnt/fs2/file
    umount /mnt/fs2
    on alpha up r0
    in_sync alpha
    # By hand it is refused as well, both while the peer is Primary and after.
    on alpha primary r0 2> /tmp/refused && false
    grep -q "beta is Primary now" /tmp/refused
    on beta unmap r0
    on beta secondary r0
    on alpha primary r0 2> /tmp/refused && false
    grep -q "unmap --force" /tmp/refused
    on alpha unmap --force r0
    wait || true
    umount /mnt/fs
    on alpha primary r0
    mount "$(on alpha map r0/0)" /mnt/fs
    [ "$(cat /mnt/fs/file)" = new ]
    umount /mnt/fs
    on alpha unmap r0
    on alpha secondary r0
    echo "ok taken_over"
}
