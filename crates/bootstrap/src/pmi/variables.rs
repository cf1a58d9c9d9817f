//! What the variables of a PMI launcher (`srun --mpi=pmi2`, `mpiexec.hydra`) tell.

use crate::error::{Error, Result};
use crate::step::{parse_number, rank_below_size, shown, wrong};

/// This process's rank.
pub(crate) const RANK: &str = "PMI_RANK";
/// How many ranks there are.
pub(crate) const SIZE: &str = "PMI_SIZE";
/// The number of the open socket to the launcher.
pub(crate) const FD: &str = "PMI_FD";
/// The job's name, which Slurm wants to hear again, and Hydra does not set.
const JOB: &str = "PMI_JOBID";

/// A rank under a PMI launcher.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PmiVariables {
    pub(crate) rank: u32,
    pub(crate) size: u32,
    /// Some launchers (Cray's) number the ranks without speaking the wire protocol.
    pub(crate) fd: Option<u32>,
    /// Empty where there is none.
    pub(crate) job: String,
}

impl PmiVariables {
    /// `None` where nothing of PMI is set.
    pub(crate) fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let Some(present) = [RANK, SIZE, FD].into_iter().find(|name| variable(name).is_some()) else {
            return Ok(None);
        };
        let number = |name: &'static str| {
            let text = variable(name).ok_or_else(|| half_set(present, name, variable))?;
            parse_number(name, &text)
        };
        let (rank, size) = (number(RANK)?, number(SIZE)?);
        rank_below_size((RANK, rank), (SIZE, size))?;
        let fd = variable(FD).map(|text| parse_number(FD, &text)).transpose()?;
        let job = variable(JOB).unwrap_or_default();
        if !job.bytes().all(|byte| byte.is_ascii_graphic() && !b";=".contains(&byte)) {
            return Err(wrong(JOB, &job, "a job's name without spaces, ; and ="));
        }
        Ok(Some(Self { rank, size, fd, job }))
    }
}

pub(crate) fn half_set(
    present: &str,
    missing: &'static str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Error {
    Error::HalfSet {
        launcher: "a rank of a PMI launcher",
        present: shown(present, &variable(present).unwrap_or_default()),
        missing,
        advice: "start the program with mpiexec.hydra or srun --mpi=pmi2, or unset the PMI_ variables to run it alone",
    }
}
