//! What each task of a step gets: NICs, GIDs, traffic class, CPUs and memory nodes, and the
//! environment variables that tell every communication library so.
//!
//! Everything here is a pure decision, without file, environment or clock:
//! [`Options`] + [`Site`] -> [`Request`]; [`Request`] + `Node` + [`Task`]s -> [`Plan`] -> [`exports`].
//! The same facts give the same plan, wherever it is made; [`Draft`] makes it in pieces.

mod cpus;
mod distance;
mod environment;
mod exports;
mod gid;
mod gpus;
mod nics;
mod on_node;
mod option;
mod placement;
mod plan;
mod request;
mod site;
mod traffic_class;

pub use cpus::MemoryPolicy;
pub use distance::{CpuDistance, Distance, GpuDistance};
pub use environment::{Change, changes};
pub use exports::{Export, exports};
pub use gid::{GidRejection, GidSearch, RejectedGid, choose_gid};
pub use gpus::{GpuLookup, VisibleGpus, visible_gpus};
pub use nics::{Nic, PhysicalPort, PortRejection};
pub use option::{OptionError, Options, RoceOption, Source};
pub use plan::{Draft, Plan, PlanError, Task, TaskPlan, plan};
pub use request::{
    BindMode, ClassRequest, GidSelection, LinkLayers, NicSelection, Placement, Request, UnknownFacts,
};
pub use site::{
    Activate, Bootstrap, ExportPolicy, Family, GidPolicy, Library, Limits, Lossless, Memlock, Nics,
    OnFailure, Policy, Site, SiteClass, SiteError,
};
pub use traffic_class::{Class, ClassError};
