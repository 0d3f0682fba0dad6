# Net options that change while the kernel's DRBD 8.4 and pydrbd are connected: PROTOCOL_UPDATE and SYNC_PARAM89 in
# both directions, under load. `. $SUPPORT/vm_protocol.sh` after vm_interop.sh; scenarios as there.

LOG=/run/pydrbd/ours/r0.log

# usage: kernel_net OPTION...   The kernel's administrator changes net options of the running connection.
kernel_net() {
    $DRBDSETUP net-options 127.0.0.1:7801 127.0.0.1:7802 "$@"
}

# usage: kernel_has LETTER   The protocol with which the kernel's node runs.
kernel_has() {
    kernel_wait 0 20 cs:Connected
    wait_until 20 'kernel_state 0 | grep -q " '"$1"' r"'
}

# usage: we_heard TEXT
we_heard() {
    wait_until 20 'grep -q "the peer changes .*'"$1"'" $LOG' || { echo "not heard: $1"; tail -20 $LOG; false; }
}

# usage: changes_under NAME DEVICE   Both administrators change options while fio writes to DEVICE, and verifies.
changes_under() {
    local job
    fio_verify "$1" "$2" 12M --bsrange=4k-64k &
    job=$!
    kernel_net --protocol=A
    kernel_has A
    we_heard "protocol to A"
    kernel_net --protocol=B --after-sb-0pri=discard-remote
    we_heard "protocol to B.*after-sb-0pri to discard-local"
    on ours net-options --protocol=A --after-sb-0pri=discard-zero-changes r0
    kernel_has A
    on ours net-options --protocol=C --after-sb-0pri=disconnect r0
    kernel_has C
    wait $job
    fio_verify "$1_digests" "$2" 6M --bsrange=4k-64k &
    job=$!
    kernel_net --data-integrity-alg=sha1
    we_heard "the data-integrity-alg of its data to sha1"
    kernel_net --data-integrity-alg=
    we_heard "the data-integrity-alg of its data to none"
    kernel_net --verify-alg=md5 --csums-alg=sha1
    we_heard "verify-alg to md5"
    wait $job
    on ours net-options --verify-alg= --csums-alg= r0
    kernel_wait 0 20 cs:Connected
}

protocol_scenario() {
    local device lost
    lost=$(grep -c 'connection lost' $LOG || true)
    on ours primary r0
    kernel_wait 0 20 cs:Connected ro:Secondary/Primary
    device=$(on ours map r0/0)
    changes_under p_ours "$device"
    on ours unmap r0
    on ours secondary r0
    kernel_wait 0 20 ro:Secondary/Secondary
    echo "ok protocol_changes_under_us"
    kernel_primary 0
    kernel_wait 0 20 cs:Connected ro:Primary/Secondary
    changes_under p_kernel /dev/drbd0
    kernel_secondary 0
    [ "$(grep -c 'connection lost' $LOG)" = "$lost" ] || { echo "the connection was lost"; tail -40 $LOG; false; }
    echo "ok protocol_changes_under_the_kernel"
}

# The kernel's administrator allows two Primaries, and takes it back: this node does the same.
two_primaries_option_scenario() {
    local lost
    lost=$(grep -c 'connection lost' $LOG || true)
    kernel_net --allow-two-primaries=yes
    we_heard "allow-two-primaries to True"
    kernel_wait 0 20 cs:Connected
    kernel_net --allow-two-primaries=no
    we_heard "allow-two-primaries to False"
    both_good
    [ "$(grep -c 'connection lost' $LOG)" = "$lost" ] || { echo "the connection was lost"; tail -40 $LOG; false; }
    echo "ok two_primaries_option"
}
