//! What cluster to boot.

use crate::Error;
use std::{path::PathBuf, time::Duration};

/// A cluster: its guests, their wires and their Slurm. Start from [`Options::new`] and change what differs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where captures (`wire/`), logs (`logs/`) and the shared folder (`share/`) go; what an earlier run left in these
    /// three is removed first.
    pub results: PathBuf,
    /// Guests: `vm1` (Slurm's controller, and a node), `vm2`, ... 1 to 99.
    pub nodes: usize,
    /// Rails: NICs per guest, each on a wire of its own. 1 to 8.
    pub rails: usize,
    /// NUMA nodes per guest; rail k is on NUMA node k modulo this. 1 to 8.
    pub numa_nodes: usize,
    /// CPUs per NUMA node.
    pub cpus_per_numa_node: usize,
    /// Memory per guest, in MiB.
    pub memory_mib: usize,
    /// The plugin to install as `spank_roce.so`.
    pub plugin: Option<PathBuf>,
    /// The text of plugstack.conf; `None`: one line that requires the plugin, or an empty file without a plugin.
    pub plugstack: Option<String>,
    /// The text of /etc/slurm/roce.toml; `None`: no such file.
    pub roce_toml: Option<String>,
    /// Programs to have under /lab/bin in every guest.
    pub programs: Vec<PathBuf>,
    /// Keys of slurm.conf to set or to replace.
    pub slurm_conf: Vec<(String, String)>,
    /// Whether guests load the RDMA modules. Without them a guest is a machine with no RDMA at all.
    pub rdma: bool,
    /// More for the kernel's command line.
    pub kernel_arguments: String,
    /// More for QEMU's command line.
    pub qemu_arguments: Vec<String>,
    /// Another script in place of the guests' set-up, to try the watchdog.
    pub guest_script: Option<String>,
    /// How long a guest may take until its PID 1 reports.
    pub boot_timeout: Duration,
    /// How long a guest may take from there until Slurm is ready.
    pub ready_timeout: Duration,
    /// The last resort: guests are killed at this age by a process of their own.
    pub lifetime: Duration,
}

impl Options {
    /// Two guests with two NUMA nodes, a CPU and a rail on each; no plugin.
    #[must_use]
    pub fn new(results: impl Into<PathBuf>) -> Self {
        Self {
            results: results.into(),
            nodes: 2,
            rails: 2,
            numa_nodes: 2,
            cpus_per_numa_node: 1,
            memory_mib: 1024,
            plugin: None,
            plugstack: None,
            roce_toml: None,
            programs: Vec::new(),
            slurm_conf: Vec::new(),
            rdma: true,
            kernel_arguments: String::new(),
            qemu_arguments: Vec::new(),
            guest_script: None,
            // Two emulated guests take 8 and 5 s on two cores that have nothing else to do, and 30 s in all on busy ones.
            boot_timeout: Duration::from_secs(120),
            ready_timeout: Duration::from_secs(120),
            lifetime: Duration::from_secs(30 * 60),
        }
    }

    /// CPUs per guest.
    pub(crate) fn cpus(&self) -> usize {
        self.numa_nodes * self.cpus_per_numa_node
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let within = |option, value: usize, range: std::ops::RangeInclusive<usize>, allowed| {
            if range.contains(&value) {
                Ok(())
            } else {
                Err(Error::Option { option, value: value.to_string(), allowed })
            }
        };
        // Node numbers are the last byte of addresses, in decimal and in hexadecimal alike.
        within("nodes", self.nodes, 1..=99, "1 to 99 guests")?;
        // A rail takes 16 of the PCI host's 256 bus numbers.
        within("rails", self.rails, 1..=8, "1 to 8 rails")?;
        within("numa_nodes", self.numa_nodes, 1..=8, "1 to 8 NUMA nodes")?;
        within("cpus_per_numa_node", self.cpus_per_numa_node, 1..=32, "1 to 32 CPUs on each NUMA node")?;
        within(
            "memory_mib",
            self.memory_mib / self.numa_nodes,
            128..=65536,
            "at least 128 MiB on each NUMA node",
        )
    }
}

/// The name of the guest with a number, counted from 1.
pub(crate) fn node_name(number: usize) -> String {
    format!("vm{number}")
}

/// The address of a guest's NIC: rail and guest can be read from it.
pub(crate) fn mac(number: usize, rail: usize) -> [u8; 6] {
    // `Options::check` keeps both below 256.
    [0x52, 0x54, 0, 0, u8::try_from(rail).unwrap_or(u8::MAX), u8::try_from(number).unwrap_or(u8::MAX)]
}

/// The guest that a NIC's address belongs to.
pub(crate) fn node_of_mac(mac: &[u8]) -> Option<usize> {
    match mac {
        [0x52, 0x54, 0, 0, _, number @ 1..=u8::MAX] => Some(usize::from(*number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_clusters_are_refused_with_what_is_possible() {
        let options = Options { rails: 9, ..Options::new("x") };
        let text = options.check().err().map(|error| error.to_string());
        assert_eq!(text.as_deref(), Some("rails = 9 is not possible: 1 to 8 rails"));
        assert!(Options::new("x").check().is_ok());
    }

    #[test]
    fn a_nic_address_tells_its_guest() {
        assert_eq!(node_of_mac(&mac(12, 3)), Some(12));
        assert_eq!(node_of_mac(&[0xff; 6]), None);
    }
}
