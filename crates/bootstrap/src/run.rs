//! What `rocectl run` tells the ranks it starts: here, beside what reads it.

use zeroize::Zeroizing;

use crate::discovery::ROCECTL;
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
        let (size, rank) = (self.size.to_string(), rank.to_string());
        let plain = [
            (ROCECTL.rank, rank.clone()),
            (ROCECTL.size, size.clone()),
            (ROCECTL.local_rank, rank),
            (LOCAL_SIZE_VARIABLE, size.clone()),
            (ROCECTL.node_index, "0".to_owned()),
            (ROCECTL.nodes, self.host.to_owned()),
            (ROCECTL.tasks, size),
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
}
