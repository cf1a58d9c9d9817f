//! Plays srun, sbatch and salloc up to the point where the job or step would be created.

use std::ffi::CStr;

use serde::{Deserialize, Serialize};

use crate::plugin::{Hook, Plugin, use_option};
use crate::slurm::{Context, slurm};

/// How a submission went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Submission {
    /// What the hooks and callbacks returned, in the order of their calls. It ends with the first failure.
    pub codes: Vec<i32>,
    /// What the user would read.
    pub errors: Vec<String>,
    /// The plugin's variables that srun would carry to the tasks, as `NAME=value`.
    pub variables: Vec<String>,
    /// Variables that the job would not inherit.
    pub disinherited: Vec<String>,
}

impl Submission {
    /// Nothing would be launched.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.codes.last().is_some_and(|code| *code < 0)
    }
}

/// Plays a submission with these options, in the order of the command line.
#[must_use]
pub fn play(plugin: &Plugin, context: Context, options: &[(&str, Option<&CStr>)]) -> Submission {
    slurm().reset(context);
    let mut codes = vec![plugin.call(Hook::Init).0];
    for (name, value) in options {
        if codes.iter().all(|code| *code >= 0) {
            codes.extend(use_option(name, *value, false));
        }
    }
    if codes.iter().all(|code| *code >= 0) {
        codes.push(plugin.call(Hook::InitPostOpt).0);
    }
    let slurm = slurm();
    let own = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.to_str().filter(|name| name.starts_with("SLURM_ROCE"))?.to_owned();
        Some(format!("{name}={}", value.to_string_lossy()))
    });
    Submission {
        codes,
        errors: slurm.lines.iter().filter(|line| line.level == 0).map(|line| line.text.clone()).collect(),
        variables: own.collect(),
        disinherited: slurm.disinherited.clone(),
    }
}
