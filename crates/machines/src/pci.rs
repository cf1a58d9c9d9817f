//! `/sys/devices/pci*` and the links to it.

use std::collections::BTreeSet;

use roce_types::PciAddress;

use crate::cpus;
use crate::sysfs::Sysfs;
use crate::{Host, Machine, MachineError};

/// A PCI function as it goes into the tree.
pub(crate) struct Function<'a> {
    pub(crate) at: &'a str,
    /// `0x020000`
    pub(crate) class: &'a str,
    /// `0x15b3`
    pub(crate) vendor: &'a str,
    /// Empty: none is bound.
    pub(crate) driver: &'a str,
    pub(crate) numa: Option<i32>,
}

/// Where a function is: its folder and that of the device below it (`virtio2`), often the same.
pub(crate) struct Place {
    pub(crate) function: String,
    pub(crate) device: String,
    pub(crate) address: PciAddress,
}

/// Builds functions and the bridges above them, each once.
pub(crate) struct Pci<'a> {
    machine: &'a Machine,
    sysfs: &'a Sysfs<'a>,
    built: BTreeSet<String>,
}

impl<'a> Pci<'a> {
    pub(crate) fn new(machine: &'a Machine, sysfs: &'a Sysfs<'a>) -> Self {
        Self { machine, sysfs, built: BTreeSet::new() }
    }

    pub(crate) fn build(&mut self, function: &Function<'_>) -> Result<Place, MachineError> {
        let place = place(function.at)?;
        let host_name = function.at.split('/').next().unwrap_or_default();
        let host = self.machine.host.get(host_name);
        let host = host.ok_or_else(|| MachineError::Nonsense(format!("no host bridge {host_name}")))?.clone();
        // The bridges, from the top down.
        let mut folder = format!("sys/devices/{host_name}");
        for part in place.function[folder.len() + 1..].split('/') {
            folder = format!("{folder}/{part}");
            let is_bridge = folder != place.function;
            if self.built.insert(folder.clone()) {
                let bridge =
                    Function { at: "", class: "0x060400", vendor: "0x1000", driver: "pcieport", numa: None };
                self.one(&folder, part, if is_bridge { &bridge } else { function }, &host)?;
            }
        }
        self.sysfs.folder(&place.device)?;
        Ok(place)
    }

    fn one(
        &self,
        folder: &str,
        address: &str,
        function: &Function<'_>,
        host: &Host,
    ) -> Result<(), MachineError> {
        let numa = function.numa.unwrap_or(host.numa);
        let all = cpus::all(self.machine)?;
        let own = self.machine.numbered().find(|(id, _)| i32::try_from(*id) == Ok(numa));
        let local = match (&host.local_cpus, own) {
            (Some(list), _) => list.clone(),
            (None, Some((_, own))) => own.cpus.clone(),
            (None, None) => all.to_string(),
        };
        let sysfs = self.sysfs;
        sysfs.file(&format!("{folder}/class"), function.class)?;
        sysfs.file(&format!("{folder}/vendor"), function.vendor)?;
        sysfs.file(&format!("{folder}/device"), "0x1021")?;
        sysfs.file(&format!("{folder}/numa_node"), numa)?;
        sysfs.file(&format!("{folder}/local_cpulist"), local)?;
        sysfs.link(&format!("{folder}/subsystem"), "sys/bus/pci")?;
        if !function.driver.is_empty() {
            let driver = format!("sys/bus/pci/drivers/{}", function.driver);
            sysfs.folder(&driver)?;
            sysfs.link(&format!("{folder}/driver"), &driver)?;
            sysfs.link(&format!("{driver}/{address}"), folder)?;
        }
        sysfs.link(&format!("sys/bus/pci/devices/{address}"), folder)
    }
}

/// Reads `pci0000:15/15:01.0/16:00.0/virtio2`.
pub(crate) fn place(at: &str) -> Result<Place, MachineError> {
    let nonsense = || MachineError::Nonsense(format!("{at:?} is no path from a host bridge to a function"));
    let mut parts = at.split('/');
    let host = parts.next().ok_or_else(nonsense)?;
    let domain = host.strip_prefix("pci").and_then(|name| name.split_once(':')).ok_or_else(nonsense)?.0;
    let mut device = format!("sys/devices/{host}");
    let mut function = None;
    for part in parts {
        // Without a domain it is the host bridge's.
        let full = if part.matches(':').count() == 1 { format!("{domain}:{part}") } else { part.to_owned() };
        device = format!("{device}/{full}");
        if let Ok(address) = full.parse() {
            function = Some((device.clone(), address));
        }
    }
    let (function, address) = function.ok_or_else(nonsense)?;
    Ok(Place { function, device, address })
}
