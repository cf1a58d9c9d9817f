//! What all ranks of a communicator do together. Every rank must call the same, in the same order.
//!
//! [`choose`] says which algorithm a call uses. Where ranks of a node share memory ([`nodes`], [`node`], [`local`]), they work through it
//! first; then one rank of each node, its leader, sends messages to the other leaders ([`round::Team`]).

mod all_gather;
mod all_reduce;
mod all_to_all;
mod barrier;
mod broadcast;
mod choose;
mod gather;
mod group;
mod local;
mod node;
mod nodes;
mod operator;
mod reduce;
mod round;
mod scatter;

use bytemuck::Pod;

pub(crate) use choose::{ALGORITHMS, Overrides};
pub use choose::{Algorithm, Choice, Collective};
pub(crate) use nodes::Nodes;
pub use operator::{And, Max, Min, Operator, Or, Product, Sum, Xor};

use crate::messages::Call;

/// A call whose length in elements must be the same on all ranks.
fn call<T>(what: &'static str, root: Option<u32>, length: usize) -> Call {
    Call { what, root, bytes: Some(length.saturating_mul(size_of::<T>())) }
}

/// A call in which ranks may give different lengths.
fn call_varying(what: &'static str, root: Option<u32>) -> Call {
    Call { what, root, bytes: None }
}

/// An empty result of so many elements.
fn zeros<T: Pod>(length: usize) -> Vec<T> {
    vec![T::zeroed(); length]
}
