#!/bin/sh
# Runs inside the new guest root: packs /boot/lab-initrd, a few modules and a busybox.
#
# Debian's own initrd waits for udev and unpacks 40 MB, which costs 15 s of emulation. This one is not compressed and
# its modules aren't either, because unpacking is what emulation is slowest at: it reaches the root in 3 s.
set -e
kernel=$(ls /usr/lib/modules)
tree=$(mktemp -d)
mkdir -p "$tree/bin" "$tree/modules" "$tree/dev" "$tree/proc" "$tree/root"
cp /bin/busybox "$tree/bin/busybox"

# In the order in which they must be loaded, for insmod knows no dependencies. rdma.* is what a guest without RDMA leaves out.
pack() {
    list=$1; shift
    for module in "$@"; do modprobe -S "$kernel" --show-depends "$module"; done |
        awk '$1 == "insmod" && !seen[$2]++ { print $2 }' |
        while read -r file; do
            name=$(basename "$file"); name=${name%.xz}
            case $file in
                *.xz) /bin/busybox xzcat "$file" > "$tree/modules/$name" ;;
                *) cp "$file" "$tree/modules/$name" ;;
            esac
            echo "$name" >> "$tree/$list"
        done
}
pack base.list virtio_pci virtio_blk ext4 9pnet_virtio 9p virtio_net
pack rdma.list rdma_rxe ib_uverbs rdma_ucm

cp /tmp/lab-initrd-init "$tree/init"
chmod 755 "$tree/init"
cd "$tree"
find . | cpio --quiet -o -H newc > /boot/lab-initrd
rm -rf "$tree"
