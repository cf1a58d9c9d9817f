use std::collections::BTreeMap;

use crate::Netdev;
use crate::tree::{NodeError, Tree};

/// Every network interface of the tree. One that can't be read is left out and becomes a problem.
pub(crate) fn read(tree: &Tree, problems: &mut Vec<String>) -> Result<BTreeMap<String, Netdev>, NodeError> {
    let mut netdevs = BTreeMap::new();
    for name in tree.list("sys/class/net")? {
        let folder = format!("sys/class/net/{name}");
        // `bonding_masters` is a file among the interfaces.
        if !tree.is_folder(&folder) {
            // Some tools capture the links to virtual interfaces without the interfaces.
            if tree.link_name(&folder).is_some() {
                problems.push(format!("network interface {name} is left out: the tree doesn't hold it"));
            }
            continue;
        }
        match read_one(tree, &folder) {
            Ok(netdev) => {
                netdevs.insert(name, netdev);
            }
            Err(error) => problems.push(format!("network interface {name} is left out: {error}")),
        }
    }
    Ok(netdevs)
}

fn read_one(tree: &Tree, folder: &str) -> Result<Netdev, NodeError> {
    let carrier = tree.optional_text(&format!("{folder}/carrier"))?;
    let uevent = tree.optional_text(&format!("{folder}/uevent"))?.unwrap_or_default();
    let kind = uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE="));
    let lower = tree.list_those(folder, |name| name.starts_with("lower_"))?;
    let lower = lower.iter().filter_map(|name| name.strip_prefix("lower_").map(str::to_owned)).collect();
    Ok(Netdev {
        operstate: tree.text(&format!("{folder}/operstate"))?,
        carrier: carrier.map(|text| text == "1"),
        mtu: tree.optional_text(&format!("{folder}/mtu"))?.and_then(|text| text.parse().ok()),
        kind: kind.map(str::to_owned),
        lower,
        addresses: None,
    })
}
