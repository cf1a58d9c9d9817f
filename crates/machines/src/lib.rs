//! Machines as tests: a short TOML description of packages, NUMA nodes, PCI devices, NICs, GPUs and
//! interfaces, which [`Machine::build`] turns into a tree that reads like that machine's `/sys`.
//!
//! Only for tests. The trees have what Linux has where this project reads it, laid out with the
//! same links; they don't have the rest.
//!
//! ```
//! let machine = roce_machines::named("soft_roce_laptop").unwrap();
//! let folder = roce_machines::scratch()?;
//! machine.build(folder.path())?;
//! let parent = folder.path().join("sys/class/infiniband/rxe0/parent");
//! assert_eq!(std::fs::read_to_string(parent)?, "enp0s4\n");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod build;
mod cpus;
mod gids;
mod interfaces;
mod machine;
mod pci;
mod rdma;
mod scratch;
mod shipped;
mod sysfs;

pub use machine::{Gid, Gpu, Host, Interface, Machine, MachineError, Nic, Numa, Port, Qos, Soft};
pub use scratch::scratch;
pub use shipped::{Shipped, all, named};
