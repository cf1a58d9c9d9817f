//! Operations that own their memory.

use bytemuck::Pod;

use crate::error::Result;
use crate::messages::communicator::{Communicator, Described};
use crate::messages::engine::{Operation, Received};
use crate::messages::lent::{Lent, LentMut};
use crate::messages::matching::Wanted;
use crate::messages::select::{Status, Tag};

/// A send or receive that was started with memory of its own.
///
/// Dropped before it is over, a send goes on by itself, and a receive is given up: its message stays for others if it has not
/// begun to come.
#[derive(Debug)]
#[must_use = "it is over when it was waited for"]
pub struct Request<T: Pod> {
    communicator: Communicator,
    /// Never used between start and end of the operation but by the engine.
    data: Vec<T>,
    /// `None` when it is over.
    operation: Option<Operation>,
    peer: Option<u32>,
    tag: Tag,
    received: Option<Received>,
    sends: bool,
}

/// A request that is over.
#[derive(Clone, PartialEq, Debug)]
pub struct Completed<T> {
    /// What was sent, or what was received, cut to the message's length.
    pub data: Vec<T>,
    /// What was received; `None` for a send.
    pub status: Option<Status>,
}

impl<T: Pod> Request<T> {
    pub(crate) fn send(communicator: &Communicator, peer: u32, tag: u32, data: Vec<T>) -> Result<Self> {
        let memory = lend(bytemuck::cast_slice(&data));
        let operation = communicator.world.start_send(communicator.context, peer, tag, memory, false)?;
        let (communicator, tag) = (communicator.clone(), Tag(Some(tag)));
        Ok(Self { communicator, data, operation, peer: Some(peer), tag, received: None, sends: true })
    }

    pub(crate) fn receive(communicator: &Communicator, wanted: Wanted, mut data: Vec<T>) -> Result<Self> {
        let memory = lend_mut(bytemuck::cast_slice_mut(&mut data));
        let operation = Some(communicator.world.start_receive(communicator.context, wanted, memory)?);
        let (communicator, peer, tag) = (communicator.clone(), wanted.source, Tag(wanted.tag));
        Ok(Self { communicator, data, operation, peer, tag, received: None, sends: false })
    }

    /// Waits until it is over.
    ///
    /// # Errors
    /// As [`Communicator::send`] and [`Communicator::receive`].
    pub fn wait(mut self) -> Result<Completed<T>> {
        if let Some(operation) = self.operation.take() {
            let what = if self.sends { "a send" } else { "a receive" };
            let world = &self.communicator.world;
            let what = Described { what, peer: self.peer, tag: self.tag, world };
            self.received = world.wait(operation, size_of_val(self.data.as_slice()), &what)?;
        }
        let status = self.received.map(|received| self.communicator.status::<T>(received)).transpose()?;
        let mut data = std::mem::take(&mut self.data);
        if let Some(status) = status {
            data.truncate(status.length);
        }
        Ok(Completed { data, status })
    }

    /// Is it over? Then [`wait`](Self::wait) returns at once.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn test(&mut self) -> Result<bool> {
        self.communicator.world.progress();
        self.is_over()
    }

    fn is_over(&mut self) -> Result<bool> {
        let Some(operation) = self.operation else { return Ok(true) };
        let room = size_of_val(self.data.as_slice());
        let Some(outcome) = self.communicator.world.outcome(operation, room) else { return Ok(false) };
        self.operation = None;
        self.received = outcome?;
        Ok(true)
    }
}

/// Waits until one of the requests is over, and gives its place; `None` without any.
///
/// ```
/// # let job = roce_launcher::Job::init()?;
/// # let world = job.world();
/// let mut requests = vec![world.start_receive(0, 1, vec![0_u8])?, world.start_receive(0, 2, vec![0_u8])?];
/// world.send(0, 2, &[9_u8])?;
/// assert_eq!(roce_launcher::wait_any(&mut requests)?, Some(1));
/// assert_eq!(requests.remove(1).wait()?.data, [9]);
/// # Ok::<(), roce_launcher::Error>(())
/// ```
///
/// # Errors
/// As [`Request::wait`], that of the one that is over.
pub fn wait_any<T: Pod>(requests: &mut [Request<T>]) -> Result<Option<usize>> {
    let Some(first) = requests.first() else { return Ok(None) };
    let world = std::rc::Rc::clone(&first.communicator.world);
    let operations: Vec<Option<Operation>> = requests.iter().map(|request| request.operation).collect();
    let what = format!("one of {} requests", requests.len());
    let place = world.wait_until(&what, |engine| {
        operations.iter().position(|operation| operation.is_none_or(|operation| engine.is_over(operation)))
    })?;
    requests[place].is_over()?;
    Ok(Some(place))
}

/// Waits for all of them.
///
/// # Errors
/// As [`Request::wait`], the first one's.
pub fn wait_all<T: Pod>(requests: Vec<Request<T>>) -> Result<Vec<Completed<T>>> {
    requests.into_iter().map(Request::wait).collect()
}

impl<T: Pod> Drop for Request<T> {
    fn drop(&mut self) {
        let Some(operation) = self.operation.take() else { return };
        let world = &self.communicator.world;
        if self.sends {
            world.keep(operation, Box::new(std::mem::take(&mut self.data)));
        } else {
            world.cancel(operation);
        }
    }
}

#[expect(unsafe_code, reason = "lent until the request ends the operation")]
fn lend(bytes: &[u8]) -> Lent {
    // SAFETY: the request has the vector and doesn't touch it; where the request is moved, the vector's memory stays where
    // it is. Its drop has the engine forget the operation or keep the vector. Who forgets the request leaks the vector.
    unsafe { Lent::new(bytes) }
}

#[expect(unsafe_code, reason = "lent until the request ends the operation")]
fn lend_mut(bytes: &mut [u8]) -> LentMut {
    // SAFETY: as in `lend`.
    unsafe { LentMut::new(bytes) }
}
