# Split brains between the kernel's DRBD 8.4 and pydrbd, settled by policies: tests/test_vm_split_brain.py.
# Both judge on their own; that they agree shows in a resync that ends, with the winner's data on both stores.
. "$SUPPORT/vm_interop.sh"

OUR_DATA=/tmp/ours.bin KERNEL_DATA=/tmp/kernel.bin

# usage: asbp "OUR NET OPTIONS" [kernel net options]   A pair in sync and Secondary, with policies.
asbp() {
    new_disks "$@"
    both_up
    kernel_wait 0 60 cs:Connected ds:Inconsistent/Inconsistent
    kernel_primary 0 --force
    both_good
    kernel_secondary 0
    kernel_wait 0 20 ro:Secondary/Secondary
}

# They do not see each other any more.
part() {
    kernel_disconnect 7801 7802
    kernel_wait 0 20 cs:StandAlone
    on ours disconnect r0
}

# usage: we_write BLOCKS / kernel_writes BLOCKS   4 KiB blocks of random data at the start of the device; the
# node is Secondary again afterwards.
we_write() {
    local device
    on ours primary r0
    device=$(on ours map r0/0)
    head -c $(($1 * 4096)) /dev/urandom > $OUR_DATA
    dd if=$OUR_DATA of="$device" bs=4k oflag=direct conv=notrunc,fsync status=none
    on ours unmap r0
    on ours secondary r0
}
kernel_writes() {
    kernel_primary 0
    head -c $(($1 * 4096)) /dev/urandom > $KERNEL_DATA
    dd if=$KERNEL_DATA of=/dev/drbd0 bs=4k oflag=direct conv=notrunc,fsync status=none
    kernel_secondary 0
}

meet() {
    kernel_reconnect
    on ours connect r0
}

# usage: settled WINNERS_DATA NAME   In sync, and both hold what the winner wrote.
settled() {
    both_good
    kernel_secondary 0
    both_down_and_equal
    cmp -n "$(stat -c %s "$1")" "$1" $OUR_STORE
    release
    echo "ok $2"
}

# usage: unresolved NAME   Nobody's data have changed.
unresolved() {
    kernel_wait 0 30 cs:StandAlone
    wait_until 30 'on ours cstate r0 | grep -q StandAlone'
    on ours down r0
    kernel_down r0
    cmp -n "$(stat -c %s $OUR_DATA)" $OUR_DATA $OUR_STORE
    cmp -n "$(stat -c %s $KERNEL_DATA)" $KERNEL_DATA "$KERNEL_DISK"
    release
    echo "ok $1"
}

least_changes() {
    asbp "after-sb-0pri discard-least-changes;" --after-sb-0pri=discard-least-changes
    part
    we_write 12
    kernel_writes 5
    meet
    settled $OUR_DATA least_changes
}

# The kernel is Primary when they part; we are promoted later.
younger_primary() {
    asbp "after-sb-0pri discard-younger-primary;" --after-sb-0pri=discard-younger-primary
    kernel_primary 0
    part
    we_write 12
    kernel_writes 5
    meet
    settled $KERNEL_DATA younger_primary
}

zero_changes() {
    asbp "after-sb-0pri discard-zero-changes;" --after-sb-0pri=discard-zero-changes
    part
    we_write 3
    kernel_writes 5
    meet
    unresolved zero_changes
}

we_are_local() {
    asbp "after-sb-0pri discard-local;" --after-sb-0pri=discard-remote
    part
    we_write 12
    kernel_writes 5
    meet
    settled $KERNEL_DATA we_are_local
}

secondary_loses() {
    asbp "after-sb-1pri discard-secondary;" --after-sb-1pri=discard-secondary
    part
    we_write 12
    kernel_writes 5
    kernel_primary 0
    meet
    settled $KERNEL_DATA secondary_loses
}

# The kernel's Primary is to lose. It does not give up its role, though nobody has its device open: it calls
# its handler, and stands alone when that has not ended it. We go on looking for it.
kernel_calls_its_handler() {
    asbp "after-sb-0pri discard-least-changes; after-sb-1pri call-pri-lost-after-sb;" \
        --after-sb-0pri=discard-least-changes --after-sb-1pri=call-pri-lost-after-sb
    part
    we_write 12
    kernel_writes 5
    kernel_primary 0
    meet
    kernel_wait 0 60 cs:StandAlone
    kernel_secondary 0
    on ours disconnect r0
    unresolved kernel_calls_its_handler
}

we_give_up_our_role() {
    asbp "after-sb-0pri discard-least-changes; after-sb-1pri call-pri-lost-after-sb;" \
        --after-sb-0pri=discard-least-changes --after-sb-1pri=call-pri-lost-after-sb
    part
    kernel_writes 12
    we_write 5
    on ours primary r0
    on ours unmap r0 || true  # a mapped device is one in use
    meet
    kernel_wait 0 60 ro:Secondary/Secondary
    settled $KERNEL_DATA we_give_up_our_role
}

consensus_is_missing() {
    asbp "after-sb-0pri discard-least-changes; after-sb-1pri consensus;" \
        --after-sb-0pri=discard-least-changes --after-sb-1pri=consensus
    part
    we_write 12
    kernel_writes 5
    kernel_primary 0
    meet
    kernel_wait 0 30 cs:StandAlone
    kernel_secondary 0
    unresolved consensus_is_missing
}

policies_disagree() {
    asbp "after-sb-0pri discard-zero-changes;" --after-sb-0pri=discard-zero-changes
    part
    we_write 3
    kernel_writes 5
    KERNEL_NET=(--after-sb-0pri=discard-least-changes)
    meet
    unresolved policies_disagree
}
