# Shell functions for one node of the kernel's own DRBD 8.4 in a guest; `. $SUPPORT/vm_drbd.sh`.
# The node listens at 127.0.0.1:PORT and its peer (pydrbd, or another kernel minor) at another
# port of the same address. Everything goes through drbdsetup-84 and drbdmeta, so that no
# configuration file stands between a test and the module. States are read from /proc/drbd:
#    0: cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate C r-----
#       ns:0 nr:0 dw:0 dr:0 al:0 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:0

DRBDSETUP=/usr/lib/drbd/drbdsetup-84

# usage: kernel_load   Loads the module. A user mode helper that fails would drop the connection.
kernel_load() {
    modprobe loop
    [ -e /proc/drbd ] || modprobe drbd usermode_helper=/bin/true minor_count=8
}

# usage: DEVICE=$(kernel_disk FILE SIZE)   A block device for a backing store in FILE (made, if it is missing).
kernel_disk() {
    modprobe loop
    [ -e "$1" ] || truncate -s "$2" "$1"
    losetup --direct-io=on --find --show "$1"
}

# usage: kernel_create_md MINOR DEVICE   New internal v08 metadata at the end of DEVICE.
kernel_create_md() {
    drbdmeta --force "$1" v08 "$2" internal create-md > /dev/null
}

# usage: kernel_apply_al MINOR DEVICE   Needed before each attach to metadata that was ever in use.
kernel_apply_al() {
    drbdmeta --force "$1" v08 "$2" internal apply-al > /dev/null
}

# usage: kernel_attach MINOR DEVICE [disk options]
kernel_attach() {
    local minor=$1 device=$2
    shift 2
    kernel_apply_al "$minor" "$device" && $DRBDSETUP attach "$minor" "$device" "$device" internal "$@"
}

# usage: kernel_connect RESOURCE PORT PEER_PORT [net options]   With protocol $PROTOCOL, or C.
kernel_connect() {
    local resource=$1 port=$2 peer=$3
    shift 3
    $DRBDSETUP connect "$resource" "127.0.0.1:$port" "127.0.0.1:$peer" "--protocol=${PROTOCOL:-C}" \
        --connect-int=1 "$@"
}

# usage: kernel_disconnect PORT PEER_PORT
kernel_disconnect() {
    $DRBDSETUP disconnect "127.0.0.1:$1" "127.0.0.1:$2"
}

# usage: kernel_up RESOURCE MINOR DEVICE PORT PEER_PORT [net options]
# A resource with one volume, attached and connecting. Resync is not throttled.
kernel_up() {
    local resource=$1 minor=$2 device=$3 port=$4 peer=$5
    shift 5
    $DRBDSETUP new-resource "$resource" &&
        $DRBDSETUP new-minor "$resource" "$minor" 0 &&
        kernel_attach "$minor" "$device" --c-max-rate=4194304 --c-min-rate=0 --resync-rate=500M &&
        kernel_connect "$resource" "$port" "$peer" "$@"
}

# usage: kernel_primary MINOR [--force] / kernel_secondary MINOR
kernel_primary() {
    $DRBDSETUP primary "$@"
}
kernel_secondary() {
    $DRBDSETUP secondary "$1"
}

# usage: kernel_down RESOURCE
kernel_down() {
    $DRBDSETUP down "$1"
}

# What is done again and again starts no process: on an emulated processor a fork takes milliseconds, of which what
# is waited for has more need.
mkfifo /tmp/silent 2> /dev/null || true
exec {SILENT}<> /tmp/silent
pause() {
    read -r -t 0.1 -u "$SILENT" || true
}

# usage: look_at MINOR   The minor's two lines of /proc/drbd, in one, are in STATE.
look_at() {
    local -a words
    STATE=
    while read -r -a words; do
        if [ -n "$STATE" ]; then
            STATE="$STATE ${words[*]} "
            return
        fi
        [ "${words[0]}" != "$1:" ] || STATE="${words[*]}"
    done < /proc/drbd
}

# usage: kernel_state MINOR   The same, printed.
kernel_state() {
    look_at "$1"
    echo "$STATE"
}

# usage: kernel_oos MINOR   KiB out of sync.
kernel_oos() {
    kernel_state "$1" | sed -n 's/.* oos:\([0-9]*\).*/\1/p'
}

# usage: wait_until SECONDS COMMAND...   Until COMMAND (evaluated) succeeds; 1 after SECONDS.
wait_until() {
    local end=$((SECONDS + $1))
    shift
    until eval "$*"; do
        if [ $SECONDS -ge $end ]; then
            echo "wait_until: gave up on: $*" >&2
            return 1
        fi
        pause
    done
}

# usage: kernel_wait MINOR SECONDS PATTERN...   Until the state matches every extended PATTERN, e.g.
#   kernel_wait 0 60 cs:Connected ds:UpToDate/UpToDate
kernel_wait() {
    local minor=$1 end=$((SECONDS + $2)) pattern missing
    shift 2
    while :; do
        look_at "$minor"
        missing=
        for pattern in "$@"; do
            [[ $STATE =~ $pattern ]] || missing="$missing $pattern"
        done
        [ -z "$missing" ] && return 0
        if [ $SECONDS -ge $end ]; then
            echo "kernel_wait: minor $minor lacks$missing: $STATE" >&2
            return 1
        fi
        pause
    done
}

# usage: kernel_data_bytes MINOR   Size of the data area: that of the DRBD device (attached).
kernel_data_bytes() {
    echo $(($(cat "/sys/block/drbd$1/size") * 512))
}

# usage: same_data A B BYTES   Compares the first BYTES of two backing stores past the page cache's lies.
same_data() {
    sync
    echo 3 > /proc/sys/vm/drop_caches
    python3 - "$@" << 'PYTHON'
import sys

left, right, size = open(sys.argv[1], "rb"), open(sys.argv[2], "rb"), int(sys.argv[3])
for offset in range(0, size, 1 << 20):
    length = min(1 << 20, size - offset)
    if left.read(length) != right.read(length):
        sys.exit(f"{sys.argv[1]} and {sys.argv[2]} differ within the MiB at {offset}")
print(f"same data: {size} bytes of {sys.argv[1]} and {sys.argv[2]}")
PYTHON
}

# usage: fio_verify NAME DEVICE SIZE [fio options]   4 KiB random writes, each read back and checked.
fio_verify() {
    local name=$1 device=$2 size=$3
    shift 3
    fio --name="$name" --bs=4k --filename="$device" --size="$size" --rw=randwrite --ioengine=libaio --iodepth=8 \
        --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0 --output-format=terse \
        --terse-version=3 "$@" > "/tmp/fio.$name.log" 2>&1 ||
        { cat "/tmp/fio.$name.log"; return 1; }
    echo "fio $name: verified"
}
