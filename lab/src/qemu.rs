//! The command that runs one guest.

use crate::{
    Accelerator, GuestRoot, Options,
    options::{mac, node_name},
    process::tied,
};
use std::{path::Path, process::Command};

/// What a guest is started with, besides the cluster's options.
pub(crate) struct Guest<'a> {
    /// From 1.
    pub number: usize,
    pub root: &'a GuestRoot,
    pub accelerator: &'a Accelerator,
    /// The folder to share.
    pub share: &'a Path,
    /// Where the serial console goes.
    pub console: &'a Path,
    /// The socket of each rail, in order.
    pub sockets: &'a [std::path::PathBuf],
}

/// QEMU's command line for a guest.
pub(crate) fn command(guest: &Guest<'_>, options: &Options) -> Command {
    // `timeout` is the last resort. It is killed with the lab as everything is, and QEMU with it.
    let mut qemu = tied("timeout");
    qemu.args(["--kill-after=5", &options.lifetime.as_secs().to_string()]);
    qemu.args(["setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
    qemu.args(["-machine", "q35", "-display", "none", "-monitor", "none", "-no-reboot"]);
    qemu.args(guest.accelerator.arguments());

    let cpus = options.cpus();
    qemu.arg("-m").arg(format!("{}M", options.memory_mib / options.numa_nodes * options.numa_nodes));
    qemu.arg("-smp")
        .arg(format!("{cpus},sockets={},cores={}", options.numa_nodes, options.cpus_per_numa_node));
    for node in 0..options.numa_nodes {
        let first = node * options.cpus_per_numa_node;
        let last = first + options.cpus_per_numa_node - 1;
        let size = options.memory_mib / options.numa_nodes;
        qemu.arg("-object").arg(format!("memory-backend-ram,id=mem{node},size={size}M"));
        qemu.arg("-numa").arg(format!("node,nodeid={node},cpus={first}-{last},memdev=mem{node}"));
    }

    qemu.arg("-kernel").arg(guest.root.kernel()).arg("-initrd").arg(guest.root.initrd());
    qemu.arg("-append").arg(kernel_arguments(guest.number, options));
    qemu.arg("-serial").arg(format!("file:{}", guest.console.display()));
    // Every guest writes into a layer of its own that vanishes with it.
    let disk = escaped(&guest.root.disk());
    qemu.arg("-drive").arg(format!("file={disk},if=none,id=disk,format=raw,snapshot=on"));
    qemu.args(["-device", "virtio-blk-pci,drive=disk,bus=pcie.0"]);
    let share = escaped(guest.share);
    qemu.arg("-fsdev").arg(format!("local,id=share,path={share},security_model=none,multidevs=forbid"));
    qemu.args(["-device", "virtio-9p-pci,fsdev=share,mount_tag=lab,bus=pcie.0"]);

    for (rail, socket) in guest.sockets.iter().enumerate() {
        // A PCI expander bridge is what gives a device a NUMA node.
        let bus = 16 * (rail + 1);
        let node = rail % options.numa_nodes;
        qemu.arg("-device").arg(format!("pxb-pcie,id=pxb{rail},bus_nr={bus},bus=pcie.0,numa_node={node}"));
        qemu.arg("-device").arg(format!("pcie-root-port,id=port{rail},bus=pxb{rail},chassis={bus}"));
        let socket = escaped(socket);
        qemu.arg("-netdev").arg(format!("stream,id=rail{rail},server=off,addr.type=unix,addr.path={socket}"));
        let mac = mac(guest.number, rail).map(|byte| format!("{byte:02x}")).join(":");
        qemu.arg("-device").arg(format!("virtio-net-pci,netdev=rail{rail},bus=port{rail},mac={mac}"));
    }
    qemu.args(&options.qemu_arguments);
    qemu
}

/// Everything after `mitigations` saves time: self-tests, waits for grace periods and hardening that a lab has no use for.
fn kernel_arguments(number: usize, options: &Options) -> String {
    let rdma = if options.rdma { "on" } else { "off" };
    format!(
        "console=ttyS0 quiet panic=-1 lab.node={} lab.rdma={rdma} \
         mitigations=off nokaslr audit=0 apparmor=0 cryptomgr.notests rcupdate.rcu_expedited=1 {}",
        node_name(number),
        options.kernel_arguments
    )
}

/// A path inside one of QEMU's comma-separated options.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
