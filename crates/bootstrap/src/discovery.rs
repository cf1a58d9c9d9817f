//! Which rank is this process, of how many, on which node? Read from the variables that its launcher set.

use std::fs;
use std::time::Instant;

use crate::error::Result;
use crate::pmi::{self, PmiVariables};
use crate::pmix::{self, PmixVariables};
use crate::secret::Secret;
use crate::step::{Names, contradiction, parse_number};

/// One node of the step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name, as Slurm knows it.
    pub name: String,
    /// How many ranks run there.
    pub tasks: u32,
}

/// Who started the ranks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Launch {
    /// Nobody: one rank.
    Alone,
    /// Slurm's srun.
    Slurm {
        /// `SLURM_JOB_ID`.
        job: u32,
        /// `SLURM_STEP_ID`.
        step: u32,
    },
    /// `rocectl run`.
    Rocectl,
    /// A launcher that speaks PMI alone: `mpiexec.hydra`.
    Pmi,
    /// A launcher that speaks PMIx alone: `mpirun`, `prterun`.
    Pmix,
}

/// Who this process is among the ranks of its step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// 0 to `size - 1`.
    pub rank: u32,
    /// How many ranks.
    pub size: u32,
    /// 0 to the number of ranks on this node - 1.
    pub local_rank: u32,
    /// This node's place in `nodes`.
    pub node_index: u32,
    /// The step's nodes; never empty.
    pub nodes: Vec<Node>,
    /// Who started them.
    pub launch: Launch,
}

const JOB: &str = "SLURM_JOB_ID";
const STEP: &str = "SLURM_STEP_ID";
const RANK: &str = "SLURM_PROCID";
const SIZE: &str = "SLURM_NTASKS";
const LOCAL_RANK: &str = "SLURM_LOCALID";
const NODE_INDEX: &str = "SLURM_NODEID";
const NODES: &str = "SLURM_STEP_NODELIST";
const TASKS: &str = "SLURM_STEP_TASKS_PER_NODE";
/// The step's own count; Slurm sets it beside SLURM_NTASKS, which a user may also set as an option.
const STEP_SIZE: &str = "SLURM_STEP_NUM_TASKS";

const SLURM: Names = Names {
    launcher: "a Slurm step",
    advice: "start the program with srun, or unset the SLURM_ variables to run it alone",
    rank: RANK,
    size: SIZE,
    local_rank: LOCAL_RANK,
    node_index: NODE_INDEX,
    nodes: NODES,
    tasks: TASKS,
};
/// Those that only a step has. A batch script has SLURM_PROCID and SLURM_NTASKS too, and is one process.
const OF_A_STEP: [&str; 4] = [STEP, NODES, TASKS, STEP_SIZE];
/// Step ids from here on are no steps of srun: batch script, extern, interactive shell (slurm.h).
const FIRST_SPECIAL_STEP: i64 = 0xffff_fff0;

/// What `rocectl run` sets: the same as Slurm.
pub(crate) const ROCECTL: Names = Names {
    launcher: "a rank of rocectl run",
    advice: "start the program with rocectl run, or unset these ROCE_ variables",
    rank: "ROCE_RANK",
    size: "ROCE_SIZE",
    local_rank: "ROCE_LOCAL_RANK",
    node_index: "ROCE_NODE_INDEX",
    nodes: "ROCE_NODES",
    tasks: "ROCE_TASKS_PER_NODE",
};
/// Hydra sets it, and nobody else.
const OF_HYDRA: &str = "MPI_LOCALRANKID";
const OF_ROCECTL: [&str; 6] =
    [ROCECTL.rank, ROCECTL.size, ROCECTL.local_rank, ROCECTL.node_index, ROCECTL.nodes, ROCECTL.tasks];

/// What the environment says of this process.
#[derive(Debug)]
pub(crate) struct Discovery {
    /// Who it is; `None` where only the PMI or PMIx launcher can tell.
    pub(crate) identity: Option<Identity>,
    /// What a PMI launcher says, who can be asked for more.
    pub(crate) pmi: Option<PmiVariables>,
    /// The same of a PMIx launcher.
    pub(crate) pmix: Option<PmixVariables>,
    /// This node's name, as the kernel has it.
    pub(crate) host: String,
}

impl Discovery {
    /// Reads this process's environment.
    pub(crate) fn of_this_process() -> Result<Self> {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "localhost".to_owned());
        let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self::read(&variable, host.trim())
    }

    /// The same from any set of variables.
    pub(crate) fn read(variable: &dyn Fn(&str) -> Option<String>, host: &str) -> Result<Self> {
        let (mut pmi, mut pmix) = (PmiVariables::read(variable)?, PmixVariables::read(variable)?);
        let mut slurm = from_slurm(variable)?;
        let rocectl = from_rocectl(variable)?;
        if let (Some(slurm), Some(rocectl)) = (&slurm, &rocectl) {
            agree((&SLURM, slurm), (ROCECTL.rank, rocectl.rank), (ROCECTL.size, Some(rocectl.size)))?;
        }
        // Inside of Slurm, mpiexec.hydra and mpirun start a helper on each node as a step, whose variables reach every
        // rank. Hydra's own variable tells it from srun --mpi=pmi2, the job's name mpirun from srun --mpi=pmix.
        if slurm.as_ref().is_some_and(|step| step.nodes.iter().all(|node| node.tasks == 1)) {
            if variable(OF_HYDRA).is_some() && pmi.is_some() {
                slurm = None;
                pmix = pmix.filter(|pmix| !pmix.is_slurms());
            } else if pmix.as_ref().is_some_and(|pmix| !pmix.is_slurms()) {
                let of_the_helper = |pmi: &PmiVariables| {
                    slurm.as_ref().is_some_and(|step| (step.rank, step.size) == (pmi.rank, pmi.size))
                };
                pmi = pmi.filter(|pmi| !of_the_helper(pmi));
                slurm = None;
            }
        }
        for (names, said) in [(&SLURM, &slurm), (&ROCECTL, &rocectl)] {
            let Some(said) = said else { continue };
            if let Some(pmi) = &pmi {
                agree((names, said), (pmi::RANK, pmi.rank), (pmi::SIZE, Some(pmi.size)))?;
            }
            if let Some(pmix) = &pmix {
                agree((names, said), (pmix::RANK, pmix.rank), (pmix::MPIRUN_SIZE, pmix.size))?;
            }
        }
        if let (Some(pmi), Some(pmix)) = (&pmi, &pmix) {
            differ_never((pmi::SIZE, pmi.size), (pmix::MPIRUN_SIZE, pmix.size.unwrap_or(pmi.size)))?;
            differ_never((pmi::RANK, pmi.rank), (pmix::RANK, pmix.rank))?;
        }
        let asked = |size: Option<u32>| size.is_none_or(|size| size > 1);
        let must_ask = pmi.as_ref().is_some_and(|pmi| asked(Some(pmi.size)))
            || pmix.as_ref().is_some_and(|pmix| asked(pmix.size));
        let identity = match slurm.or(rocectl) {
            None if must_ask => None,
            said => Some(said.unwrap_or_else(|| Identity::alone(host))),
        };
        Ok(Self { identity, pmi, pmix, host: host.to_owned() })
    }

    /// Asks the launcher where the variables were not enough: returns who this is, and the secret that the ranks share. It
    /// may be `None` where there is one rank, or nobody who makes one.
    pub(crate) fn introduce(self, deadline: Instant) -> Result<(Identity, Option<Secret>)> {
        let Self { identity, pmi, pmix, host } = self;
        // One rank alone meets nobody, so that a secret of another step is none of its business.
        if let Some(identity) = identity.as_ref().filter(|identity| identity.size == 1) {
            return Ok((identity.clone(), None));
        }
        let in_environment = Secret::take_from_environment()?;
        match (identity, in_environment, pmix, pmi) {
            (Some(identity), Some(secret), ..) => Ok((identity, Some(secret))),
            // Where the launcher numbers the ranks alone, a secret in the environment is not of this launch.
            (identity, _, Some(pmix), _) => pmix::introduce(&pmix, identity, deadline),
            // Some launchers number ranks, and have no socket.
            (Some(identity), None, None, None | Some(PmiVariables { fd: None, .. })) => Ok((identity, None)),
            (identity, _, None, Some(pmi)) => {
                let (identity, secret) = pmi::introduce(&pmi, identity, &host, deadline)?;
                Ok((identity, Some(secret)))
            }
            // Without PMI somebody else has told who this is.
            (None, secret, None, None) => Ok((Identity::alone(&host), secret)),
        }
    }
}

impl Identity {
    /// Who this process is, as far as variables tell: for those who bring a secret of their own to
    /// [`Bootstrap::join`](crate::Bootstrap::join). [`Bootstrap::init`](crate::Bootstrap::init) also asks the launcher.
    ///
    /// # Errors
    /// [`HalfSet`](crate::Error::HalfSet), [`Variable`](crate::Error::Variable) or
    /// [`Contradiction`](crate::Error::Contradiction); [`Pmi`](crate::Error::Pmi) or [`Pmix`](crate::Error::Pmix) where the
    /// launcher would have to be asked.
    pub fn discover() -> Result<Self> {
        let found = Discovery::of_this_process()?;
        let reason = "its variables do not tell where the ranks run".to_owned();
        match (found.identity, found.pmix, found.pmi) {
            (Some(identity), ..) => Ok(identity),
            (None, Some(pmix), _) => Err(pmix::failed(&pmix, reason)),
            (None, None, Some(pmi)) => Err(pmi::failed(&pmi, reason)),
            (None, None, None) => Ok(Self::alone(&found.host)),
        }
    }

    /// From variables that tell all of it.
    #[cfg(test)]
    pub(crate) fn from_variables(variable: impl Fn(&str) -> Option<String>, host: &str) -> Result<Self> {
        Ok(Discovery::read(&variable, host)?.identity.expect("the variables tell who this is"))
    }

    fn of(place: crate::step::Place, launch: Launch) -> Self {
        let crate::step::Place { rank, size, local_rank, node_index, nodes } = place;
        Self { rank, size, local_rank, node_index, nodes, launch }
    }

    /// One rank on the node called `host`.
    #[must_use]
    pub fn alone(host: &str) -> Self {
        let nodes = vec![Node { name: host.to_owned(), tasks: 1 }];
        Self { rank: 0, size: 1, local_rank: 0, node_index: 0, nodes, launch: Launch::Alone }
    }

    /// The name of this rank's node.
    #[must_use]
    pub fn node_name(&self) -> &str {
        self.nodes.get(self.node_index as usize).map_or("?", |node| node.name.as_str())
    }

    /// The name of the node where rank 0 runs: the first, in every distribution that Slurm knows except an
    /// arbitrary one.
    #[must_use]
    pub fn root_name(&self) -> &str {
        self.nodes.first().map_or("?", |node| node.name.as_str())
    }

    /// Job and step; zero where there is no Slurm: then nobody else has the secret.
    pub(crate) fn job_and_step(&self) -> (u32, u32) {
        match self.launch {
            Launch::Alone | Launch::Rocectl | Launch::Pmi | Launch::Pmix => (0, 0),
            Launch::Slurm { job, step } => (job, step),
        }
    }
}

/// What Slurm says: `None` outside a step of srun.
fn from_slurm(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Identity>> {
    let Some(present) = OF_A_STEP.into_iter().find(|name| variable(name).is_some()) else {
        return match variable(RANK).as_deref() {
            None => Ok(None),
            // A batch script, or a shell in one.
            Some("0") if variable(JOB).is_some() => Ok(None),
            Some("0") => Err(SLURM.half_set(RANK, JOB, variable)),
            // A rank above 0 is not alone, whatever else is missing.
            Some(_) => Err(SLURM.half_set(RANK, STEP, variable)),
        };
    };
    let text = |name| SLURM.text(present, name, variable);
    // Negative where Slurm printed a special id as a signed number.
    let step_id = text(STEP)?;
    let special = |id: i64| !(0..FIRST_SPECIAL_STEP).contains(&id);
    if step_id.parse::<i64>().is_ok_and(special) {
        return Ok(None);
    }
    let launch = Launch::Slurm { job: parse_number(JOB, &text(JOB)?)?, step: parse_number(STEP, &step_id)? };
    if let Some(step_size) = variable(STEP_SIZE)
        && let Some(size) = variable(SIZE)
        && parse_number(STEP_SIZE, &step_size)? != parse_number(SIZE, &size)?
    {
        let why = "one step has one number of tasks".to_owned();
        return Err(contradiction((STEP_SIZE, &step_size), (SIZE, &size), why));
    }
    SLURM.read(present, variable).map(|place| Some(Identity::of(place, launch)))
}

/// What `rocectl run` says.
fn from_rocectl(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Identity>> {
    let Some(present) = OF_ROCECTL.into_iter().find(|name| variable(name).is_some()) else {
        return Ok(None);
    };
    ROCECTL.read(present, variable).map(|place| Some(Identity::of(place, Launch::Rocectl)))
}

/// Two launchers must mean the same rank of as many, where they say how many.
fn agree(said: (&Names, &Identity), rank: (&str, u32), size: (&str, Option<u32>)) -> Result<()> {
    let (names, identity) = said;
    differ_never((names.size, identity.size), (size.0, size.1.unwrap_or(identity.size)))?;
    differ_never((names.rank, identity.rank), rank)
}

fn differ_never(ours: (&str, u32), theirs: (&str, u32)) -> Result<()> {
    if ours.1 == theirs.1 {
        return Ok(());
    }
    let why = "two launchers, and which one started the ranks can't be told".to_owned();
    Err(contradiction((ours.0, &ours.1.to_string()), (theirs.0, &theirs.1.to_string()), why))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rank 2 of `srun -N2 --ntasks-per-node=2` on vm1 and vm2, changed by `changes`.
    fn discover(changes: &[(&str, Option<&str>)]) -> Result<Identity> {
        let step = [
            (JOB, "7"),
            (STEP, "0"),
            (RANK, "2"),
            (SIZE, "4"),
            (LOCAL_RANK, "0"),
            (NODE_INDEX, "1"),
            (NODES, "vm[1-2]"),
            (TASKS, "2(x2)"),
            (STEP_SIZE, "4"),
        ];
        let variable = |name: &str| {
            let changed = changes.iter().find(|(changed, _)| *changed == name).map(|(_, value)| *value);
            changed
                .unwrap_or_else(|| step.iter().find(|(known, _)| *known == name).map(|(_, value)| *value))
                .map(str::to_owned)
        };
        Identity::from_variables(variable, "host")
    }

    #[test]
    fn a_rank_of_a_step_knows_its_place() {
        let identity = discover(&[]).unwrap();
        assert_eq!((identity.rank, identity.size, identity.local_rank), (2, 4, 0));
        assert_eq!((identity.node_name(), identity.root_name()), ("vm2", "vm1"));
        assert_eq!(identity.launch, Launch::Slurm { job: 7, step: 0 });
    }

    #[test]
    fn outside_a_step_there_is_one_rank() {
        assert_eq!(Identity::from_variables(|_| None, "host").unwrap(), Identity::alone("host"));
    }

    #[test]
    fn a_batch_script_is_one_rank_although_slurm_numbers_it() {
        let batch = |name: &str| matches!(name, JOB | RANK | LOCAL_RANK | NODE_INDEX).then(|| "0".to_owned());
        assert_eq!(Identity::from_variables(batch, "host").unwrap(), Identity::alone("host"));
        for special in ["4294967291", "-5", "4294967290"] {
            assert_eq!(discover(&[(STEP, Some(special))]).unwrap(), Identity::alone("host"), "{special}");
        }
    }

    #[test]
    fn a_missing_variable_is_named() {
        for name in [JOB, STEP, RANK, SIZE, LOCAL_RANK, NODE_INDEX, NODES, TASKS] {
            let error = discover(&[(name, None)]).unwrap_err().to_string();
            assert!(error.contains(&format!("but {name} is not")), "{error}");
        }
        for (rank, missing) in [("0", JOB), ("3", STEP)] {
            let only_rank = |name: &str| (name == RANK).then(|| rank.to_owned());
            let error = Identity::from_variables(only_rank, "host").unwrap_err().to_string();
            assert!(error.contains(&format!("SLURM_PROCID={rank} is set, but {missing} is not")), "{error}");
        }
    }

    #[test]
    fn contradictions_name_both_variables_and_their_values() {
        for (name, value, other) in [
            (RANK, "4", "SLURM_NTASKS=4"),
            (SIZE, "5", "SLURM_STEP_NUM_TASKS=4"),
            (NODE_INDEX, "2", "SLURM_STEP_NODELIST=vm[1-2]"),
            (LOCAL_RANK, "2", "SLURM_STEP_TASKS_PER_NODE=2(x2)"),
            (TASKS, "2(x3)", "SLURM_STEP_NODELIST=vm[1-2]"),
            (TASKS, "3,2", "SLURM_NTASKS=4"),
        ] {
            let error = discover(&[(name, Some(value))]).unwrap_err().to_string();
            assert!(error.contains(&format!("{name}={value}")) && error.contains(other), "{error}");
        }
    }

    #[test]
    fn malformed_values_are_shown() {
        for name in [JOB, RANK, SIZE, LOCAL_RANK, NODE_INDEX, NODES, TASKS, STEP] {
            let error = discover(&[(name, Some("+1["))]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}=\"+1[\" is not a")), "{error}");
        }
    }

    /// Rank 1 of `rocectl run -n 3`, changed by `changes`.
    fn under_rocectl(changes: &[(&str, Option<&str>)]) -> Result<Identity> {
        let run = ["1", "3", "1", "0", "here", "3"];
        let variable = |name: &str| match changes.iter().find(|(changed, _)| *changed == name) {
            Some((_, value)) => value.map(str::to_owned),
            None => OF_ROCECTL.iter().position(|known| *known == name).map(|i| run[i].to_owned()),
        };
        Identity::from_variables(variable, "host")
    }

    #[test]
    fn a_rank_of_rocectl_run_knows_its_place() {
        let identity = under_rocectl(&[]).unwrap();
        assert_eq!((identity.rank, identity.size, identity.local_rank), (1, 3, 1));
        assert_eq!((identity.node_name(), identity.launch), ("here", Launch::Rocectl));
        for name in OF_ROCECTL {
            let error = under_rocectl(&[(name, None)]).unwrap_err().to_string();
            assert!(error.contains(&format!(" is set, but {name} is not")), "{error}");
        }
    }

    #[test]
    fn two_launchers_must_say_the_same() {
        let pmi = |rank, size| [("PMI_RANK", Some(rank)), ("PMI_SIZE", Some(size)), ("PMI_FD", Some("6"))];
        assert_eq!(discover(&pmi("2", "4")).unwrap(), discover(&[]).unwrap());
        for (rank, size, named) in [
            ("1", "4", "SLURM_PROCID=2 and PMI_RANK=1 contradict"),
            ("2", "8", "SLURM_NTASKS=4 and PMI_SIZE=8 contradict"),
            ("8", "8", "PMI_RANK=8 and PMI_SIZE=8 contradict"),
            ("0", "0", "PMI_RANK=0 and PMI_SIZE=0 contradict"),
        ] {
            let error = discover(&pmi(rank, size)).unwrap_err().to_string();
            assert!(error.starts_with(named), "{error}");
        }
        let error = under_rocectl(&pmi("1", "4")).unwrap_err().to_string();
        assert!(error.starts_with("ROCE_SIZE=3 and PMI_SIZE=4 contradict"), "{error}");
        let error = discover(&[("PMI_RANK", Some("2"))]).unwrap_err().to_string();
        assert!(error.contains("PMI_RANK=2 is set, but PMI_SIZE is not"), "{error}");
        let both = |name: &str| {
            let step = ["0", "2", "0", "0", "here", "2"];
            let rocectl = OF_ROCECTL.iter().position(|known| *known == name).map(|i| step[i].to_owned());
            rocectl.or_else(|| match name {
                JOB | STEP | LOCAL_RANK | NODE_INDEX => Some("0".to_owned()),
                RANK | STEP_SIZE | SIZE | TASKS => Some(if name == RANK { "1" } else { "2" }.to_owned()),
                NODES => Some("here".to_owned()),
                _ => None,
            })
        };
        let error = Identity::from_variables(both, "host").unwrap_err().to_string();
        assert!(error.starts_with("SLURM_PROCID=1 and ROCE_RANK=0 contradict"), "{error}");
    }

    #[test]
    fn mpirun_must_say_the_same_as_others_and_all_of_it() {
        let read = |set: &[(&str, &str)]| {
            let variable = |name: &str| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            Discovery::read(&variable, "host")
        };
        let error = |set: &[(&str, &str)]| read(set).unwrap_err().to_string();
        let half = error(&[("PMIX_RANK", "0")]);
        assert!(half.contains("PMIX_RANK=0 is set, but PMIX_NAMESPACE is not"), "{half}");
        let half = error(&[("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4")]);
        assert!(half.contains("OMPI_COMM_WORLD_RANK=2 is set, but PMIX_RANK is not"), "{half}");
        let pmix = [("PMIX_RANK", "2"), ("PMIX_NAMESPACE", "prterun-a-7@1")];
        for (more, says) in [
            (vec![("OMPI_COMM_WORLD_RANK", "1")], "PMIX_RANK=2 and OMPI_COMM_WORLD_RANK=1 contradict"),
            (vec![("OMPI_COMM_WORLD_SIZE", "2")], "PMIX_RANK=2 and OMPI_COMM_WORLD_SIZE=2 contradict"),
            (vec![("PMI_RANK", "1"), ("PMI_SIZE", "4")], "PMI_RANK=1 and PMIX_RANK=2 contradict"),
            (
                vec![("PMI_RANK", "2"), ("PMI_SIZE", "4"), ("OMPI_COMM_WORLD_SIZE", "5")],
                "PMI_SIZE=4 and OMPI_COMM_WORLD_SIZE=5 contradict",
            ),
        ] {
            let error = error(&[&pmix[..], &more].concat());
            assert!(error.starts_with(says), "{error}");
        }
        // Whoever is asked knows the rest, but one rank alone needs to ask nobody.
        assert!(read(&pmix).unwrap().identity.is_none());
        let alone = [("PMIX_RANK", "0"), ("PMIX_NAMESPACE", "7"), ("OMPI_COMM_WORLD_SIZE", "1")];
        assert_eq!(read(&alone).unwrap().identity, Some(Identity::alone("host")));
    }

    #[test]
    fn mpirun_inside_of_slurm_is_believed_and_sruns_own_pmix_is_sruns() {
        let read = |changes: &[(&str, &str)]| {
            let step = [
                (JOB, "7"),
                (STEP, "0"),
                (RANK, "1"),
                (SIZE, "2"),
                (LOCAL_RANK, "0"),
                (NODE_INDEX, "1"),
                (NODES, "vm[1-2]"),
                (TASKS, "1(x2)"),
            ];
            let set = [changes, &step].concat();
            let variable = |name: &str| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            Discovery::read(&variable, "host")
        };
        let pmi = [("PMI_RANK", "1"), ("PMI_SIZE", "2")];
        let of_mpirun = [("PMIX_RANK", "5"), ("PMIX_NAMESPACE", "prterun-a-7@1")];
        let found = read(&[&of_mpirun[..], &pmi].concat()).unwrap();
        assert!(found.identity.is_none() && found.pmi.is_none() && found.pmix.is_some());
        // A helper has one task on each node; else two launchers have numbered one process.
        let error = read(&[&of_mpirun[..], &[(TASKS, "1,2"), (SIZE, "3")]].concat()).unwrap_err().to_string();
        assert!(error.starts_with("SLURM_PROCID=1 and PMIX_RANK=5 contradict"), "{error}");
        let of_srun = |rank| read(&[("PMIX_RANK", rank), ("PMIX_NAMESPACE", "slurm.pmix.7.0")]);
        assert_eq!(of_srun("1").unwrap().identity.unwrap().launch, Launch::Slurm { job: 7, step: 0 });
        let error = of_srun("0").unwrap_err().to_string();
        assert!(error.starts_with("SLURM_PROCID=1 and PMIX_RANK=0 contradict"), "{error}");
        // mpiexec.hydra where srun's default is --mpi=pmix.
        let hydra = [
            (OF_HYDRA, "0"),
            ("PMI_RANK", "5"),
            ("PMI_SIZE", "8"),
            ("PMIX_RANK", "1"),
            ("PMIX_NAMESPACE", "slurm.pmix.7.0"),
        ];
        let found = read(&hydra).unwrap();
        assert!(found.identity.is_none() && found.pmi.is_some() && found.pmix.is_none());
    }

    #[test]
    fn hydra_inside_of_slurm_is_believed() {
        let hydra = [
            (SIZE, Some("2")),
            (STEP_SIZE, Some("2")),
            (RANK, Some("1")),
            (TASKS, Some("1(x2)")),
            ("PMI_RANK", Some("5")),
            ("PMI_SIZE", Some("8")),
            ("PMI_FD", Some("6")),
        ];
        let read = |changes: &[(&str, Option<&str>)]| {
            let variable = |name: &str| {
                let changed =
                    changes.iter().find(|(changed, _)| *changed == name).and_then(|(_, value)| *value);
                let step =
                    [(JOB, "7"), (STEP, "0"), (LOCAL_RANK, "0"), (NODE_INDEX, "1"), (NODES, "vm[1-2]")];
                changed
                    .or_else(|| step.iter().find(|(known, _)| *known == name).map(|(_, value)| *value))
                    .map(str::to_owned)
            };
            Discovery::read(&variable, "host")
        };
        let error = read(&hydra).unwrap_err().to_string();
        assert!(error.starts_with("SLURM_NTASKS=2 and PMI_SIZE=8 contradict"), "{error}");
        let read = read(&[&hydra[..], &[(OF_HYDRA, Some("1"))]].concat()).unwrap();
        assert_eq!((read.identity, read.pmi.unwrap().rank), (None, 5));
    }

    proptest! {
        #[test]
        fn no_environment_makes_it_panic(values in proptest::collection::vec(proptest::option::of("[0-9]{1,2}|.{0,12}"), 18)) {
            let slurm = [JOB, STEP, RANK, SIZE, LOCAL_RANK, NODE_INDEX, NODES, TASKS, STEP_SIZE];
            let names = [&slurm[..], &OF_ROCECTL, &["PMI_RANK", "PMI_SIZE", "PMI_FD"]].concat();
            let variable = |name: &str| names.iter().position(|known| *known == name).and_then(|i| values[i].clone());
            if let Ok(Discovery { identity: Some(identity), .. }) = Discovery::read(&variable, "host") {
                prop_assert!(identity.rank < identity.size && !identity.nodes.is_empty());
                prop_assert!(identity.local_rank < identity.nodes[identity.node_index as usize].tasks);
            }
        }

        #[test]
        fn every_rank_of_every_layout_knows_its_place(
            counts in proptest::collection::vec(1u32..5, 1..20), any in any::<proptest::sample::Index>(),
        ) {
            let node = any.index(counts.len());
            let size: u32 = counts.iter().sum();
            let before: u32 = counts[..node].iter().sum();
            let tasks = counts.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            let (rank, size, last) = (before.to_string(), size.to_string(), counts.len() + 7);
            let identity = discover(&[
                (RANK, Some(&rank)), (SIZE, Some(&size)), (STEP_SIZE, Some(&size)), (TASKS, Some(&tasks)),
                (NODE_INDEX, Some(&node.to_string())), (NODES, Some(&format!("r1n[008-{last:03}]"))),
            ]).unwrap();
            prop_assert_eq!(identity.node_name(), format!("r1n{:03}", node + 8));
            prop_assert_eq!(identity.nodes.iter().map(|node| node.tasks).collect::<Vec<_>>(), counts);
        }
    }
}
