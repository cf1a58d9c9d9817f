//! What all ranks of a communicator do together. Every rank must call the same, in the same order.

mod all_gather;
mod all_reduce;
mod all_to_all;
mod barrier;
mod broadcast;
mod gather;
mod group;
mod operator;
mod reduce;
mod scatter;

use bytemuck::Pod;

use crate::error::{Error, Result};
use crate::messages::{Communicator, Source, Tag};

pub use operator::{And, Max, Min, Operator, Or, Product, Sum, Xor};

/// One collective of a communicator: its messages are apart from the program's, and from those of the collectives before and
/// after it.
struct Round<'a> {
    communicator: &'a Communicator,
    context: u32,
    tag: u32,
}

impl<'a> Round<'a> {
    fn of(communicator: &'a Communicator) -> Self {
        let tag = communicator.round.get();
        communicator.round.set(tag.wrapping_add(1));
        Self { communicator, context: communicator.context + 1, tag }
    }

    fn rank(&self) -> u32 {
        self.communicator.rank()
    }

    fn size(&self) -> u32 {
        self.communicator.size()
    }

    fn send<T: Pod>(&self, to: u32, data: &[T]) -> Result<()> {
        self.communicator.send_in(self.context, to, self.tag, data)
    }

    /// Receives exactly so many elements.
    fn receive<T: Pod>(&self, what: &'static str, from: u32, data: &mut [T]) -> Result<()> {
        let status =
            self.communicator.receive_in(self.context, Source::from(from), Tag::from(self.tag), data)?;
        self.expect(what, from, status.length, data.len())
    }

    fn exchange<T: Pod>(
        &self,
        what: &'static str,
        to: u32,
        data: &[T],
        from: u32,
        room: &mut [T],
    ) -> Result<()> {
        let expected = room.len();
        let status = self.communicator.send_receive_in(
            self.context,
            (to, self.tag, data),
            (Source::from(from), Tag::from(self.tag), room),
        )?;
        self.expect(what, from, status.length, expected)
    }

    fn expect(&self, what: &'static str, from: u32, got: usize, expected: usize) -> Result<()> {
        if got == expected {
            return Ok(());
        }
        let problem = format!(
            "rank {from} of the communicator gave {got} elements where rank {} expects {expected}; every rank must give as many",
            self.rank()
        );
        Err(Error::Lengths { what, problem })
    }

    /// A rank so many places further, around the end.
    fn after(&self, distance: u32) -> u32 {
        (self.rank() + distance % self.size()) % self.size()
    }

    fn before(&self, distance: u32) -> u32 {
        (self.rank() + self.size() - distance % self.size()) % self.size()
    }
}

/// An empty result of so many elements.
fn zeros<T: Pod>(length: usize) -> Vec<T> {
    vec![T::zeroed(); length]
}
