//! One-sided access: memory of each rank that others put to, get from and change atomically.
//!
//! - [`words`]: bytes in and out of memory that others change at the same time. All of it is safe code.
//! - [`memory`]: where that memory comes from, and how ranks of one node map each other's.
//! - [`remote`]: what the engine does with packets of windows, on the side that owns the memory.
//! - [`access`]: what it does on the side that asks. Puts and gets that a NIC carries out need nobody on the other one.
//! - [`window`], [`atomic`], [`open`]: what programs see.

mod access;
mod atomic;
mod memory;
mod open;
pub(crate) mod remote;
mod window;
mod words;

pub use atomic::Atomic;
pub(crate) use memory::Memory;
pub use window::Window;
