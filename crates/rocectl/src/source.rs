//! Which node is looked at: this one, or one in a file.

use std::path::Path;

use anyhow::Context as _;
use roce_node::Node;
use roce_plan::UnknownFacts;
use roce_types::CpuSet;

use crate::cli::NodeArgs;

/// A node and where it comes from.
pub(crate) struct Source {
    pub(crate) node: Node,
    /// The CPUs of each core, where they are known; in no particular order.
    pub(crate) cores: Vec<CpuSet>,
    /// Is it the machine that this process runs on?
    pub(crate) is_live: bool,
    /// For headings: "this node" or the file.
    pub(crate) name: String,
}

impl Source {
    pub(crate) fn read(arguments: &NodeArgs) -> anyhow::Result<Self> {
        if let Some(path) = &arguments.topology {
            let node = roce_node::read_any(path)
                .with_context(|| format!("--topology={} can't be used", path.display()))?;
            let cores = if path.is_dir() { cores(path, &node.cpus) } else { Vec::new() };
            return Ok(Self { node, cores, is_live: false, name: path.display().to_string() });
        }
        let root = arguments.sysfs.as_deref().unwrap_or(Path::new("/"));
        let node = roce_node::read(root).context("this node can't be read")?;
        let cores = cores(root, &node.cpus);
        Ok(Self { node, cores, is_live: true, name: "this node".to_owned() })
    }

    /// The kernel of a live machine tells everything; other sources lack most facts.
    pub(crate) fn unknown_facts_of(arguments: &NodeArgs) -> UnknownFacts {
        if arguments.topology.is_none() { UnknownFacts::Reject } else { UnknownFacts::Accept }
    }
}

/// The cores, from each CPU's list of threads. A CPU whose list can't be read is a core of its own:
/// all that is lost is that two tasks may get threads of one core.
fn cores(root: &Path, cpus: &CpuSet) -> Vec<CpuSet> {
    let mut cores: Vec<CpuSet> = Vec::new();
    for cpu in cpus.iter() {
        if cores.iter().any(|core| core.contains(cpu)) {
            continue;
        }
        let file = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let threads = std::fs::read_to_string(root.join(file)).ok();
        let threads = threads.and_then(|text| text.trim().parse::<CpuSet>().ok());
        let threads = threads.map(|threads| threads.intersection(cpus)).filter(|core| core.contains(cpu));
        cores.push(threads.unwrap_or_else(|| [cpu].into_iter().collect()));
    }
    cores
}
