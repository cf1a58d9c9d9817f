//! Which rank is this process, of how many, on which node? Read from the variables that Slurm gives a task.

use std::fs;

use crate::error::{Error, Result};
use crate::hostlist::{expand_counts, expand_hostlist};

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

/// Those that only a step has. A batch script has SLURM_PROCID and SLURM_NTASKS too, and is one process.
const OF_A_STEP: [&str; 4] = [STEP, NODES, TASKS, STEP_SIZE];
/// Step ids from here on are no steps of srun: batch script, extern, interactive shell (slurm.h).
const FIRST_SPECIAL_STEP: i64 = 0xffff_fff0;

impl Identity {
    /// Reads this process's environment. Outside a Slurm step (also in a batch script and in salloc's shell)
    /// the answer is one rank, alone.
    ///
    /// # Errors
    /// [`Error::HalfSet`], [`Error::Variable`] or [`Error::Contradiction`], each naming the variables.
    pub fn discover() -> Result<Self> {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "localhost".to_owned());
        let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self::from_variables(variable, host.trim())
    }

    /// The same from any set of variables; `host` is this node's name when nobody else tells one.
    ///
    /// # Errors
    /// As [`discover`](Self::discover).
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>, host: &str) -> Result<Self> {
        let Some(present) = OF_A_STEP.into_iter().find(|name| variable(name).is_some()) else {
            return match variable(RANK).as_deref() {
                None | Some("0") => Ok(Self::alone(host)),
                // A rank above 0 is not alone, whatever else is missing.
                Some(_) => Err(Error::HalfSet { present: RANK, missing: STEP }),
            };
        };
        let text = |name| variable(name).ok_or(Error::HalfSet { present, missing: name });
        let number = |name: &'static str| parse_number(name, &text(name)?);

        // Negative where Slurm printed a special id as a signed number.
        let step_id = text(STEP)?;
        let special = |id: i64| !(0..FIRST_SPECIAL_STEP).contains(&id);
        if step_id.parse::<i64>().is_ok_and(special) {
            return Ok(Self::alone(host));
        }
        let launch = Launch::Slurm { job: number(JOB)?, step: parse_number(STEP, &step_id)? };

        let node_list = text(NODES)?;
        let names = expand_hostlist(&node_list)
            .ok_or_else(|| wrong(NODES, &node_list, "a list of nodes such as vm[1-2],gpu7"))?;
        let task_list = text(TASKS)?;
        let counts = expand_counts(&task_list)
            .ok_or_else(|| wrong(TASKS, &task_list, "a list of task counts such as 4(x3),2"))?;
        let (rank, size) = (number(RANK)?, number(SIZE)?);
        let (local_rank, node_index) = (number(LOCAL_RANK)?, number(NODE_INDEX)?);

        let contradiction = |first: (&str, String), second: (&str, String), why: String| {
            let shown = |(name, value): (&str, String)| format!("{name}={}", cut(&value));
            Error::Contradiction { first: shown(first), second: shown(second), why }
        };
        let total: u64 = counts.iter().copied().map(u64::from).sum();
        if counts.len() != names.len() {
            let why = format!("{} task counts for {} nodes", counts.len(), names.len());
            return Err(contradiction((TASKS, task_list), (NODES, node_list), why));
        }
        if let Some(step_size) = variable(STEP_SIZE)
            && parse_number(STEP_SIZE, &step_size)? != size
        {
            let why = "one step has one number of tasks".to_owned();
            return Err(contradiction((STEP_SIZE, step_size), (SIZE, size.to_string()), why));
        }
        if total != u64::from(size) {
            let why = format!("the counts add up to {total}");
            return Err(contradiction((TASKS, task_list), (SIZE, size.to_string()), why));
        }
        if rank >= size {
            let why = format!("ranks are 0 to {}", i64::from(size) - 1);
            return Err(contradiction((RANK, rank.to_string()), (SIZE, size.to_string()), why));
        }
        let Some(&tasks_here) = counts.get(node_index as usize) else {
            let why = format!("there are {} nodes", names.len());
            return Err(contradiction((NODE_INDEX, node_index.to_string()), (NODES, node_list), why));
        };
        if local_rank >= tasks_here {
            let why = format!("node {node_index} has {tasks_here} tasks");
            return Err(contradiction((LOCAL_RANK, local_rank.to_string()), (TASKS, task_list), why));
        }
        let nodes = names.into_iter().zip(counts).map(|(name, tasks)| Node { name, tasks }).collect();
        Ok(Self { rank, size, local_rank, node_index, nodes, launch })
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

    /// Job and step, zero when alone.
    pub(crate) fn job_and_step(&self) -> (u32, u32) {
        match self.launch {
            Launch::Alone => (0, 0),
            Launch::Slurm { job, step } => (job, step),
        }
    }
}

fn parse_number(name: &'static str, value: &str) -> Result<u32> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or_else(|| wrong(name, value, "a number"))
}

fn wrong(variable: &'static str, value: &str, expected: &str) -> Error {
    Error::Variable { variable, value: cut(value), expected: expected.to_owned() }
}

/// As much of a value as an error message bears.
fn cut(value: &str) -> String {
    value.chars().take(200).collect()
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
        let batch = |name: &str| matches!(name, RANK | LOCAL_RANK | NODE_INDEX).then(|| "0".to_owned());
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
        let only_rank = |name: &str| (name == RANK).then(|| "3".to_owned());
        assert!(matches!(Identity::from_variables(only_rank, "host"), Err(Error::HalfSet { .. })));
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

    proptest! {
        #[test]
        fn no_environment_makes_it_panic(values in proptest::collection::vec(proptest::option::of(".{0,12}"), 9)) {
            let names = [JOB, STEP, RANK, SIZE, LOCAL_RANK, NODE_INDEX, NODES, TASKS, STEP_SIZE];
            let variable = |name: &str| names.iter().position(|known| *known == name).and_then(|i| values[i].clone());
            let _ = Identity::from_variables(variable, "host");
        }
    }
}
