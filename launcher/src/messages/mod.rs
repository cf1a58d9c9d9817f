//! Messages between ranks: what a program sends and receives, whatever carries it.

mod communicator;
pub(crate) mod engine;
pub(crate) mod lent;
pub(crate) mod matching;
mod request;
mod scope;
mod select;
mod watch;
mod world;

pub use communicator::Communicator;
pub(crate) use communicator::{lend, lend_mut};
pub(crate) use lent::{Lent, LentMut};
pub use request::{Completed, Request, wait_all, wait_any};
pub use scope::{Pending, Scope};
pub use select::{Any, Source, Status, Tag};
pub(crate) use watch::{Call, TOGETHER, Watch, tag};
pub(crate) use world::World;
