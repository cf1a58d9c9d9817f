//! What the plugin keeps between two hooks of one process.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use roce_plan::{Options, RoceOption, Site};

use crate::arguments::{ArgumentError, Arguments, ConfigError};
use crate::environment::Environment;
use crate::node_wide::Outcome;
use crate::step::{Limit, Step};

/// The process's state. srun, sbatch and salloc use the first half, slurmstepd the second.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// plugstack.conf's arguments; set by `init`.
    pub(crate) arguments: Option<Result<Arguments, ArgumentError>>,
    /// The site file, read when first needed.
    pub(crate) site: Option<Result<Site, ConfigError>>,

    /// Options and variables where the job is submitted.
    pub(crate) options: Options,
    /// The options whose callback has been called.
    pub(crate) seen: Vec<RoceOption>,

    /// Options that reached the node, as (option, bytes), the last of each.
    pub(crate) delivered: Vec<(RoceOption, Vec<u8>)>,
    /// The step on this node; `None` when it is left alone.
    pub(crate) step: Option<Step>,
    /// What became of the memlock limit.
    pub(crate) memlock: Limit,
    /// The tasks' environment, once the plugin has touched it.
    pub(crate) environment: Environment,
    /// What became of the class for all of the node.
    pub(crate) node_wide: Outcome,
}

/// The state. Hooks are called one after the other, so there is nobody to wait for; a panic leaves it
/// readable.
pub(crate) fn state() -> MutexGuard<'static, State> {
    static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// plugstack.conf's arguments as `init` read them.
    ///
    /// # Errors
    /// The text of what was wrong with them.
    pub(crate) fn arguments(&self) -> Result<&Arguments, String> {
        match &self.arguments {
            Some(arguments) => arguments.as_ref().map_err(ToString::to_string),
            None => Err("Slurm called a hook before slurm_spank_init".to_owned()),
        }
    }

    /// The site file, read on first use.
    ///
    /// # Errors
    /// The text of what was wrong with it, or with plugstack.conf.
    pub(crate) fn site(&mut self) -> Result<Site, String> {
        if self.site.is_none() {
            self.site = Some(self.arguments()?.site());
        }
        match &self.site {
            Some(Ok(site)) => Ok(site.clone()),
            Some(Err(error)) => Err(error.to_string()),
            None => Ok(Site::default()),
        }
    }
}
