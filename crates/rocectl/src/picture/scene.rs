//! What is in the picture and what belongs to what, without any coordinate.

use roce_node::{Gpu, Node, PciPlace};
use roce_types::CpuSet;

use crate::plan::Planned;
use crate::show::vendor;
use crate::survey::{self, Judged};

/// The packages; one without a title where the source tells none.
pub(crate) struct Scene {
    pub(crate) packages: Vec<PackageView>,
    /// Devices whose NUMA node is not known.
    pub(crate) homeless: Vec<Group>,
    pub(crate) tasks: Vec<TaskView>,
    /// NUMA nodes with nothing but memory.
    pub(crate) memory_only: Vec<u32>,
}

pub(crate) struct PackageView {
    pub(crate) title: Option<String>,
    pub(crate) numa_nodes: Vec<NumaView>,
}

pub(crate) struct NumaView {
    pub(crate) id: u32,
    pub(crate) cpus: CpuSet,
    pub(crate) groups: Vec<Group>,
    /// The tasks at home here, as places in [`Scene::tasks`].
    pub(crate) tasks: Vec<usize>,
}

/// Devices below one switch, or below one host bridge without any.
pub(crate) struct Group {
    pub(crate) label: String,
    pub(crate) is_switch: bool,
    pub(crate) nics: Vec<NicView>,
    pub(crate) gpus: Vec<GpuView>,
}

pub(crate) struct NicView {
    pub(crate) port: String,
    pub(crate) is_usable: bool,
    /// Interface and rate.
    pub(crate) facts: String,
    /// Rail and address, or why it is not used.
    pub(crate) role: String,
    /// PCI address.
    pub(crate) place: String,
    /// Everything, for the tooltip.
    pub(crate) details: String,
    /// The tasks that have it, as places in [`Scene::tasks`].
    pub(crate) tasks: Vec<usize>,
}

pub(crate) struct GpuView {
    pub(crate) title: String,
    pub(crate) place: String,
    pub(crate) tasks: Vec<usize>,
}

pub(crate) struct TaskView {
    pub(crate) local_rank: u32,
    pub(crate) cpus: CpuSet,
    pub(crate) details: String,
}

impl Scene {
    pub(crate) fn of(node: &Node, ports: &[Judged<'_>], plan: Option<&Planned<'_>>) -> Self {
        let tasks: Vec<TaskView> = plan.map(tasks).unwrap_or_default();
        let numa = |id: u32, cpus: &CpuSet| NumaView {
            id,
            cpus: cpus.clone(),
            groups: groups(node, ports, plan, &|numa| numa == Some(id)),
            tasks: (0..tasks.len())
                .filter(|&task| {
                    let first: CpuSet = tasks[task].cpus.iter().take(1).collect();
                    first.is_subset(cpus)
                })
                .collect(),
        };
        let mut memory_only = Vec::new();
        let mut packages: Vec<PackageView> = Vec::new();
        for numa_node in &node.numa_nodes {
            let view = numa(numa_node.id, &numa_node.cpus);
            if view.cpus.is_empty() && view.groups.is_empty() {
                memory_only.push(view.id);
                continue;
            }
            let title = match node.packages_of(&numa_node.cpus)[..] {
                [] => None,
                [only] => Some(format!("package {only}")),
                [first, .., last] => Some(format!("packages {first}-{last}")),
            };
            match packages.iter_mut().find(|package| package.title == title) {
                Some(package) => package.numa_nodes.push(view),
                None => packages.push(PackageView { title, numa_nodes: vec![view] }),
            }
        }
        let unknown = |numa: Option<u32>| numa.is_none_or(|id| node.numa_node(id).is_none());
        let homeless = groups(node, ports, plan, &unknown);
        Self { packages, homeless, tasks, memory_only }
    }
}

fn tasks(plan: &Planned<'_>) -> Vec<TaskView> {
    let view = |row: &roce_plan::TaskPlan| TaskView {
        local_rank: row.local_rank,
        cpus: row.cpus.clone(),
        details: plan.plan.describe(row.local_rank).unwrap_or_default(),
    };
    plan.plan.tasks.iter().map(view).collect()
}

/// The devices of some NUMA node, grouped by what they are below.
fn groups(
    node: &Node,
    ports: &[Judged<'_>],
    plan: Option<&Planned<'_>>,
    here: &dyn Fn(Option<u32>) -> bool,
) -> Vec<Group> {
    let places: Vec<&PciPlace> = ports
        .iter()
        .filter_map(|judged| judged.port.pci.as_ref())
        .chain(node.gpus.iter().map(|gpu| &gpu.pci))
        .collect();
    let mut groups: Vec<Group> = Vec::new();
    let mut group = |place: Option<&PciPlace>| {
        let (label, is_switch) = label(place, &places);
        let known = groups.iter().position(|group| group.label == label);
        known.unwrap_or_else(|| {
            groups.push(Group { label, is_switch, nics: Vec::new(), gpus: Vec::new() });
            groups.len() - 1
        })
    };
    let mut members: Vec<(usize, Member)> = Vec::new();
    for judged in ports.iter().filter(|judged| here(judged.port.numa_node)) {
        members.push((group(judged.port.pci.as_ref()), Member::Nic(nic(judged, plan))));
    }
    for (index, gpu) in node.gpus.iter().enumerate().filter(|(_, gpu)| here(gpu.numa_node)) {
        members.push((group(Some(&gpu.pci)), Member::Gpu(gpu_view(index, gpu, plan))));
    }
    for (at, member) in members {
        match member {
            Member::Nic(nic) => groups[at].nics.push(nic),
            Member::Gpu(gpu) => groups[at].gpus.push(gpu),
        }
    }
    // Groups with GPUs first: the rest is storage and management.
    groups.sort_by_key(|group| group.gpus.is_empty());
    groups
}

enum Member {
    Nic(NicView),
    Gpu(GpuView),
}

/// What a device is below: the switch that it shares with another device, else its host bridge.
fn label(place: Option<&PciPlace>, all: &[&PciPlace]) -> (String, bool) {
    let Some(place) = place else { return ("not on PCI".to_owned(), false) };
    let shared = |depth: usize| {
        place.bridges.len() >= depth
            && all.iter().any(|other| {
                !other.is_same_device(place)
                    && other.host_bridge == place.host_bridge
                    && other.bridges.len() >= depth
                    && other.bridges[..depth] == place.bridges[..depth]
            })
    };
    // A switch is a root port's first bridge: its upstream port.
    if shared(2) {
        (format!("{} \u{203a} switch {}", place.host_bridge, short(place.bridges[1])), true)
    } else if shared(1) {
        (format!("{} \u{203a} bridge {}", place.host_bridge, short(place.bridges[0])), true)
    } else {
        (format!("host bridge {}", place.host_bridge), false)
    }
}

/// Without the domain where that is 0, as lspci prints it.
fn short(address: roce_types::PciAddress) -> String {
    let long = address.to_string();
    long.strip_prefix("0000:").map_or_else(|| long.clone(), str::to_owned)
}

fn nic(judged: &Judged<'_>, plan: Option<&Planned<'_>>) -> NicView {
    let port = judged.port;
    let mut facts: Vec<String> = port.netdev.iter().cloned().collect();
    facts.extend(port.rate_mbit.map(|rate| format!("{} Gbit/s", survey::gbit(rate))));
    let role = match &judged.nic {
        Ok(nic) => {
            let address = nic
                .gid
                .as_ref()
                .map(|row| row.gid.to_ipv4().map_or_else(|| row.gid.to_string(), |v4| v4.to_string()));
            let rail = format!("rail {}", nic.rail);
            [Some(rail), address].into_iter().flatten().collect::<Vec<_>>().join(" \u{b7} ")
        }
        Err(reason) => survey::in_short(reason),
    };
    let mut details = vec![port.name.to_string()];
    details.extend(port.pci.as_ref().map(|pci| format!("PCI {}", pci.address)));
    details.extend(judged.gids.chosen.as_ref().map(|row| format!("GID {} index {}", row.gid, row.index)));
    details.extend(judged.nic.as_ref().err().map(ToString::to_string));
    let has = |row: &roce_plan::TaskPlan| row.nics.iter().any(|nic| nic.port == port.name);
    NicView {
        port: port.name.to_string(),
        is_usable: judged.nic.is_ok(),
        facts: facts.join(" \u{b7} "),
        role,
        place: port.pci.as_ref().map(|pci| format!("PCI {}", short(pci.address))).unwrap_or_default(),
        details: details.join("\n"),
        tasks: plan.map_or_else(Vec::new, |plan| places(plan.plan.tasks.iter().map(has))),
    }
}

fn gpu_view(index: usize, gpu: &Gpu, plan: Option<&Planned<'_>>) -> GpuView {
    let has = |task: &roce_plan::Task| task.gpus.contains(&gpu.pci.address);
    GpuView {
        title: format!("GPU {index}"),
        place: format!("{} {}", vendor(gpu), short(gpu.pci.address)),
        tasks: plan.map_or_else(Vec::new, |plan| places(plan.tasks.iter().map(has))),
    }
}

/// Where it is true.
fn places(flags: impl Iterator<Item = bool>) -> Vec<usize> {
    flags.enumerate().filter(|(_, flag)| *flag).map(|(place, _)| place).collect()
}
