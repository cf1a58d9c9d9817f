//! A pretend Slurm around `spank_roce.so`: loads the very file, and calls its hooks as slurmstepd, srun and
//! sbatch do, in their order and in others, with functions that fail and arguments that nobody expects.
//!
//! | module | plays |
//! | --- | --- |
//! | [`slurm`] | what Slurm knows: context, items, environment, options; and which of its functions fail |
//! | `exports` | the functions of `spank.h` that the plugin calls |
//! | [`plugin`] | Slurm's loader: the file and its hooks |
//! | [`step`] | slurmstepd and its tasks, each a forked process as there |
//! | [`submit`] | srun, sbatch, salloc |
//! | [`process`] | a process of its own for what may crash, and what a process holds |
//!
//! The C library's calls are counted too, and can be made to fail one by one (`shim.c`), so that every place
//! where the plugin meets the system is tried with the file as it is released.

mod exports;
pub mod plugin;
pub mod process;
pub mod slurm;
pub mod step;
pub mod submit;
