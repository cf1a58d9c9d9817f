//! The tree of a machine.

use std::fmt::Write;
use std::path::Path;

use crate::interfaces::{self, Built};
use crate::pci::{Function, Pci, place};
use crate::sysfs::Sysfs;
use crate::{Gpu, Machine, MachineError, Nic, Qos, cpus, rdma};

impl Machine {
    /// Writes the machine's `sys` into an empty folder, and beside it the file with the addresses
    /// and DCB facts that a capture keeps.
    ///
    /// # Errors
    /// When the description contradicts itself, or a file can't be written.
    pub fn build(&self, root: &Path) -> Result<(), MachineError> {
        let sysfs = Sysfs::new(root);
        cpus::build(self, &sysfs)?;
        let mut pci = Pci::new(self, &sysfs);
        for gpu in &self.gpu {
            build_gpu(&mut pci, gpu)?;
        }
        sysfs.folder("sys/class/net")?;
        let mut built: Vec<Built> = vec![interfaces::loopback(&sysfs)?];
        let mut places = Vec::new();
        for nic in &self.nic {
            let place = build_nic(&mut pci, nic)?;
            built.extend(interfaces::of_nic(&sysfs, nic, &place)?);
            places.push(place);
        }
        for nic in self.nic.iter().filter(|nic| nic.vf_of.is_some()) {
            link_virtual_function(&sysfs, self, nic)?;
        }
        interfaces::stacked(self, &sysfs, &mut built)?;
        for (nic, place) in self.nic.iter().zip(&places) {
            rdma::of_nic(self, &sysfs, nic, place, &built)?;
        }
        for soft in &self.soft {
            rdma::soft(self, &sysfs, soft, &built)?;
        }
        if self.addresses_known {
            sysfs.file("roce-capture.toml", self.facts(&built)?)?;
        }
        Ok(())
    }

    /// What `rocectl capture` writes beside a tree.
    fn facts(&self, built: &[Built]) -> Result<String, MachineError> {
        let mut text = String::from("format = 1\n\n[addresses]\n");
        for interface in built {
            let all = interface.link_local.iter().map(|v6| format!("\"{v6}\""));
            let all: Vec<String> =
                interface.addresses.iter().map(|ip| format!("\"{ip}\"")).chain(all).collect();
            line(&mut text, &format!("\"{}\" = [{}]", interface.name, all.join(", ")))?;
        }
        for nic in &self.nic {
            for (port, number) in nic.ports().zip(1..) {
                let (Some(device), Some(Qos { trust, pfc, dscp })) = (&nic.device, &port.qos) else {
                    continue;
                };
                line(&mut text, &format!("\n[qos.\"{device}:{number}\"]"))?;
                if let Some(trust) = trust {
                    line(&mut text, &format!("trust = \"{trust}\""))?;
                }
                if let Some(pfc) = pfc {
                    line(&mut text, &format!("pfc = {pfc:?}"))?;
                }
                if let Some(dscp) = dscp {
                    let rows: Vec<String> =
                        dscp.iter().map(|(key, value)| format!("{key} = {value}")).collect();
                    line(&mut text, &format!("dscp = {{ {} }}", rows.join(", ")))?;
                }
            }
        }
        Ok(text.trim_end().to_owned())
    }
}

fn line(text: &mut String, line: &str) -> Result<(), MachineError> {
    writeln!(text, "{line}").map_err(|error| MachineError::Nonsense(error.to_string()))
}

fn build_gpu(pci: &mut Pci<'_>, gpu: &Gpu) -> Result<(), MachineError> {
    let (vendor, class, driver) = match gpu.vendor.as_str() {
        "nvidia" => ("0x10de", "0x030200", "nvidia"),
        "amd" => ("0x1002", "0x120000", "amdgpu"),
        "intel" => ("0x8086", "0x038000", "xe"),
        "aspeed" => ("0x1a03", "0x030000", "ast"),
        other => return Err(MachineError::Nonsense(format!("no vendor {other} of GPUs is known"))),
    };
    let driver = gpu.driver.as_deref().unwrap_or(driver);
    pci.build(&Function { at: &gpu.at, class, vendor, driver, numa: gpu.numa }).map(|_| ())
}

fn build_nic(pci: &mut Pci<'_>, nic: &Nic) -> Result<crate::pci::Place, MachineError> {
    let class = if nic.infiniband { "0x020700" } else { "0x020000" };
    let vendor = match nic.driver.as_str() {
        "mlx5_core" | "mlx4_core" => "0x15b3",
        "virtio-pci" => "0x1af4",
        "bnxt_en" => "0x14e4",
        "ice" | "igb" => "0x8086",
        _ => "0x1022",
    };
    pci.build(&Function { at: &nic.at, class, vendor, driver: &nic.driver, numa: nic.numa })
}

/// `physfn` of the virtual function, `virtfnN` of the physical one.
fn link_virtual_function(sysfs: &Sysfs<'_>, machine: &Machine, nic: &Nic) -> Result<(), MachineError> {
    let physical = nic.vf_of.as_deref().unwrap_or_default();
    let mut found = None;
    for candidate in &machine.nic {
        let candidate = place(&candidate.at)?;
        if candidate.address.to_string() == physical {
            found = Some(candidate);
        }
    }
    let found = found.ok_or_else(|| MachineError::Nonsense(format!("no physical function {physical}")))?;
    let own = place(&nic.at)?;
    let siblings = machine.nic.iter().filter(|other| other.vf_of == nic.vf_of);
    let number = siblings.take_while(|other| other.at != nic.at).count();
    sysfs.link(&format!("{}/physfn", own.function), &found.function)?;
    sysfs.link(&format!("{}/virtfn{number}", found.function), &own.function)
}
