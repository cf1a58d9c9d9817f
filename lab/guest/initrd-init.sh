#!/bin/busybox sh
# The first program of a guest: loads the modules, mounts the root, hands over.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
echo "LAB-KERNEL $($b cat /proc/uptime)" > /dev/console
load() { for module in $($b cat "$1"); do $b insmod "/modules/$module" 2> /dev/null; done; }
load /base.list
$b grep -q lab.rdma=off /proc/cmdline || load /rdma.list
$b mount -t ext4 /dev/vda /root || { echo "LAB-EXIT no-root" > /dev/console; $b poweroff -f; }
$b mount -o move /dev /root/dev
$b umount /proc
exec $b switch_root /root /sbin/lab-init
