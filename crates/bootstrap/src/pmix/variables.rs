//! What the variables of a PMIx launcher (`mpirun` and `prterun` of Open MPI, `srun --mpi=pmix`) tell.

use crate::error::{Error, Result};
use crate::step::{contradiction, parse_number, rank_below_size, shown};

/// This process's rank.
pub(crate) const RANK: &str = "PMIX_RANK";
/// The job's name.
pub(crate) const NAMESPACE: &str = "PMIX_NAMESPACE";
/// What Open MPI's mpirun adds.
pub(crate) const MPIRUN_RANK: &str = "OMPI_COMM_WORLD_RANK";
pub(crate) const MPIRUN_SIZE: &str = "OMPI_COMM_WORLD_SIZE";

/// A rank under a PMIx launcher.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PmixVariables {
    pub(crate) rank: u32,
    pub(crate) namespace: String,
    /// Only mpirun says so; of others the library knows it.
    pub(crate) size: Option<u32>,
}

impl PmixVariables {
    /// `None` where nothing of PMIx is set.
    pub(crate) fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let names = [RANK, NAMESPACE, MPIRUN_RANK, MPIRUN_SIZE];
        let Some(present) = names.into_iter().find(|name| variable(name).is_some()) else { return Ok(None) };
        let text = |missing: &'static str| {
            variable(missing).ok_or_else(|| Error::HalfSet {
                launcher: "a rank of mpirun or another PMIx launcher",
                present: shown(present, &variable(present).unwrap_or_default()),
                missing,
                advice: "start the program with mpirun of Open MPI 3 or later, prterun or srun --mpi=pmix, or unset the \
                         PMIX_ and OMPI_ variables to run it alone",
            })
        };
        let (rank, namespace) = (parse_number(RANK, &text(RANK)?)?, text(NAMESPACE)?);
        let number = |name| variable(name).map(|text| parse_number(name, &text)).transpose();
        let (of_mpirun, size) = (number(MPIRUN_RANK)?, number(MPIRUN_SIZE)?);
        if let Some(of_mpirun) = of_mpirun.filter(|of_mpirun| *of_mpirun != rank) {
            let why = "they number one rank".to_owned();
            let (rank, of_mpirun) = (rank.to_string(), of_mpirun.to_string());
            return Err(contradiction((RANK, &rank), (MPIRUN_RANK, &of_mpirun), why));
        }
        if let Some(size) = size {
            rank_below_size((RANK, rank), (MPIRUN_SIZE, size))?;
        }
        Ok(Some(Self { rank, namespace, size }))
    }

    /// Is it Slurm's own, of the step that Slurm's variables describe?
    pub(crate) fn is_slurms(&self) -> bool {
        self.namespace.starts_with("slurm.pmix.")
    }
}
