#!/bin/busybox sh
# Process 1 until the agent is. Disk 1 is the read-only root; disk 2, if there is one, is an ext4
# file system made by the host that takes what the guest writes, else RAM does.
# On any failure it says so and ends, and the kernel panics: with panic=-1 the machine stops.

busybox=/bin/busybox

fail() {
    echo "vmpool init: $1" >/dev/console
    exit 1
}

$busybox mount -t devtmpfs dev /dev || fail "cannot mount /dev"
$busybox mount -t proc proc /proc || fail "cannot mount /proc"
$busybox mount -t sysfs sys /sys || fail "cannot mount /sys"

while read -r module; do
    $busybox insmod "/modules/$module.ko" || fail "cannot load module $module"
done </modules/order

python=
read -r command_line </proc/cmdline
for word in $command_line; do
    case $word in
    vmpool.python=*) python=${word#vmpool.python=} ;;
    esac
done
[ -n "$python" ] || fail "the command line has no vmpool.python="

[ -b /dev/vda ] || fail "there is no root disk"
$busybox mount -t erofs -o ro /dev/vda /lower || fail "cannot mount the root disk"
if [ -b /dev/vdb ]; then
    $busybox mount -t ext4 -o noatime /dev/vdb /upper || fail "cannot mount the scratch disk"
else
    $busybox mount -t tmpfs -o size=60%,mode=755 upper /upper || fail "cannot mount a tmpfs"
fi
$busybox mkdir -p /upper/root /upper/work || fail "cannot write to the upper layer"
$busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/root,workdir=/upper/work root /root ||
    fail "cannot mount the overlay"

[ -f /root/usr/lib/vmpool/agent.pyz ] || fail "the image has no agent"
$busybox mount --move /dev /root/dev || fail "cannot move /dev"
$busybox umount /sys
$busybox umount /proc
# Symbols are looked up now, and not by each clone when it first calls them.
export LD_BIND_NOW=1
exec $busybox switch_root /root "$python" -I /usr/lib/vmpool/agent.pyz
fail "cannot start $python"
