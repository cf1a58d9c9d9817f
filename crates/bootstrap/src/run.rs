//! What `rocectl run` tells the ranks it starts: here, beside what reads it.

use zeroize::Zeroizing;

use crate::discovery::{Node, ROCECTL};
use crate::secret::{SECRET_VARIABLE, Secret};

/// The number of ranks on this rank's node, for those who only want that ([`LocalRun::variables`]).
pub const LOCAL_SIZE_VARIABLE: &str = "ROCE_LOCAL_SIZE";
/// The rank's number on its node.
pub const LOCAL_RANK_VARIABLE: &str = ROCECTL.local_rank;

/// Variables by which other launchers number *their* processes. Whoever starts ranks of its own must remove them, or
/// its ranks have two launchers that contradict each other. What concerns the job stays, so that srun still works.
pub const FOREIGN_VARIABLES: &[&str] = &[
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_STEP_ID",
    "SLURM_STEPID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_NODES",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_TASKS_PER_NODE",
    "PMI_RANK",
    "PMI_SIZE",
    "PMI_FD",
    "PMI_PORT",
    "PMI_ID",
    "PMI_JOBID",
    "PMI_SPAWNED",
    "PMI_LOCAL_RANK",
    "PMI_LOCAL_SIZE",
    "PMIX_RANK",
    "PMIX_NAMESPACE",
    "PMIX_ID",
    "PMIX_SERVER_URI2",
    "PMIX_SERVER_URI21",
    "PMIX_SERVER_URI3",
    "PMIX_SERVER_URI4",
    "PMIX_SERVER_URI41",
    "PMIX_SERVER_URI5",
    "PMIX_SERVER_URI51",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
];

/// Ranks that one launcher starts on its own node.
#[derive(Clone, Copy, Debug)]
pub struct LocalRun<'a> {
    /// The node's name.
    pub host: &'a str,
    /// How many ranks.
    pub size: u32,
    /// Their secret: a fresh one for each run.
    pub secret: &'a Secret,
}

impl LocalRun<'_> {
    /// What to set in the environment of one rank.
    #[must_use]
    pub fn variables(&self, rank: u32) -> Vec<(&'static str, Zeroizing<String>)> {
        let nodes = [Node { name: self.host.to_owned(), tasks: self.size }];
        Run { nodes: &nodes, secret: self.secret }.variables(0, rank)
    }
}

/// Ranks that one launcher starts on several nodes: the first on the first node, and so on.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Where they run. The names are those by which the nodes reach each other.
    pub nodes: &'a [Node],
    /// Their secret: a fresh one for each run.
    pub secret: &'a Secret,
}

impl Run<'_> {
    /// How many ranks there are.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.nodes.iter().map(|node| node.tasks).sum()
    }

    /// The rank of the first on a node.
    #[must_use]
    pub fn first_rank(&self, node_index: u32) -> u32 {
        self.nodes.iter().take(node_index as usize).map(|node| node.tasks).sum()
    }

    /// What to set in the environment of one rank.
    #[must_use]
    pub fn variables(&self, node_index: u32, local_rank: u32) -> Vec<(&'static str, Zeroizing<String>)> {
        let list = |text: fn(&Node) -> String| self.nodes.iter().map(text).collect::<Vec<_>>().join(",");
        let local_size = self.nodes.get(node_index as usize).map_or(0, |node| node.tasks);
        let plain = [
            (ROCECTL.rank, (self.first_rank(node_index) + local_rank).to_string()),
            (ROCECTL.size, self.size().to_string()),
            (ROCECTL.local_rank, local_rank.to_string()),
            (LOCAL_SIZE_VARIABLE, local_size.to_string()),
            (ROCECTL.node_index, node_index.to_string()),
            (ROCECTL.nodes, list(|node| node.name.clone())),
            (ROCECTL.tasks, list(|node| node.tasks.to_string())),
        ];
        let plain = plain.into_iter().map(|(name, value)| (name, Zeroizing::new(value)));
        plain.chain([(SECRET_VARIABLE, self.secret.to_hex())]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    #[test]
    fn a_rank_reads_what_it_was_told() {
        let secret = Secret::random().unwrap();
        let told = LocalRun { host: "here", size: 3, secret: &secret }.variables(2);
        let variable =
            |name: &str| told.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        let identity = Identity::from_variables(variable, "elsewhere").unwrap();
        assert_eq!((identity.rank, identity.size, identity.local_rank), (2, 3, 2));
        assert_eq!(identity.node_name(), "here");
        assert_eq!(variable(SECRET_VARIABLE), Some(secret.to_hex().to_string()));
    }

    #[test]
    fn ranks_are_counted_over_the_nodes() {
        let secret = Secret::random().unwrap();
        let nodes = [("a", 2), ("b", 1), ("c", 3)].map(|(name, tasks)| Node { name: name.to_owned(), tasks });
        let run = Run { nodes: &nodes, secret: &secret };
        let told = run.variables(2, 1);
        let variable =
            |name: &str| told.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        let identity = Identity::from_variables(variable, "elsewhere").unwrap();
        assert_eq!((identity.rank, identity.size, identity.local_rank, identity.node_index), (4, 6, 1, 2));
        assert_eq!(identity.nodes, nodes);
        assert_eq!(variable(LOCAL_SIZE_VARIABLE).unwrap(), "3");
    }
}
