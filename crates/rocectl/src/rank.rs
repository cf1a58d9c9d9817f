//! Which task of its node this process is, from the command line or the launcher's variables.

use anyhow::bail;

use crate::Usage;
use crate::cli::{MOST_TASKS, RankArgs};

/// A place among the tasks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rank {
    /// From 0.
    pub(crate) local: u32,
    /// How many tasks are on the node; more than `local`.
    pub(crate) size: u32,
}

/// What a launcher gives each process: local rank and local size.
const LAUNCHERS: [(&str, &str); 6] = [
    // rocectl run
    (roce_bootstrap::LOCAL_RANK_VARIABLE, roce_bootstrap::LOCAL_SIZE_VARIABLE),
    // Open MPI (mpirun, prterun)
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    // Hydra: MPICH, Intel MPI
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    // PALS
    ("PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    // torchrun
    ("LOCAL_RANK", "LOCAL_WORLD_SIZE"),
];
const SLURM_RANK: &str = "SLURM_LOCALID";
const SLURM_SIZES: &str = "SLURM_STEP_TASKS_PER_NODE";
const SLURM_NODE: &str = "SLURM_NODEID";

/// A rank and the variables that say so.
struct Said {
    rank: Rank,
    by: String,
}

/// The rank of this process.
///
/// Slurm's word counts less than a launcher's within it: mpirun starts its helpers as a step of one
/// task per node, and the variables of that step reach every rank.
pub(crate) fn find(arguments: &RankArgs, variable: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Rank> {
    if let (Some(local), Some(size)) = (arguments.rank, arguments.of) {
        if local >= size {
            bail!(Usage(format!(
                "--rank={local} --of={size}: the rank counts from 0; allowed is 0-{}",
                i64::from(size) - 1
            )));
        }
        return Ok(Rank { local, size });
    }
    let mut said = Vec::new();
    let mut halves = Vec::new();
    for (rank, size) in LAUNCHERS {
        match (number(rank, variable)?, number(size, variable)?) {
            (Some(local), Some(count)) => said.push(pair(rank, local, size, count)?),
            (Some(_), None) => halves.push((rank, size)),
            // A size alone is some other program's variable of that name.
            (None, _) => {}
        }
    }
    if variable(SLURM_RANK).is_some() && variable(SLURM_SIZES).is_none() {
        halves.push((SLURM_RANK, SLURM_SIZES));
    }
    let slurm = slurm(variable)?;
    if let Some(slurm) = slurm
        && (said.is_empty() || slurm.rank != Rank { local: 0, size: 1 })
    {
        said.push(slurm);
    }
    let Some(first) = said.first() else {
        if let Some((rank, size)) = halves.first() {
            bail!(Usage(format!("{rank} is set but {size} is not: give --rank and --of")));
        }
        let known: Vec<&str> = LAUNCHERS.iter().map(|(rank, _)| *rank).collect();
        bail!(Usage(format!(
            "which task is this? none of {SLURM_RANK}, {} is set; start it with srun or mpirun, or give --rank and --of",
            known.join(", ")
        )));
    };
    if let Some(other) = said.iter().find(|other| other.rank != first.rank) {
        bail!("{} contradicts {}: give --rank and --of", first.by, other.by);
    }
    if first.rank.size > MOST_TASKS {
        bail!("{}: no node has more than {MOST_TASKS} tasks", first.by);
    }
    Ok(first.rank)
}

fn number(name: &str, variable: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Option<u32>> {
    let Some(text) = variable(name) else { return Ok(None) };
    match text.parse() {
        Ok(number) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Some(number)),
        _ => bail!("{name}={}: not a number", text.escape_debug()),
    }
}

fn pair(rank: &str, local: u32, size: &str, count: u32) -> anyhow::Result<Said> {
    if local >= count {
        bail!("{rank}={local} contradicts {size}={count}: give --rank and --of");
    }
    Ok(Said { rank: Rank { local, size: count }, by: format!("{rank}={local}, {size}={count}") })
}

fn slurm(variable: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Option<Said>> {
    let (Some(local), Some(sizes)) = (number(SLURM_RANK, variable)?, variable(SLURM_SIZES)) else {
        return Ok(None);
    };
    let node = number(SLURM_NODE, variable)?.unwrap_or(0);
    let Some(size) = tasks_of_node(&sizes, node) else {
        bail!("{SLURM_SIZES}={} has no node {node} ({SLURM_NODE})", sizes.escape_debug());
    };
    let by = format!("{SLURM_RANK}={local}, {SLURM_SIZES}={sizes}");
    if local >= size {
        bail!("{SLURM_RANK}={local} contradicts {SLURM_SIZES}={sizes}: give --rank and --of");
    }
    Ok(Some(Said { rank: Rank { local, size }, by }))
}

/// Reads `2(x3),1`: two tasks on each of three nodes, then one.
fn tasks_of_node(sizes: &str, node: u32) -> Option<u32> {
    let mut node = node;
    for group in sizes.split(',') {
        let (tasks, nodes) = match group.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse().ok()?),
            None => (group, 1_u32),
        };
        if node < nodes {
            return tasks.parse().ok();
        }
        node -= nodes;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variables: &[(&str, &str)]) -> Result<(u32, u32), String> {
        let arguments = RankArgs { rank: None, of: None, cpus_per_task: None, gpus_per_task: None };
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let rank = find(&arguments, &variable).map_err(|error| error.to_string())?;
        Ok((rank.local, rank.size))
    }

    #[test]
    fn every_launcher_is_understood() {
        for (rank, size) in LAUNCHERS {
            assert_eq!(found(&[(rank, "2"), (size, "4")]), Ok((2, 4)));
        }
        let step = [("SLURM_LOCALID", "1"), ("SLURM_STEP_TASKS_PER_NODE", "1,3(x2)"), ("SLURM_NODEID", "2")];
        assert_eq!(found(&step), Ok((1, 3)));
    }

    #[test]
    fn a_launcher_inside_a_slurm_step_of_one_task_per_node_is_believed() {
        let helper = [("SLURM_LOCALID", "0"), ("SLURM_STEP_TASKS_PER_NODE", "1(x2)"), ("SLURM_NODEID", "1")];
        let rank = [("OMPI_COMM_WORLD_LOCAL_RANK", "3"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "4")];
        assert_eq!(found(&[helper.as_slice(), &rank].concat()), Ok((3, 4)));
        assert_eq!(found(&helper), Ok((0, 1)));
    }

    #[test]
    fn errors_name_the_variables() {
        let ompi = [("OMPI_COMM_WORLD_LOCAL_RANK", "3"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "4")];
        let slurm = [("SLURM_LOCALID", "1"), ("SLURM_STEP_TASKS_PER_NODE", "2")];
        let hydra = [("MPI_LOCALRANKID", "0"), ("MPI_LOCALNRANKS", "2")];
        let cases = [
            vec![],
            vec![("OMPI_COMM_WORLD_LOCAL_RANK", "3")],
            vec![("SLURM_LOCALID", "0")],
            [ompi, slurm].concat(),
            [ompi, hydra].concat(),
            vec![("MPI_LOCALRANKID", "2"), ("MPI_LOCALNRANKS", "2")],
            vec![("MPI_LOCALRANKID", "2"), ("MPI_LOCALNRANKS", "4000000000")],
            vec![("MPI_LOCALRANKID", "two"), ("MPI_LOCALNRANKS", "2")],
            vec![("SLURM_LOCALID", "2"), ("SLURM_STEP_TASKS_PER_NODE", "2(x2)")],
            vec![("SLURM_LOCALID", "0"), ("SLURM_STEP_TASKS_PER_NODE", "2(x2)"), ("SLURM_NODEID", "2")],
            vec![("SLURM_LOCALID", "0"), ("SLURM_STEP_TASKS_PER_NODE", "2(x")],
        ];
        let lines: Vec<String> = cases.iter().map(|case| found(case).unwrap_err()).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
