//! The descriptions that come with this crate.

use crate::{Machine, MachineError};

/// A description that comes with this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shipped {
    /// The name of its file.
    pub name: &'static str,
    /// TOML.
    pub text: &'static str,
}

impl Shipped {
    /// The machine.
    ///
    /// # Errors
    /// When the description is wrong, which a test of this crate excludes.
    pub fn machine(&self) -> Result<Machine, MachineError> {
        Machine::parse(self.text)
    }
}

macro_rules! shipped {
    ($($name:literal,)*) => {
        &[$(Shipped { name: $name, text: include_str!(concat!("../machines/", $name, ".toml")) },)*]
    };
}

const ALL: &[Shipped] = shipped![
    "all_ports_down",
    "bond_of_one_card",
    "bond_over_two_cards",
    "dgx_h100",
    "dual_port_cards",
    "dual_port_device",
    "four_sockets",
    "gpus_of_three_vendors",
    "infiniband_beside_roce",
    "ipv6_only",
    "no_rdma",
    "nps4_two_quadrants",
    "numa_unknown",
    "one_card_two_sockets",
    "overlays",
    "sixteen_nics",
    "snc4",
    "soft_roce_laptop",
    "two_ports_one_subnet",
    "virtual_functions",
    "vlan_and_base",
];

/// Every description that comes with this crate, by name.
#[must_use]
pub fn all() -> &'static [Shipped] {
    ALL
}

/// The machine of this name, `None` if there is none.
#[must_use]
pub fn named(name: &str) -> Option<Machine> {
    ALL.iter().find(|shipped| shipped.name == name)?.machine().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_listed_and_builds() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/machines");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        files.sort();
        assert_eq!(files, ALL.iter().map(|shipped| shipped.name).collect::<Vec<_>>());
        for shipped in ALL {
            let machine = shipped.machine().unwrap_or_else(|error| panic!("{}: {error}", shipped.name));
            let folder = crate::scratch().unwrap();
            machine.build(folder.path()).unwrap_or_else(|error| panic!("{}: {error}", shipped.name));
        }
    }

    #[test]
    fn mistakes_are_told() {
        let error = |text: &str| Machine::parse(text).unwrap_err().to_string();
        let start = "about = \"x\"\nnuma = [{ cpus = \"0\" }]\n";
        assert!(error(&format!("{start}colour = 1")).contains("unknown field `colour`"));
        assert!(
            error(&format!("{start}[[nic]]\nat = \"pci0000:00/00:01.0\"\ncolour = 1")).contains("colour")
        );
        assert!(
            error(&format!("{start}[[soft]]\ndevice = \"rxe0\"\nover = \"eth7\""))
                .contains("no interface eth7")
        );
        assert!(error("about = \"x\"\nnuma = [{ cpus = \"3-1\" }]").contains("CPU list"));
    }
}
