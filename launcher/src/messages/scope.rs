//! Sends and receives whose slices are lent for as long as a scope lasts.

use std::cell::RefCell;
use std::marker::PhantomData;

use bytemuck::Pod;

use crate::error::{Error, Result};
use crate::messages::communicator::{Communicator, Described};
use crate::messages::engine::{Operation, Received};
use crate::messages::lent::{Lent, LentMut};
use crate::messages::matching::Context;
use crate::messages::select::{Source, Status, Tag};

/// Where slices are lent to sends and receives: [`Communicator::scope`].
///
/// What is lent must live longer than the scope, and until it has ended nobody may change what is being sent, or use what is being
/// received into, not even when it was [waited](Self::wait) for. The compiler sees to that.
pub struct Scope<'scope, 'env: 'scope> {
    communicator: &'scope Communicator,
    context: Context,
    started: RefCell<Vec<Started>>,
    /// As for `std::thread::scope`: what is lent must live as long as 'env, no shorter.
    env: PhantomData<&'env mut &'env ()>,
}

struct Started {
    /// `None` when it is over.
    operation: Option<Operation>,
    room: usize,
    peer: Option<u32>,
    tag: Tag,
    received: Option<Received>,
    /// The collective that needs all of the room filled.
    exactly: Option<&'static str>,
}

/// A receive of a scope.
#[derive(Clone, Copy, Debug)]
pub struct Pending<T> {
    place: usize,
    elements: PhantomData<T>,
}

impl<'scope, 'env> Scope<'scope, 'env> {
    pub(crate) fn new(communicator: &'scope Communicator, context: Context) -> Self {
        Self { communicator, context, started: RefCell::default(), env: PhantomData }
    }

    /// Starts to send `data`.
    ///
    /// # Errors
    /// As [`Communicator::send`].
    pub fn send<T: Pod>(&self, to: u32, tag: u32, data: &'env [T]) -> Result<()> {
        let peer = self.communicator.job_rank("send", to)?;
        let bytes = bytemuck::cast_slice(data);
        let operation = self.communicator.world.start_send(self.context, peer, tag, lend(bytes), false)?;
        let (room, tag) = (bytes.len(), Tag(Some(tag)));
        if operation.is_some() {
            let started = Started { operation, room, peer: Some(peer), tag, received: None, exactly: None };
            self.started.borrow_mut().push(started);
        }
        Ok(())
    }

    /// Starts to receive into `data`. Its status comes by [`wait`](Self::wait).
    ///
    /// # Errors
    /// As [`Communicator::receive`].
    pub fn receive<T: Pod>(
        &self,
        from: impl Into<Source>,
        tag: impl Into<Tag>,
        data: &'env mut [T],
    ) -> Result<Pending<T>> {
        let tag = tag.into();
        let wanted = self.communicator.wanted("receive", from.into(), tag)?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(data);
        let (room, world) = (bytes.len(), &self.communicator.world);
        let received = world.receive_now(self.context, wanted, bytes);
        let operation = match received {
            Some(_) => None,
            None => Some(world.start_receive(self.context, wanted, lend_mut(bytes))?),
        };
        let mut started = self.started.borrow_mut();
        started.push(Started { operation, room, peer: wanted.source, tag, received, exactly: None });
        Ok(Pending { place: started.len() - 1, elements: PhantomData })
    }

    /// Waits for a receive of this scope. Its slice can be read when the scope has ended.
    ///
    /// # Errors
    /// As [`Communicator::receive`].
    pub fn wait<T: Pod>(&self, receive: Pending<T>) -> Result<Status> {
        let received = self.finish(receive.place)?;
        match received {
            Some(received) => self.communicator.status::<T>(received),
            // A `Pending` of another scope.
            None => Ok(Status { source: u32::MAX, tag: 0, length: 0 }),
        }
    }

    /// A receive of a collective: a shorter message is an error.
    pub(crate) fn receive_exactly<T: Pod>(
        &self,
        what: &'static str,
        from: u32,
        tag: u32,
        data: &'env mut [T],
    ) -> Result<()> {
        let receive = self.receive(from, tag, data)?;
        if let Some(started) = self.started.borrow_mut().get_mut(receive.place) {
            started.exactly = Some(what);
        }
        Ok(())
    }

    fn finish(&self, place: usize) -> Result<Option<Received>> {
        let mut started = self.started.borrow_mut();
        let Some(one) = started.get_mut(place) else { return Ok(None) };
        if let Some(operation) = one.operation {
            let world = &self.communicator.world;
            let what = Described { what: "an operation of a scope", peer: one.peer, tag: one.tag, world };
            // Over or forgotten when it returns.
            one.operation = None;
            one.received = world.wait(operation, one.room, &what)?;
        }
        if let (Some(what), Some(received)) = (one.exactly, one.received)
            && received.length != one.room
        {
            let (rank, room) = (received.label.source, one.room);
            let problem = format!("rank {rank} of the job gave {} bytes instead of {room}", received.length);
            let error = Error::Lengths { what, problem };
            self.communicator.world.fail(&error);
            return Err(error);
        }
        Ok(one.received)
    }

    /// Waits for all of them.
    pub(crate) fn end(&self) -> Result<()> {
        let count = self.started.borrow().len();
        (0..count).try_for_each(|place| self.finish(place).map(|_| ()))
    }
}

impl Drop for Scope<'_, '_> {
    /// Where the scope ends early: what is not over is forgotten, for its memory may go.
    fn drop(&mut self) {
        for one in self.started.get_mut() {
            if let Some(operation) = one.operation.take() {
                self.communicator.world.cancel(operation);
            }
        }
    }
}

#[expect(unsafe_code, reason = "lent for longer than the scope, which ends the operation")]
fn lend(bytes: &[u8]) -> Lent {
    // SAFETY: borrowed for 'env, which outlives the scope; whoever has it can't forget it, for it is only given by
    // reference, and its drop ends or forgets the operation.
    unsafe { Lent::new(bytes) }
}

#[expect(unsafe_code, reason = "lent for longer than the scope, which ends the operation")]
fn lend_mut(bytes: &mut [u8]) -> LentMut {
    // SAFETY: as in `lend`.
    unsafe { LentMut::new(bytes) }
}
