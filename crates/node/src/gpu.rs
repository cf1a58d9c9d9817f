use crate::tree::{NodeError, Tree};
use crate::{Gpu, GpuVendor, NumaNode, PciPlace, numa};

/// Where the kernel lists PCI functions.
const PCI_DEVICES: &str = "sys/bus/pci/devices";

/// The GPUs of the tree, ordered by PCI address. A function that can't be read becomes a problem.
pub(crate) fn read(
    tree: &Tree,
    numa_nodes: &[NumaNode],
    problems: &mut Vec<String>,
) -> Result<Vec<Gpu>, NodeError> {
    let mut gpus = Vec::new();
    for name in tree.list(PCI_DEVICES)? {
        match read_one(tree, &format!("{PCI_DEVICES}/{name}"), numa_nodes) {
            Ok(gpu) => gpus.extend(gpu),
            Err(error) => problems.push(format!("PCI function {name} is left out: {error}")),
        }
    }
    gpus.sort_by(|a, b| a.pci.cmp(&b.pci));
    Ok(gpus)
}

fn read_one(tree: &Tree, folder: &str, numa_nodes: &[NumaNode]) -> Result<Option<Gpu>, NodeError> {
    let class = tree.optional_text(&format!("{folder}/class"))?.and_then(|text| hex(&text));
    if !class.is_some_and(is_display) {
        return Ok(None);
    }
    let vendor = tree.optional_text(&format!("{folder}/vendor"))?.and_then(|text| hex(&text));
    let Some(vendor) = vendor.and_then(vendor_of) else { return Ok(None) };
    let driver = tree.link_name(&format!("{folder}/driver"));
    if !driver.is_some_and(|driver| drivers(vendor).contains(&driver.as_str())) {
        return Ok(None);
    }
    let ancestry = tree.device_ancestry(folder);
    let Some(pci) = PciPlace::from_ancestry(&ancestry) else { return Ok(None) };
    Ok(Some(Gpu { pci, vendor, numa_node: numa::of_device(tree, &ancestry, numa_nodes)? }))
}

/// Reads `0x030200`.
fn hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// VGA, 3D or other display controller, or a processing accelerator, as AMD's GPUs without a
/// display say of themselves. The lowest byte is the programming interface.
pub(crate) fn is_display(class: u32) -> bool {
    matches!(class >> 8, 0x0300 | 0x0302 | 0x0380 | 0x1200)
}

/// The vendors whose GPUs exchange data with NICs directly.
pub(crate) fn vendor_of(id: u32) -> Option<GpuVendor> {
    match id {
        0x10de => Some(GpuVendor::Nvidia),
        0x1002 => Some(GpuVendor::Amd),
        0x8086 => Some(GpuVendor::Intel),
        _ => None,
    }
}

/// The drivers under which a GPU computes.
fn drivers(vendor: GpuVendor) -> &'static [&'static str] {
    match vendor {
        GpuVendor::Nvidia => &["nvidia", "nouveau", "nova"],
        GpuVendor::Amd => &["amdgpu"],
        GpuVendor::Intel => &["i915", "xe"],
    }
}

/// Reads a text as each of the values above.
#[cfg(feature = "sources")]
pub(crate) fn read_values(text: &str) {
    if let Some(number) = hex(text) {
        is_display(number);
        vendor_of(number);
    }
}
