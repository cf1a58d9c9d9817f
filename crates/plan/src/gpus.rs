//! Which GPUs a task has, from the variables by which GPU libraries are told so.

use roce_node::{GpuVendor, Node};
use roce_types::PciAddress;

/// What the variables are held against.
#[derive(Clone, Copy)]
pub struct GpuLookup<'a> {
    /// A variable of the task's environment.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// The UUID of a GPU (`GPU-...`), where it can be found out.
    pub uuid: &'a dyn Fn(PciAddress) -> Option<String>,
    /// Does the task's cgroup let it use the GPU of this address, which is this one of its vendor's? `None`
    /// where that can't be found out.
    pub is_permitted: &'a dyn Fn(PciAddress, usize) -> Option<bool>,
}

/// The GPUs of a task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VisibleGpus {
    /// Positions in the node's list, ascending.
    pub gpus: Vec<usize>,
    /// What could not be told, one sentence each.
    pub notes: Vec<String>,
}

/// The variable of each vendor's library.
const VARIABLES: [(GpuVendor, &str); 3] = [
    (GpuVendor::Nvidia, "CUDA_VISIBLE_DEVICES"),
    (GpuVendor::Amd, "ROCR_VISIBLE_DEVICES"),
    (GpuVendor::Intel, "ZE_AFFINITY_MASK"),
];

/// What Slurm calls the GPUs of a step, and of a job, whatever the variables above count by.
const GLOBAL: [&str; 2] = ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS"];

/// The GPUs of the task whose variables these are. Slurm may set all three variables alike, so only those of
/// the vendors count whose GPUs the node has; and Intel's only where they are the only ones, for beside
/// others they drive a display.
#[must_use]
pub fn visible_gpus(node: &Node, lookup: GpuLookup<'_>) -> VisibleGpus {
    let mut visible = VisibleGpus::default();
    let is_alone = node.gpus.iter().all(|gpu| gpu.vendor == GpuVendor::Intel);
    for (vendor, name) in VARIABLES {
        let own: Vec<usize> = (0..node.gpus.len()).filter(|&gpu| node.gpus[gpu].vendor == vendor).collect();
        if own.is_empty() || (vendor == GpuVendor::Intel && !is_alone) {
            continue;
        }
        let Some(value) = (lookup.variable)(name) else { continue };
        let addresses: Vec<PciAddress> = own.iter().map(|&gpu| node.gpus[gpu].pci.address).collect();
        let order = order(&addresses, &value, lookup);
        for item in items(&value) {
            match item {
                Item::Index(index) => match order.get(index) {
                    Some(&place) => visible.gpus.push(own[place]),
                    // The libraries take such an index for the end of the list.
                    None => break,
                },
                Item::Uuid(uuid) => {
                    // An abbreviation is allowed.
                    let is_it = |address: &PciAddress| {
                        (lookup.uuid)(*address).is_some_and(|known| known.starts_with(uuid))
                    };
                    match addresses.iter().position(is_it) {
                        Some(place) => visible.gpus.push(own[place]),
                        None => visible.notes.push(format!("{name}: {uuid} is no GPU of this node")),
                    }
                }
                Item::None => break,
                Item::Other(text) => {
                    visible.notes.push(format!("{name}: \"{text}\" can't be told to be a GPU of this node"));
                }
            }
        }
    }
    visible.gpus.sort_unstable();
    visible.gpus.dedup();
    visible
}

/// One entry of such a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item<'a> {
    Index(usize),
    Uuid(&'a str),
    /// No GPU: Slurm writes `NoDevFiles` where a task has none.
    None,
    Other(&'a str),
}

fn items(value: &str) -> impl Iterator<Item = Item<'_>> {
    value.split(',').map(str::trim).map(|text| {
        // `ZE_AFFINITY_MASK=0.1` is tile 1 of device 0.
        let device = text.split_once('.').map_or(text, |(device, _)| device);
        if let Ok(index) = device.parse() {
            return Item::Index(index);
        }
        // `MIG-GPU-<uuid>/<instance>/<instance>` names the GPU that it is a part of; `MIG-<uuid>` doesn't.
        let whole = text.strip_prefix("MIG-").filter(|whole| whole.starts_with("GPU-")).unwrap_or(text);
        match whole.split('/').next() {
            Some(uuid) if uuid.starts_with("GPU-") => Item::Uuid(uuid),
            _ if matches!(text, "" | "NoDevFiles" | "-1") => Item::None,
            _ => Item::Other(text),
        }
    })
}

/// Which GPU each index means, as positions among the vendor's.
///
/// Where cgroups hide GPUs (`ConstrainDevices=yes`), libraries count the ones that are left; else they count
/// all. That shows in what the task may open, or, where that can't be found out, in indexes that are none of
/// Slurm's own.
fn order(addresses: &[PciAddress], value: &str, lookup: GpuLookup<'_>) -> Vec<usize> {
    let all: Vec<usize> = (0..addresses.len()).collect();
    let permitted: Vec<Option<bool>> =
        all.iter().map(|&gpu| (lookup.is_permitted)(addresses[gpu], gpu)).collect();
    if permitted.contains(&Some(false)) {
        return all.into_iter().filter(|&gpu| permitted[gpu] == Some(true)).collect();
    }
    let is_sure = permitted.iter().all(|permitted| *permitted == Some(true));
    let global = GLOBAL.iter().find_map(|name| (lookup.variable)(name)).filter(|_| !is_sure);
    let global: Option<Vec<usize>> =
        global.map(|list| list.split(',').filter_map(|index| index.trim().parse().ok()).collect());
    let is_foreign = |global: &Vec<usize>| {
        items(value).any(|item| matches!(item, Item::Index(index) if !global.contains(&index)))
    };
    match global {
        Some(global) if is_foreign(&global) => global.into_iter().filter(|&gpu| gpu < all.len()).collect(),
        _ => all,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    /// Eight GPUs of one vendor.
    static DGX: LazyLock<Node> = LazyLock::new(|| read("dgx_h100"));
    static THREE_VENDORS: LazyLock<Node> = LazyLock::new(|| read("gpus_of_three_vendors"));

    fn read(machine: &str) -> Node {
        let folder = roce_machines::scratch().unwrap();
        roce_machines::named(machine).unwrap().build(folder.path()).unwrap();
        roce_node::read(folder.path()).unwrap()
    }

    fn visible(node: &Node, variables: &[(&str, &str)], permitted: &[Option<bool>]) -> VisibleGpus {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let uuid = |address: PciAddress| Some(format!("GPU-{:02x}1f-77", address.bus));
        let is_permitted = |_, gpu: usize| permitted.get(gpu).copied().flatten();
        visible_gpus(node, GpuLookup { variable: &variable, uuid: &uuid, is_permitted: &is_permitted })
    }

    fn cuda(value: &str) -> Vec<usize> {
        visible(&DGX, &[("CUDA_VISIBLE_DEVICES", value)], &[]).gpus
    }

    #[test]
    fn indexes_count_the_nodes_gpus() {
        assert_eq!(cuda("3"), [3]);
        assert_eq!(cuda("6,0,6"), [0, 6]);
        for none in ["", "NoDevFiles", "-1", "8", "-1,3", "9,3"] {
            assert_eq!(cuda(none), [0; 0], "{none:?}");
        }
        assert_eq!(cuda("2,8,3"), [2], "an index too high ends the list");
        assert_eq!(visible(&DGX, &[], &[]), VisibleGpus::default());
    }

    #[test]
    fn uuids_are_looked_up_also_abbreviated_and_of_a_part() {
        let bus = DGX.gpus[5].pci.address.bus;
        for uuid in
            [format!("GPU-{bus:02x}1f-77"), format!("GPU-{bus:02x}"), format!("MIG-GPU-{bus:02x}1f-77/1/0")]
        {
            assert_eq!(cuda(&uuid), [5], "{uuid}");
        }
        let unknown = visible(&DGX, &[("CUDA_VISIBLE_DEVICES", "GPU-zz,MIG-12ab,1")], &[]);
        assert_eq!(unknown.gpus, [1]);
        assert_eq!(
            unknown.notes,
            [
                "CUDA_VISIBLE_DEVICES: GPU-zz is no GPU of this node",
                "CUDA_VISIBLE_DEVICES: \"MIG-12ab\" can't be told to be a GPU of this node"
            ]
        );
    }

    #[test]
    fn where_cgroups_hide_gpus_indexes_count_the_rest() {
        let mut permitted = [Some(false); 8];
        permitted[4] = Some(true);
        permitted[6] = Some(true);
        assert_eq!(visible(&DGX, &[("CUDA_VISIBLE_DEVICES", "1")], &permitted).gpus, [6]);
        // As Slurm tells it, whatever its own list says.
        let both = [("CUDA_VISIBLE_DEVICES", "0,1"), ("SLURM_STEP_GPUS", "0,1")];
        assert_eq!(visible(&DGX, &both, &permitted).gpus, [4, 6]);
        assert_eq!(visible(&DGX, &both, &[Some(true); 8]).gpus, [0, 1]);
    }

    #[test]
    fn indexes_that_are_not_slurms_count_slurms_list() {
        let with =
            |cuda, name, list| visible(&DGX, &[("CUDA_VISIBLE_DEVICES", cuda), (name, list)], &[]).gpus;
        assert_eq!(with("0,1", "SLURM_STEP_GPUS", "5,7"), [5, 7]);
        assert_eq!(with("0", "SLURM_JOB_GPUS", "2,3"), [2]);
        assert_eq!(with("5", "SLURM_STEP_GPUS", "5,7"), [5]);
    }

    #[test]
    fn only_the_variable_of_a_vendor_that_the_node_has_counts() {
        let all = [("CUDA_VISIBLE_DEVICES", "1"), ("ROCR_VISIBLE_DEVICES", "1"), ("ZE_AFFINITY_MASK", "1.0")];
        assert_eq!(visible(&DGX, &all, &[]).gpus, [1]);
        // Two of AMD's; NVIDIA's has no driver, and Intel's drives a display.
        let node = &*THREE_VENDORS;
        let all = [("CUDA_VISIBLE_DEVICES", "0"), ("ROCR_VISIBLE_DEVICES", "1"), ("ZE_AFFINITY_MASK", "0")];
        let [amd] = visible(node, &all, &[]).gpus[..] else { panic!("not one GPU") };
        assert_eq!(node.gpus[amd].pci.address.to_string(), "0000:45:00.0");
        let mut intel = node.clone();
        intel.gpus.retain(|gpu| gpu.vendor == GpuVendor::Intel);
        assert_eq!(visible(&intel, &[("ZE_AFFINITY_MASK", "0.1")], &[]).gpus, [0]);
    }
}
