# Disks that the kernel makes fail (dm-error, dm-flakey) under a Primary's load, in one guest: the scenarios
# of tests/test_vm_disk_faults.py. Each prints `ok NAME`.
set -eE
. "$SUPPORT/vm_drbd.sh"
. "$SUPPORT/vm_pydrbd.sh"
trap 'echo "failed: line $LINENO: $BASH_COMMAND"; last_words; exit 1' ERR

SIZE=64M
declare -A LOOP

# usage: dm NODE TARGET...   Make /dev/mapper/NODE, or give it another table under whoever uses it.
dm() {
    local node=$1 sectors
    shift
    sectors=$(blockdev --getsz "${LOOP[$node]}")
    if [ -e "/dev/mapper/$node" ]; then
        dmsetup suspend --noflush "$node"
        dmsetup reload "$node" --table "0 $sectors $*"
        dmsetup resume --noudevsync "$node"
    else
        dmsetup create --noudevrules --noudevsync "$node" --table "0 $sectors $*"
        # Nobody else makes the name here.
        mkdir -p /dev/mapper
        [ -e "/dev/mapper/$node" ] ||
            ln -s "../dm-$(dmsetup info -c --noheadings -o minor "$node")" "/dev/mapper/$node"
    fi
}

# usage: new_disk NODE NUMBER   An empty disk behind /dev/mapper/NODE.
new_disk() {
    local node=$1 file=/stores/$1.$2
    truncate -s $SIZE "$file"
    LOOP[$node]=$(losetup --find --show "$file")
    dm "$node" linear "${LOOP[$node]}" 0
    # The kernel tells the next one who flushes, once, of writes that it lost under the old disk.
    sync "/dev/mapper/$node" || true
}

fresh_pair() {
    new_disk alpha 1
    new_disk beta 1
    write_config "" alpha /dev/mapper/alpha 10 7901 beta /dev/mapper/beta 11 7902
    for node in alpha beta; do
        on $node create-md r0 < /dev/null
        on $node up r0
    done
    on alpha wait-connect -t 60 r0
    on alpha new-current-uuid --clear-bitmap r0/0
    on alpha primary r0
    DEVICE=$(on alpha map r0/0)
    [[ $DEVICE == /dev/nbd* ]]
}

# usage: fails NODE EXPECTED_DSTATE_ON_ALPHA TARGET...   The node's disk fails under fio; nobody notices.
fails() {
    local node=$1 expected=$2 load
    shift 2
    fio --name=load --filename="$DEVICE" --size=32m --io_size=20m --rw=randwrite --bs=4k --ioengine=libaio \
        --iodepth=8 --direct=1 --fsync=64 --rate_iops=500 --verify=crc32c --verify_fatal=1 --do_verify=1 \
        > /tmp/load.log 2>&1 &
    load=$!
    sleep 2
    dm "$node" "$@"
    kill -0 $load
    # Ends with reading everything back; an I/O error or a wrong block ends it with an error.
    wait $load || { cat /tmp/load.log; false; }
    grep -E "err= *0" /tmp/load.log
    [ "$(on alpha dstate r0)" = "$expected" ]
    echo "ok $node fails: $*"
}

# usage: replaced NODE NUMBER   Another disk in its place: create-md, attach, full sync.
replaced() {
    new_disk "$1" "$2"
    on "$1" create-md r0 < /dev/null
    on "$1" attach r0
    in_sync alpha
    [ "$(on alpha dstate r0)" = UpToDate/UpToDate ]
    echo "ok $1 replaced"
}

down_and_equal() {
    local bytes
    on alpha unmap r0
    on alpha secondary r0
    bytes=$(on alpha status --json r0 | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["devices"][0]["size"] * 1024)')
    on alpha down r0
    on beta down r0
    same_data /dev/mapper/alpha /dev/mapper/beta "$bytes"
    echo "ok equal"
}

modprobe loop
modprobe dm-mod
modprobe dm-flakey
