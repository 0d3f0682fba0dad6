#!/bin/sh
# The guest's first process, twice: in the initramfs (under busybox) it loads the modules for
# the disks and moves to the root disk; there, called with the argument "root", it unpacks the
# job disk, runs the job and powers off. Part of the image's recipe.
#   vda root disk   vdb job (a tar)   vdc result (a tar, written here)   vdd... disks of the test
#   ttyS0 kernel messages and this script   ttyS1 the job's output

if [ "$1" != root ]; then
    export PATH=/bin
    busybox mount -t devtmpfs dev /dev
    while read -r module; do busybox insmod "/modules/$module"; done < /modules/order
    until [ -b /dev/vda ]; do busybox sleep 0.05; done
    busybox mount -t ext4 -o noatime /dev/vda /root
    busybox mount -o move /dev /root/dev
    busybox cp /init /root/sbin/vm-init
    exec busybox switch_root /root /sbin/vm-init root
fi

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs -o mode=1777,size=90% tmp /tmp
mkdir -p /run/lock
ip link set lo up
stty -F /dev/ttyS1 raw -echo 2> /dev/null
tar -x -C /job -f /dev/vdb
mkdir -p /job/result
# A session of its own keeps the job's signals away from this process.
setsid -w /bin/bash /job/start < /dev/null > /dev/ttyS1 2>&1
echo $? > /job/result/.exit
# dmesg goes along: the console shows only what is urgent.
dmesg > /job/result/.dmesg 2> /dev/null
tar -c -C /job/result -f /dev/vdc . || echo "vm-init: the result does not fit its disk"
sync -f /dev/vdc
echo "vm-init: done"
busybox poweroff -f
