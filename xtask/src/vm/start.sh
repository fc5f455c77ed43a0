# The first program of the guest in the host's root. ttyS0 is the kernel's log, ttyS1 takes the output of the
# command, ttyS2 its exit status.
bb=/run/memtrace-vm/busybox
$bb mkdir -p /dev/pts /dev/shm
$bb mount -t devpts devpts /dev/pts
$bb mount -t tmpfs -o mode=1777 tmpfs /dev/shm
$bb mount -t bpf bpf /sys/fs/bpf
$bb mount -t tracefs tracefs /sys/kernel/tracing
# Both kinds of control groups, for tests that freeze a process.
$bb mount -t tmpfs tmpfs /sys/fs/cgroup
$bb mkdir /sys/fs/cgroup/freezer /sys/fs/cgroup/unified
$bb mount -t cgroup -o freezer cgroup /sys/fs/cgroup/freezer
$bb mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
$bb ip link set lo up
$bb hostname memtrace-vm
$bb stty -F /dev/ttyS1 raw -echo
$bb stty -F /dev/ttyS2 raw -echo
# Through a pipe: programs write in colour to a terminal.
{
    /bin/sh /run/memtrace-vm/command </dev/null
    echo "$?" >/run/memtrace-vm/status
} 2>&1 | $bb cat >/dev/ttyS1
$bb cat /run/memtrace-vm/status >/dev/ttyS2
$bb poweroff -f
