# In a guest: two nodes of pydrbd, two minors of the kernel's DRBD, and md raid1 over nbd, each pair on two
# virtio disks of its own; `. ./vm.sh` in the script that vm.py makes. fio's JSON goes to $RESULT.
#   vdd, vde pydrbd   vdf, vdg DRBD   vdh, vdi md (the second through nbdkit, TCP and the kernel's nbd client)
set -eE
. "$SUPPORT/vm_drbd.sh"
. "$SUPPORT/vm_pydrbd.sh"
trap 'echo "failed: line $LINENO: $BASH_COMMAND"; last_words; exit 1' ERR

declare -A DEVICE

start_pydrbd() {
    write_config "" alpha /dev/vdd 10 7901 beta /dev/vde 11 7902
    on alpha create-md r0 < /dev/null
    on beta create-md r0 < /dev/null
    on alpha up r0
    on beta up r0
    on alpha wait-connect -t 60 r0
    on alpha new-current-uuid --clear-bitmap r0/0
    on alpha primary r0
    DEVICE[pydrbd]=$(on alpha map r0/0)
    [[ ${DEVICE[pydrbd]} == /dev/nbd* ]]
}

start_drbd() {
    kernel_load
    kernel_create_md 0 /dev/vdf
    kernel_create_md 1 /dev/vdg
    kernel_up k0 0 /dev/vdf 7801 7802
    kernel_up k1 1 /dev/vdg 7802 7801
    kernel_wait 0 60 cs:Connected
    $DRBDSETUP new-current-uuid --clear-bitmap 0
    kernel_wait 0 60 cs:Connected ds:UpToDate/UpToDate
    kernel_primary 0
    DEVICE[drbd]=/dev/drbd0
}

# Without mdadm: an array without superblocks, through sysfs (kernel: Documentation/admin-guide/md.rst).
start_md() {
    local near=vdh far=nbd9 array=/sys/block/md_bench/md slot=0 disk
    modprobe raid1
    modprobe nbd max_part=0
    nbdkit -i 127.0.0.1 -p 7811 -P /run/far.pid file /dev/vdi
    nbd-client 127.0.0.1 7811 /dev/$far > /dev/null
    echo md_bench > /sys/module/md_mod/parameters/new_array
    echo none > $array/metadata_version
    echo raid1 > $array/level
    echo 2 > $array/raid_disks
    for disk in $near $far; do
        cat /sys/block/$disk/dev > $array/new_dev
        echo 0 > $array/dev-$disk/size
        echo $slot > $array/dev-$disk/slot
        slot=$((slot + 1))
    done
    echo $(($(cat /sys/block/$near/size) / 2)) > $array/component_size
    echo none > $array/resync_start
    echo active > $array/array_state
    [ "$(cat $array/degraded)" = 0 ]
    DEVICE[md]=/dev/md_bench
    wait_until 10 '[ -b /dev/md_bench ]'
}

# usage: mirrors NAME DISK   What is written to the device is on its second disk.
mirrors() {
    local name=$1 disk=$2 mark
    mark=$(head -c 3072 /dev/urandom | base64 -w 0)
    printf %s "$mark" | dd of="${DEVICE[$name]}" bs=4096 count=1 seek=256 oflag=direct conv=fsync iflag=fullblock 2> /dev/null
    [ "$(dd if="$disk" bs=4096 count=1 skip=256 iflag=direct 2> /dev/null)" = "$mark" ]
}

# usage: fio_on NAME LABEL OPTIONS...
fio_on() {
    local name=$1 label=$2
    shift 2
    fio --name=job --filename="${DEVICE[$name]}" --ioengine=libaio --direct=1 --output-format=json \
        --output="$RESULT/$label.json" "$@" > "/tmp/$label.log" 2>&1 || { cat "/tmp/$label.log"; false; }
}

# usage: prepare SIZE   All three, each written once.
prepare() {
    local name
    start_pydrbd
    start_drbd
    start_md
    for name in pydrbd drbd md; do
        fio_on "$name" "fill-$name" --rw=write --bs=1m --iodepth=4 --size="$1" --end_fsync=1
    done
    all_mirror
    echo "prepared"
}

all_mirror() {
    mirrors pydrbd /dev/vde
    mirrors drbd /dev/vdg
    mirrors md /dev/vdi
}

# usage: cell NAME LABEL OPTIONS...   Nothing of an earlier cell is still to be written.
cell() {
    sync
    fio_on "$@"
    echo "done $2"
}

kernel_version() {
    sed -n 's/^version: \([^ ]*\).*/\1/p' /proc/drbd
}
