#!/bin/busybox sh
# The first program of the guest, in the initramfs. What it says goes to the console's log.
bb=/bin/busybox
give_up() {
    echo "memtrace-vm: $1"
    $bb poweroff -f
}
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    [ -e "$module" ] || continue
    $bb insmod "$module" || give_up "cannot load $module"
done
$bb mount -t virtiofs -o ro host /host || give_up "cannot mount the host's root"
# What programs write goes into memory.
for dir in tmp var/tmp run; do
    $bb mount -t tmpfs -o mode=1777 tmpfs "/host/$dir" || give_up "cannot mount a tmpfs on $dir"
done
$bb mkdir /host/run/memtrace-vm
$bb cp /bin/busybox /start /command /host/run/memtrace-vm || give_up "cannot copy the command"
for dir in proc sys dev; do
    $bb mount -o move "/$dir" "/host/$dir" || give_up "cannot move $dir"
done
exec $bb switch_root /host /run/memtrace-vm/busybox sh /run/memtrace-vm/start
