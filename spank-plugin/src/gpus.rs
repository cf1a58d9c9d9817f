//! The GPUs of the task that runs.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;

use roce_node::Node;
use roce_plan::{GpuLookup, VisibleGpus, visible_gpus};
use roce_spank::{Failure, Spank};
use roce_types::PciAddress;

use crate::os;

/// What NVIDIA's driver tells about its GPUs, by PCI address.
const NVIDIA: &str = "proc/driver/nvidia/gpus";

/// The GPUs that the variables of this task give it, on the node below `root`. In the task, as the user.
pub(crate) fn of_task(spank: &Spank<'_>, node: &Node, root: &Path) -> Result<VisibleGpus, Failure> {
    let variables: BTreeMap<_, _> = spank
        .environment(|name| {
            name.ends_with(b"_GPUS") || name.ends_with(b"_DEVICES") || name.starts_with(b"ZE_")
        })?
        .into_iter()
        .collect();
    let facts = BTreeMap::from_iter(node.gpus.iter().map(|gpu| (gpu.pci.address, OnceCell::new())));
    // Read when first asked for.
    let fact = |address: PciAddress, name: &str| {
        let text: &String = facts.get(&address)?.get_or_init(|| {
            let path = root.join(NVIDIA).join(address.to_string()).join("information");
            std::fs::read_to_string(path).unwrap_or_default()
        });
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
        Some(value.trim().to_owned())
    };
    let is_permitted = |address: PciAddress, index: usize| {
        // The driver numbers its device files as it counts GPUs, unless it says otherwise.
        let minor = fact(address, "Device Minor").and_then(|minor| minor.parse().ok()).unwrap_or(index);
        os::is_permitted(&root.join(format!("dev/nvidia{minor}")))
    };
    let lookup = GpuLookup {
        variable: &|name| Some(variables.get(std::ffi::OsStr::new(name))?.to_string_lossy().into_owned()),
        uuid: &|address| fact(address, "GPU UUID"),
        is_permitted: &is_permitted,
    };
    Ok(visible_gpus(node, lookup))
}
