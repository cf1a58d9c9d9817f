//! A step as a launcher's variables describe it: `srun` and `rocectl run` use the same six, under names of their own.

use crate::discovery::Node;
use crate::error::{Error, Result};
use crate::hostlist::{expand_counts, expand_hostlist};

/// What a launcher calls its variables.
pub(crate) struct Names {
    /// As in `a Slurm step`.
    pub(crate) launcher: &'static str,
    /// What to do where one is missing.
    pub(crate) advice: &'static str,
    pub(crate) rank: &'static str,
    pub(crate) size: &'static str,
    pub(crate) local_rank: &'static str,
    pub(crate) node_index: &'static str,
    pub(crate) nodes: &'static str,
    pub(crate) tasks: &'static str,
}

/// Where a rank is in its step.
pub(crate) struct Place {
    pub(crate) rank: u32,
    pub(crate) size: u32,
    pub(crate) local_rank: u32,
    pub(crate) node_index: u32,
    pub(crate) nodes: Vec<Node>,
}

impl Names {
    /// Reads all six; `present` is a variable that is set, and therefore the others must be.
    pub(crate) fn read(
        &self,
        present: &'static str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Place> {
        let text = |name| self.text(present, name, variable);
        let number = |name: &'static str| parse_number(name, &text(name)?);
        let node_list = text(self.nodes)?;
        let names = expand_hostlist(&node_list)
            .ok_or_else(|| wrong(self.nodes, &node_list, "a list of nodes such as vm[1-2],gpu7"))?;
        let task_list = text(self.tasks)?;
        let counts = expand_counts(&task_list)
            .ok_or_else(|| wrong(self.tasks, &task_list, "a list of task counts such as 4(x3),2"))?;
        let (rank, size) = (number(self.rank)?, number(self.size)?);
        let (local_rank, node_index) = (number(self.local_rank)?, number(self.node_index)?);

        let total: u64 = counts.iter().copied().map(u64::from).sum();
        if counts.len() != names.len() {
            let why = format!("{} task counts for {} nodes", counts.len(), names.len());
            return Err(contradiction((self.tasks, &task_list), (self.nodes, &node_list), why));
        }
        if total != u64::from(size) {
            let why = format!("the counts add up to {total}");
            return Err(contradiction((self.tasks, &task_list), (self.size, &size.to_string()), why));
        }
        rank_below_size((self.rank, rank), (self.size, size))?;
        let Some(&tasks_here) = counts.get(node_index as usize) else {
            let why = format!("there are {} nodes", names.len());
            return Err(contradiction(
                (self.node_index, &node_index.to_string()),
                (self.nodes, &node_list),
                why,
            ));
        };
        if local_rank >= tasks_here {
            let why = format!("node {node_index} has {tasks_here} tasks");
            return Err(contradiction(
                (self.local_rank, &local_rank.to_string()),
                (self.tasks, &task_list),
                why,
            ));
        }
        let nodes = names.into_iter().zip(counts).map(|(name, tasks)| Node { name, tasks }).collect();
        Ok(Place { rank, size, local_rank, node_index, nodes })
    }

    /// A variable that must be there, as `present` is.
    pub(crate) fn text(
        &self,
        present: &'static str,
        missing: &'static str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<String> {
        variable(missing).ok_or_else(|| self.half_set(present, missing, variable))
    }

    pub(crate) fn half_set(
        &self,
        present: &'static str,
        missing: &'static str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Error {
        let value = variable(present).unwrap_or_default();
        Error::HalfSet {
            launcher: self.launcher,
            present: shown(present, &value),
            missing,
            advice: self.advice,
        }
    }
}

/// Ranks count from 0.
pub(crate) fn rank_below_size(rank: (&str, u32), size: (&str, u32)) -> Result<()> {
    if rank.1 < size.1 {
        return Ok(());
    }
    let why = match size.1 {
        0 => "there are no ranks".to_owned(),
        size => format!("ranks are 0 to {}", size - 1),
    };
    Err(contradiction((rank.0, &rank.1.to_string()), (size.0, &size.1.to_string()), why))
}

pub(crate) fn contradiction(first: (&str, &str), second: (&str, &str), why: String) -> Error {
    Error::Contradiction { first: shown(first.0, first.1), second: shown(second.0, second.1), why }
}

pub(crate) fn parse_number(name: &'static str, value: &str) -> Result<u32> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or_else(|| wrong(name, value, "a number"))
}

pub(crate) fn wrong(variable: &'static str, value: &str, expected: &str) -> Error {
    Error::Variable { variable, value: cut(value), expected: expected.to_owned() }
}

pub(crate) fn shown(name: &str, value: &str) -> String {
    format!("{name}={}", cut(value))
}

/// As much of a value as an error message bears.
fn cut(value: &str) -> String {
    value.chars().take(200).collect()
}
