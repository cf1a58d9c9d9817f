//! The SPANK ABI: declarations, the panic guard, the version tag.
//!
//! SPANK is how Slurm loads code into srun, sbatch, salloc, slurmd and slurmstepd; there it runs as root.
//! This crate is the only place that knows the C side of it. It gives
//!
//! - [`Spank`], the safe face of the handle that a hook is called with;
//! - [`run_hook`], between C and every hook: no panic crosses, only 0 or -1 is returned, and never -1 where
//!   Slurm would drain the node for it;
//! - [`plugin_tag!`], the symbols that Slurm's loader reads, filled in for the release that loads them.
//!
//! It does *not* decide anything about RoCE, read a file or keep state beside the panic that disabled it.

pub mod abi;
mod guard;
mod handle;
mod log;
mod option;
mod version;

pub use abi::Context;
pub use guard::{DisabledBody, Hook, HookBody, Panic, Verdict, panicked, run_hook};
pub use handle::{Failure, Spank, inherited_option_variable};
pub use log::{Level, log};
pub use option::{OptionHandler, OptionSpec};
#[doc(hidden)]
pub use version::{host_version_tag, terminated};
pub use version::{release, version_tag};
