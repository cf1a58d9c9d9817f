#!/bin/bash
# Runs as root in each guest: network, soft-RoCE, Slurm; then obeys the host until it is told to halt.
# /lab/conf/settings gives: nodes.
exec > "/lab/log/guest.$(sed -n 's/.*lab.node=\(vm[0-9]*\).*/\1/p' /proc/cmdline).log" 2>&1
set -x
. /lab/conf/settings
name=$(sed -n 's/.*lab.node=\(vm[0-9]*\).*/\1/p' /proc/cmdline)
number=${name#vm}
hostname "$name"
ulimit -n 4096
ulimit -l unlimited

# Where rdma_cm's defaults are set.
[ -d /sys/module/rdma_cm ] && mount -t configfs none /sys/kernel/config

# Rail k is 10.0.k.0/24. The hardware address tells the rail, for the order of devices is the kernel's business.
ip link set lo up
for interface in /sys/class/net/eth*; do
    IFS=: read -r _ _ _ _ rail _ < "$interface/address"
    rail=$((16#$rail))
    # RoCE needs 4096 bytes and its headers in a frame to reach the path MTU of 4096.
    ip link set "${interface##*/}" name "rail$rail" mtu 4500 up
    ip addr add "10.0.$rail.$number/24" dev "rail$rail"
    [ -d /sys/module/rdma_rxe ] && rdma link add "rxe$rail" type rxe netdev "rail$rail"
done

# An emulated kernel that changes its own code while another CPU runs it dies now and then (`Oops: int3`, QEMU 7.2). It does so when TCP and
# UDP make the keys of their hash tables, at the first packet of each kind: so they make them now, on one CPU, with nobody else there.
for address in 127.0.0.1 ::1; do
    taskset -c 0 bash -c "echo > /dev/tcp/$address/9; echo > /dev/udp/$address/9; echo > /dev/udp/$address/9" 2> /dev/null
done

# Programs are started from memory: over 9p every page fault would be a question to the host.
if [ -d /lab/bin ]; then
    cp -r /lab/bin /run/lab-bin
    mount --bind /run/lab-bin /lab/bin
fi

# Slurm wants its files owned by root, and the share's owner is whoever started the lab.
install -m 644 /lab/conf/hosts /etc/hosts
for file in slurm.conf cgroup.conf plugstack.conf roce.toml; do
    [ -e "/lab/conf/$file" ] && install -m 644 "/lab/conf/$file" "/etc/slurm/$file"
done
for plugins in /usr/lib/*/slurm-wlm /usr/lib/*/slurm; do
    [ -e "$plugins/auth_munge.so" ] && break
done
[ -e /lab/conf/spank_roce.so ] && install -m 755 /lab/conf/spank_roce.so "$plugins/spank_roce.so"

# Slurm 22.05 makes its cgroup in systemd's, which isn't here.
mkdir -p /sys/fs/cgroup/system.slice

mkdir -p /run/munge /var/log/munge /var/lib/munge /tmp/spool /tmp/state
install -o munge -m 400 /lab/conf/munge.key /etc/munge/munge.key
chown munge /etc/munge /run/munge /var/log/munge /var/lib/munge
setpriv --reuid=munge --regid=munge --clear-groups munged --force || exit 10

# Waits without starting a process: nobody ever writes into this pipe.
mkfifo /run/never
exec 9<> /run/never
pause() { read -r -t "$1" -u 9; }

if [ "$name" = vm1 ]; then
    slurmctld -c || exit 11
fi
slurmd || exit 12
if [ "$name" = vm1 ]; then
    until [ "$(sinfo -h -N -t idle -o %N | wc -l)" = "$nodes" ]; do pause 0.2; done
fi
echo "LAB-READY $(cat /proc/uptime)" > /dev/console

# One command at a time: the host drops NNN.sh, by renaming, and finds NNN.status the same way.
set +x
commands=/lab/cmd/$name
next=1
while [ ! -e "$commands/halt" ]; do
    if [ -e "$commands/$next.sh" ]; then
        bash "$commands/$next.sh" > "$commands/$next.out" 2> "$commands/$next.err" < /dev/null 9>&-
        echo $? > "$commands/$next.status.new"
        mv "$commands/$next.status.new" "$commands/$next.status"
        next=$((next + 1))
    else
        pause 0.05
    fi
done
exit 0
