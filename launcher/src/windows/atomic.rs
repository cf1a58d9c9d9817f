//! Changes of single numbers that no other access can come between.

use bytemuck::Pod;

use super::access::{Ask, Place};
use super::window::{Way, Window};
use super::words::{self, Change};
use crate::error::Result;
use crate::transport::Kind;

/// Numbers that windows change atomically: `u64` and `i64`.
/// Nothing else: a network card adds integers of eight bytes only.
pub trait Atomic: Pod + PartialEq + sealed::Sealed {}

impl Atomic for u64 {}
impl Atomic for i64 {}

mod sealed {
    /// So that both have eight bytes, and add as two's complement does.
    pub trait Sealed {}
    impl Sealed for u64 {}
    impl Sealed for i64 {}
}

/// Atomic with regard to each other, and to everything else that is done to the same number, whichever way the ranks reach
/// it: all are carried out by CPUs of the node where the memory is.
impl<T: Atomic> Window<T> {
    /// Adds to a number of a rank and gives what was there before. The sum wraps.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let tickets = world.window::<u64>(1)?;
    /// let mine = tickets.fetch_add(0, 0, 1)?; // no other rank gets the same
    /// assert!(mine < u64::from(world.size()));
    /// # tickets.close()?;
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn fetch_add(&self, rank: u32, offset: usize, number: T) -> Result<T> {
        self.change("fetch_add", rank, offset, Change::Add(bytemuck::cast(number)))
    }

    /// Sets a number of a rank and gives what was there before.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn swap(&self, rank: u32, offset: usize, new: T) -> Result<T> {
        self.change("swap", rank, offset, Change::Swap(bytemuck::cast(new)))
    }

    /// Sets a number of a rank to `new` if it is `expected`, and gives what was there before: it was set if that is `expected`.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let lock = world.window::<u64>(1)?;
    /// while lock.compare_swap(0, 0, 0, 1)? != 0 {} // taken
    /// lock.swap(0, 0, 0)?; // given back
    /// # lock.close()?;
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn compare_swap(&self, rank: u32, offset: usize, expected: T, new: T) -> Result<T> {
        let change = Change::CompareSwap { expected: bytemuck::cast(expected), new: bytemuck::cast(new) };
        let old = self.change("compare_swap", rank, offset, change)?;
        if old != expected {
            // Whoever holds the lock may need this rank, or this CPU.
            self.communicator.world.let_others();
        }
        Ok(old)
    }

    /// Adds numbers to those of a rank from `offset` on, each atomically. They may still be under way when it returns;
    /// [`flush`](Self::flush) waits for them.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let sums = world.window::<i64>(2)?;
    /// sums.add(0, 0, &[1, -1])?;
    /// sums.fence()?;
    /// let (mut got, size) = ([0; 2], i64::from(world.size()));
    /// sums.get(0, 0, &mut got)?;
    /// assert_eq!(got, [size, -size]);
    /// # sums.close()?;
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn add(&self, rank: u32, offset: usize, numbers: &[T]) -> Result<()> {
        self.send(Kind::Add, "add", rank, offset, numbers)
    }

    fn change(&self, what: &'static str, rank: u32, offset: usize, change: Change) -> Result<T> {
        let (part, at) = self.locate(what, rank, offset, 1)?;
        let world = &self.communicator.world;
        world.tick(0)?;
        let old = match &part.way {
            Way::Mapped(memory) => words::apply(memory.words(), at, change),
            Way::Far(_) => {
                let place = Place { context: self.communicator.context, peer: self.peer(rank), at };
                let mut ask = Ask::new(place, change);
                let answer = self.wait(what, place.peer, |engine| ask.look(engine));
                if answer.is_err() {
                    world.with_engine(|engine| ask.forget(engine));
                }
                answer?
            }
        };
        Ok(bytemuck::cast(old))
    }
}
