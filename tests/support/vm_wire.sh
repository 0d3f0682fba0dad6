# Discards, and what one node refuses the other: the scenarios of tests/test_vm_wire.py.
# `. $SUPPORT/vm_interop.sh` first: the same two nodes. Each scenario prints `ok NAME`.

# usage: refused EXIT_CODE COMMAND...   The command is refused with that exit code, for one like it.
refused() {
    local wanted=$1 status=0
    shift
    "$@" > /tmp/refused 2>&1 || status=$?
    [ $status = "$wanted" ] || { echo "exit $status instead of $wanted: $*"; cat /tmp/refused; return 1; }
}

# usage: kib_of FILE   KiB that the file takes up.
kib_of() {
    sync
    du -k "$1" | cut -f1
}

# usage: zeroes DEVICE MIB COUNT   COUNT MiB from MIB on read as zeroes.
zeroes() {
    cmp -n $(($3 << 20)) -i $(($2 << 20)):0 "$1" /dev/zero
}

# usage: discards_from DEVICE NAME   Writes, discards and looks; both stores get smaller by what was discarded.
discards_from() {
    local device=$1 name=$2 ours kernel
    fio_verify "full_$name" "$device" 32M --rw=write --bs=64k
    ours=$(kib_of $OUR_STORE)
    kernel=$(kib_of $KERNEL_STORE)
    blkdiscard -o 8M -l 16M "$device"
    zeroes "$device" 8 16
    [ $((ours - $(kib_of $OUR_STORE))) -ge 15000 ] || { echo "our store kept its blocks"; false; }
    [ $((kernel - $(kib_of $KERNEL_STORE))) -ge 15000 ] || { echo "the kernel's store kept its blocks"; false; }
    # Written again, and odd ranges beside writes.
    fio_verify "again_$name" "$device" 8M --offset=8M
    blkdiscard -o $((24 * 1048576 + 512)) -l $((1048576 + 1024)) "$device"
    fio_verify "beside_$name" "$device" 2M --offset=26M &
    local load=$! at
    for at in 28 29 30 31; do
        blkdiscard -o "${at}M" -l 512K "$device"
    done
    wait $load
}

discards_by_kernel() {
    kernel_primary 0
    kernel_wait 0 20 cs:Connected ro:Primary/Secondary
    [ "$(cat /sys/block/drbd0/queue/discard_max_bytes)" -gt 0 ] || { echo "the kernel offers no discard"; false; }
    discards_from /dev/drbd0 kernel
    # Discarded while we are away: what is marked arrives with the resync.
    kernel_disconnect 7801 7802
    kernel_wait 0 20 cs:StandAlone
    blkdiscard -o 0 -l 4M /dev/drbd0
    zeroes /dev/drbd0 0 4
    kernel_reconnect
    both_good
    kernel_secondary 0
    cmp -n $((4 << 20)) $OUR_STORE /dev/zero
    echo "ok discards_by_kernel"
}

discards_by_us() {
    on ours primary r0
    kernel_wait 0 20 cs:Connected ro:Secondary/Primary
    local device
    device=$(on ours map r0/0)
    discards_from "$device" ours
    kernel_disconnect 7801 7802
    kernel_wait 0 20 cs:StandAlone
    blkdiscard -o 0 -l 4M "$device"
    kernel_reconnect
    both_good
    on ours unmap r0
    on ours secondary r0
    kernel_wait 0 20 ro:Secondary/Secondary
    echo "ok discards_by_us"
}

# The Primary works on its peer's disk: the peer keeps it, and does not leave.
last_good_disk() {
    kernel_primary 0
    $DRBDSETUP detach 0
    kernel_wait 0 20 ds:Diskless/UpToDate
    refused 17 on ours detach r0
    refused 17 on ours disconnect r0
    [ "$(on ours cstate r0)" = Connected ]
    kernel_wait 0 5 cs:Connected ds:Diskless/UpToDate
    fio_verify k_diskless /dev/drbd0 2M
    kernel_attach 0 "$KERNEL_DISK" --c-max-rate=4194304 --c-min-rate=0 --resync-rate=500M
    both_good
    kernel_secondary 0
    on ours primary r0
    kernel_wait 0 20 ro:Secondary/Primary
    on ours detach r0
    kernel_wait 0 20 ds:UpToDate/Diskless
    # It says no more than that its peer has refused.
    refused 11 $DRBDSETUP detach 0
    refused 11 kernel_disconnect 7801 7802
    kernel_wait 0 5 cs:Connected ds:UpToDate/Diskless
    on ours attach r0
    both_good
    on ours secondary r0
    kernel_wait 0 20 ro:Secondary/Secondary
    echo "ok last_good_disk"
}

# Both nodes refuse these alike: there is one Primary, nothing is compared without verify-alg, and a device in use
# stays Primary. While they are connected nobody is made Outdated (drbdsetup 8.4 says nothing of it).
refused_alike() {
    on ours primary r0
    kernel_wait 0 20 cs:Connected ro:Secondary/Primary
    $DRBDSETUP outdate 0 || true
    refused 11 on ours outdate r0
    kernel_wait 0 5 cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate
    refused 11 $DRBDSETUP primary 0
    ! $DRBDSETUP verify 0 || { echo "the kernel verifies without verify-alg"; false; }
    on ours verify r0 > /tmp/refused 2>&1 && { echo "verified without verify-alg"; false; }
    kernel_wait 0 5 cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate
    on ours secondary r0
    kernel_wait 0 20 ro:Secondary/Secondary
    $DRBDSETUP outdate 0 || true
    refused 11 on ours outdate r0
    kernel_wait 0 5 cs:Connected ro:Secondary/Secondary ds:UpToDate/UpToDate
    kernel_primary 0
    refused 11 on ours primary r0
    refused 11 on ours primary --force r0
    # Who is open stays Primary.
    sleep 300 < /dev/drbd0 &
    local holder=$!
    refused 11 kernel_secondary 0
    kill $holder
    wait $holder || true
    kernel_secondary 0
    kernel_wait 0 20 ro:Secondary/Secondary
    echo "ok refused_alike"
}

# The kernel's node asks for resyncs in both directions, as ours does in test_vm_digests.py.
kernel_invalidates() {
    $DRBDSETUP invalidate 0
    both_good
    $DRBDSETUP invalidate-remote 0
    both_good
    # It does so alone only while it does not look for its peer.
    kernel_disconnect 7801 7802
    kernel_wait 0 20 cs:StandAlone
    $DRBDSETUP invalidate 0
    kernel_wait 0 20 ds:Inconsistent/DUnknown
    refused 17 $DRBDSETUP primary 0
    kernel_reconnect
    both_good
    echo "ok kernel_invalidates"
}
