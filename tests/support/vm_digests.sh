# Digests between the kernel's DRBD 8.4 and pydrbd: the scenarios of tests/test_vm_digests.py.
# `. $SUPPORT/vm_interop.sh` first: the same two nodes. Each scenario prints `ok NAME`.

# Every block is read and hashed on an emulated processor, again and again: a smaller disk than the others'.
SIZE=32M

# usage: fresh_digests OPTION=ALGORITHM...   Two new disks, in sync, both Secondary; e.g. verify-alg=sha1
fresh_digests() {
    local net="" option
    for option in "$@"; do
        net="$net ${option%%=*} ${option#*=};"
    done
    new_disks "$net" "${@/#/--}"
    both_up
    kernel_wait 0 60 cs:Connected ds:Inconsistent/Inconsistent
    kernel_primary 0 --force
    both_good
    kernel_secondary 0
}

# usage: spoil BLOCK...   Changes blocks of our store beneath pydrbd.
spoil() {
    local block
    for block in "$@"; do
        printf 'rotten %s' "$block" | dd of=$OUR_STORE bs=4096 seek="$block" conv=notrunc status=none
    done
}

# usage: our_oos   KiB out of sync, as pydrbd says.
our_oos() {
    on ours status --json r0 |
        python3 -c 'import json,sys; print(json.load(sys.stdin)[0]["connections"][0]["peer_devices"][0]["out-of-sync"])'
}

# usage: verify_ends KIB   The verify has ended on both nodes, and both have so much marked.
verify_ends() {
    kernel_wait 0 120 cs:Connected "oos:$1\\b"
    on ours wait-sync -t 60 r0
    [ "$(our_oos)" = "$1" ] || { echo "out of sync here: $(our_oos), expected $1"; false; }
}

# The Primary's data count: what is marked is copied when the nodes meet again.
repair_from_kernel() {
    kernel_primary 0
    kernel_disconnect 7801 7802
    kernel_wait 0 20 cs:StandAlone
    kernel_reconnect
    both_good
    kernel_secondary 0
    verify_ends 0
}

we_verify() {
    spoil 300 301 4000
    on ours verify --start 0 r0
    verify_ends 12
    repair_from_kernel
    on ours verify --start 0 r0
    verify_ends 0
    echo "ok we_verify"
}

# Whoever of the two nodes is Primary, the repair is asked for on ours, as a verify or as a scrub.
we_repair() {
    spoil 300 301 4000
    ! on ours verify --repair --start 0 r0 || { echo "repaired without a Primary"; false; }
    kernel_primary 0
    timeout 300 pydrbd -c $RES --node ours scrub --here --repair r0
    both_good
    verify_ends 0
    kernel_secondary 0
    on ours primary r0
    kernel_wait 0 20 ro:Secondary/Primary
    spoil 800 801
    timeout 300 pydrbd -c $RES --node ours verify --repair --start 0 r0
    both_good
    verify_ends 0
    on ours secondary r0
    kernel_wait 0 20 ro:Secondary/Secondary
    echo "ok we_repair"
}

kernel_verifies() {
    spoil 500 2000 2001 2002
    $DRBDSETUP verify 0 --start=0
    verify_ends 16
    repair_from_kernel
    $DRBDSETUP verify 0 --start=0
    verify_ends 0
    echo "ok kernel_verifies"
}

# usage: verify_under_writes WHO   Each node verifies while WHO (kernel, ours) writes: nothing is marked.
verify_under_writes() {
    local device=/dev/drbd0 load
    if [ "$1" = kernel ]; then
        kernel_primary 0
    else
        on ours primary r0
        device=$(on ours map r0/0)
    fi
    fio_verify "w_$1" "$device" 24M --loops=2 &
    load=$!
    on ours verify --start 0 r0
    kernel_wait 0 300 cs:Connected
    on ours wait-sync -t 300 r0
    $DRBDSETUP verify 0 --start=0
    kernel_wait 0 300 cs:Connected
    wait $load
    verify_ends 0
    if [ "$1" = kernel ]; then
        kernel_secondary 0
    else
        on ours unmap r0
        on ours secondary r0
        kernel_wait 0 20 ro:Secondary/Secondary
    fi
    echo "ok verify_under_writes_$1"
}

# A part, and the end of it by a disconnect.
verify_positions() {
    spoil 100 7000
    on ours verify --start 0 --stop 4M r0
    verify_ends 4
    $DRBDSETUP verify 0 --start=49152
    verify_ends 8
    repair_from_kernel
    echo "ok verify_positions"
}

# Both directions: of a full resync with some different blocks only those travel.
checksum_resync() {
    spoil 20 5000
    on ours invalidate r0
    both_good
    find "$PYDRBD_RUN_DIR/ours" -name '*.log' -exec cat {} + | grep -q "had equal checksums, eliminated: "
    spoil 30 6000
    on ours invalidate-remote r0
    both_good
    verify_ends 0
    dmesg | grep -q "had equal checksums"
    echo "ok checksum_resync"
}
