//! The class of the step as that of every rdma_cm connection of the node, for programs that read none of the
//! variables: where the site allows it and the job has the whole node.
//!
//! Set in slurmstepd before there is a task, as root; put back when slurmstepd ends, or by whoever comes next if
//! it was killed. `roce-node-wide` does both; here is decided whether. A failure is a warning: the step has its
//! own exports all the same.

use std::path::Path;

use roce_node_wide::{NodeWide, Owner, Restored};
use roce_plan::{Draft, Site};
use roce_spank::{Failure, Spank};
use roce_types::{CpuSet, DevicePort, TrafficClass};

use crate::state::State;
use crate::{report, step};

/// What became of it in this slurmstepd.
#[derive(Debug, Default)]
pub(crate) enum Outcome {
    /// Nobody wants it: the site, or the step, which asks for no class.
    #[default]
    Unused,
    /// Set, and to be put back in the name of this owner.
    Set { node: NodeWide, owner: Owner, line: String },
    /// Not for this step, and that is as it should be.
    Withheld(String),
    /// It failed.
    Failed(String),
}

/// In slurmstepd, as root, all options known, before any task.
pub(crate) fn begin(state: &mut State, spank: &Spank<'_>) {
    let Ok(arguments) = state.arguments() else { return };
    let root = arguments.sysfs.clone();
    let node = NodeWide::below(&root);
    // What a killed slurmstepd left behind is mended by the next one, whatever its step asks for. There is
    // nothing behind this but one look at one file.
    if node.is_set() {
        log_restored(node.recover());
    }
    if spank.is_special_step().unwrap_or(true) {
        return;
    }
    // As root, so that the decision is made on the same text as all others: nobody but root can have written
    // it, and its path is that of plugstack.conf.
    match state.site() {
        Ok(site) if site.policy.node_wide => state.node_wide = decide(state, spank, &site, &root, node),
        // A site file that can't be used is told of in the task.
        _ => {}
    }
}

/// Anything that is wrong with the request is the task's to tell.
fn decide(state: &State, spank: &Spank<'_>, site: &Site, root: &Path, node: NodeWide) -> Outcome {
    let Ok(Some(request)) = step::asked(state, spank).and_then(|asked| {
        // Here allowed_priorities is enforced.
        asked.request(site).map_err(|error| error.to_string())
    }) else {
        return Outcome::Unused;
    };
    if request.class.is_none() {
        return Outcome::Unused;
    }
    let Ok(facts) = roce_node::read(root) else { return Outcome::Unused };
    match has_whole_node(spank, &facts.cpus) {
        Ok(Ok(())) => {}
        Ok(Err(why)) => return Outcome::Withheld(format!("the class is not node-wide: {why}")),
        Err(failure) => return Outcome::Failed(failed(&failure)),
    }
    // Which NICs are for this step, and what the class is on them, is known without its tasks.
    let Ok(plan) = Draft::new(&facts, &request, site).map(|draft| draft.finish(Vec::new())) else {
        return Outcome::Unused;
    };
    let Some(class) = plan.class else { return Outcome::Unused };
    let ports: Vec<DevicePort> = plan.nics.into_iter().map(|nic| nic.port).collect();
    match set(spank, &node, &ports, class.traffic_class) {
        Ok(owner) => {
            let names: Vec<String> = ports.iter().map(ToString::to_string).collect();
            let line = format!("traffic class {} is node-wide on {}", class.traffic_class, names.join(","));
            report::log(&format!("{line} for step {}", owner.step));
            Outcome::Set { node, owner, line }
        }
        Err(error) => Outcome::Failed(failed(&error)),
    }
}

fn failed(error: &dyn std::fmt::Display) -> String {
    format!("warning: the class is not node-wide: {error}")
}

fn set(
    spank: &Spank<'_>,
    node: &NodeWide,
    ports: &[DevicePort],
    class: TrafficClass,
) -> Result<Owner, String> {
    let number = |number: Result<u32, Failure>| number.map_err(|failure| failure.to_string());
    let name = format!("{}.{}", number(spank.job_id())?, number(spank.step_id())?);
    let owner = Owner::this_process(name).ok_or("/proc/self/stat can't be read")?;
    let restored = node.set(owner.clone(), ports, class).map_err(|error| error.to_string())?;
    log_restored(Ok(restored));
    Ok(owner)
}

/// Has the job all CPUs of the node? Then nobody else's programs are there, as far as Slurm knows; other steps of
/// this job may be.
///
/// All of it is Slurm's own word. Its cores are of its own counting, which for a node that was configured without
/// threads are CPUs: how many CPUs such a core has is seen from the step's. What doesn't come out even counts as
/// "no": half a node more would be another user's.
fn has_whole_node(spank: &Spank<'_>, cpus: &CpuSet) -> Result<Result<(), String>, Failure> {
    let (job, step) = (spank.job_cores()?, spank.step_cores()?);
    Ok(is_whole(count(&job), count(&step), usize::from(spank.step_cpus()?), cpus.len()))
}

fn count(cores: &str) -> usize {
    cores.parse::<CpuSet>().map_or(0, |cores| cores.len())
}

fn is_whole(job_cores: usize, step_cores: usize, step_cpus: usize, cpus: usize) -> Result<(), String> {
    if step_cores == 0 || !step_cpus.is_multiple_of(step_cores) {
        return Err(format!("{step_cores} cores of the step have {step_cpus} CPUs, which can't be compared"));
    }
    let job_cpus = job_cores * (step_cpus / step_cores);
    if job_cpus == cpus && cpus > 0 {
        return Ok(());
    }
    Err(format!("the job has {job_cpus} of the node's {cpus} CPUs (ask for --exclusive)"))
}

/// What the first task of the node says about it.
pub(crate) fn lines(state: &State, is_verbose: bool) -> Vec<String> {
    match &state.node_wide {
        Outcome::Set { line, .. } | Outcome::Withheld(line) if is_verbose => vec![line.clone()],
        Outcome::Failed(line) => vec![line.clone()],
        _ => Vec::new(),
    }
}

/// slurmstepd ends.
pub(crate) fn end(state: &mut State) {
    if let Outcome::Set { node, owner, .. } = std::mem::take(&mut state.node_wide) {
        log_restored(node.release(&owner));
    }
}

fn log_restored(restored: Result<Vec<Restored>, roce_node_wide::Error>) {
    match restored {
        Ok(restored) => restored.iter().for_each(|line| report::log(line)),
        Err(error) => report::log(&format!("{error}; `rocectl restore` tries again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_the_whole_node_only_if_all_cpus_are_its_own() {
        // Cores of the job, cores and CPUs of the step, CPUs of the node.
        assert_eq!(is_whole(4, 1, 1, 4), Ok(()));
        assert_eq!(is_whole(4, 1, 2, 8), Ok(()));
        assert_eq!(is_whole(4, 4, 8, 8), Ok(()));
        let said = "the job has 3 of the node's 4 CPUs (ask for --exclusive)";
        assert_eq!(is_whole(3, 3, 3, 4), Err(said.to_owned()));
        // Configured without threads: Slurm's cores are CPUs, and half of them are as many as the real cores.
        assert!(is_whole(4, 4, 4, 8).is_err());
        // Configured with more than there is, or with a core less than there is.
        assert!(is_whole(8, 8, 8, 4).is_err());
        for (step_cores, step_cpus) in [(0, 0), (0, 1), (1, 0), (2, 3)] {
            assert!(is_whole(4, step_cores, step_cpus, 4).is_err());
        }
        assert!(is_whole(0, 1, 1, 0).is_err());
    }

    #[test]
    fn cores_that_cannot_be_read_are_none() {
        assert_eq!(count("0-3,8"), 5);
        for text in ["", "(null)", "all"] {
            assert_eq!(count(text), 0);
        }
    }
}
