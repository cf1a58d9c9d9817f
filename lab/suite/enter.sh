# Runs a command in a throw-away copy of a suite's root. Started by `Suite::command` as the first process of namespaces
# of its own (mounts, processes, network, host name): when it ends, in whatever way, all that it started and mounted is
# gone.
#
# enter.sh FOLDER NAME SECONDS [FILE PATH-INSIDE]... -- COMMAND...
set -eu
folder=$1 name=$2 seconds=$3
root=$folder/root
shift 3

mount -t tmpfs -o mode=755,size=3g suite "$root"
tar -C "$root" --numeric-owner --exclude='./dev/*' -xf "$folder/root.tar"
while [ "$1" != -- ]; do
    mkdir -p "$root$(dirname "$2")"
    cp "$1" "$root$2"
    shift 2
done
shift

mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
echo "$name" >/proc/sys/kernel/hostname
echo "127.0.0.1 localhost $name" >"$root/etc/hosts"
# One address beside 127.0.0.1, or glibc says that this machine has no IPv4 (AI_ADDRCONFIG), which Slurm asks for.
chroot "$root" sh -c 'ip link set lo up && ip address add 192.0.2.1/32 dev lo'

# Not exec: this shell is process 1, and reaps what daemons leave behind.
timeout --kill-after=5 "$seconds" chroot "$root" "$@"
