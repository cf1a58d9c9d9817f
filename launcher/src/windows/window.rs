//! Memory of each rank that the others access.

use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};

use bytemuck::Pod;

use super::access::{self, Get, Place, Put, PutByNic};
use super::memory::Memory;
use super::words;
use crate::error::{Error, Result};
use crate::messages::engine::{Engine, Failure};
use crate::messages::{Communicator, lend, lend_mut};
use crate::transport::{Kind, There, Transports};

/// Looks at memory between two at what others want: those take longer.
const GLANCES: u32 = 16;

/// Memory of each rank of a group that the others put to, get from and change atomically, without a call of its owner's for
/// each: [`Communicator::window`].
///
/// # How
/// Within a node it is shared memory, and an access is a few instructions of the rank that wants it. Between nodes puts go by RDMA
/// write and gets by RDMA read where both have NICs of a rail and the memory may be locked, and the owner need do nothing. All else is
/// carried out by the rank that has the memory, when it calls something of a communicator or of a window: a rank that computes for long
/// lets others wait.
///
/// # What is seen when
/// [`put`](Self::put) and [`add`](Self::add) return when the slice may be used again. What they did is seen by everyone
/// when [`flush`](Self::flush) of that rank, [`flush_all`](Self::flush_all) or [`fence`](Self::fence) has returned; until then
/// they may be carried out in any order. All other accesses are over when they return. So a rank that is to find data when it
/// sees a word gets the data, then a flush, then the word ([`wait_until`](Self::wait_until)).
///
/// Accesses of several ranks to the same elements at the same time are no error. Elements of 1, 2, 4 or 8 bytes are then as one
/// of them wrote them; of longer ones, parts may be of different ranks. This memory is copied in and out, and never a slice.
///
/// # The end
/// [`close`](Self::close) is for all ranks together and gives the memory back. A window that is dropped instead keeps this rank's
/// memory, so that others go on as before, until [`Job::finalize`](crate::Job::finalize) or the end of this process; what was
/// mapped of others is given back.
pub struct Window<T: Pod> {
    /// For this window alone.
    pub(super) communicator: Communicator,
    /// This rank's.
    pub(super) memory: Rc<Memory>,
    /// By rank of the group.
    pub(super) parts: Vec<Part>,
    pub(super) elements: PhantomData<T>,
}

/// One rank's memory.
#[derive(Debug)]
pub(super) struct Part {
    /// In elements.
    pub(super) length: usize,
    pub(super) way: Way,
}

/// How to get there.
#[derive(Debug)]
pub(super) enum Way {
    /// This process has it mapped.
    Mapped(Rc<Memory>),
    /// It is on another node. Its rank does what is to be done, but for puts and gets where its NIC does.
    Far(Option<There>),
}

impl<T: Pod> Window<T> {
    /// How many elements a rank has; `None` for one that is not of the group.
    #[must_use]
    pub fn length_of(&self, rank: u32) -> Option<usize> {
        self.parts.get(rank as usize).map(|part| part.length)
    }

    /// Writes to a rank's memory from `offset` on, in elements. Returns when `data` may be used again, not when it has arrived.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let window = world.window::<f64>(100)?;
    /// window.put(0, 10, &[1.5, 2.5])?;
    /// window.flush(0)?;
    /// # window.close()?;
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoSuchRank`], [`Error::BeyondWindow`], [`Error::PeerLost`], [`Error::Over`]; [`Error::TimedOut`] and with it a part
    /// may have been written.
    pub fn put(&self, rank: u32, offset: usize, data: &[T]) -> Result<()> {
        self.send(Kind::Put, "put", rank, offset, data)
    }

    pub(super) fn send(
        &self,
        kind: Kind,
        what: &'static str,
        rank: u32,
        offset: usize,
        data: &[T],
    ) -> Result<()> {
        let (part, at) = self.locate(what, rank, offset, data.len())?;
        let bytes = bytemuck::cast_slice(data);
        self.communicator.world.tick(bytes.len())?;
        match &part.way {
            Way::Mapped(memory) if kind == Kind::Add => words::add(memory.words(), at, bytes),
            Way::Mapped(memory) => words::write(memory.words(), at, bytes),
            Way::Far(Some(there)) if kind == Kind::Put => {
                self.put_by_nic(self.peer(rank), there.further(at), bytes)?;
            }
            Way::Far(_) => {
                let place = Place { context: self.communicator.context, peer: self.peer(rank), at };
                let mut put = Put { place, kind, bytes, sent: 0 };
                self.wait(what, place.peer, |engine| put.look(engine))?;
            }
        }
        Ok(())
    }

    /// Long memory goes from where it is, and has arrived when this returns; short is copied.
    fn put_by_nic(&self, peer: u32, there: There, bytes: &[u8]) -> Result<()> {
        let world = &self.communicator.world;
        let what = format_args!("its put to rank {peer} ({})", world.node_of(peer));
        if world.write(peer, there, lend(bytes), &what)? {
            return Ok(());
        }
        let mut put = PutByNic { peer, there, bytes };
        self.wait("put", peer, |engine| put.look(engine))
    }

    /// Reads from a rank's memory from `offset` on, in elements.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let window = world.window::<u32>(10)?;
    /// let mut got = [1; 10];
    /// window.get(0, 0, &mut got)?;
    /// assert_eq!(got, [0; 10]);
    /// # window.close()?;
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn get(&self, rank: u32, offset: usize, data: &mut [T]) -> Result<()> {
        let (part, at) = self.locate("get", rank, offset, data.len())?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(data);
        let world = &self.communicator.world;
        world.tick(bytes.len())?;
        match &part.way {
            Way::Mapped(memory) => words::read(memory.words(), at, bytes),
            Way::Far(there) => {
                let (peer, there) = (self.peer(rank), there.map(|there| there.further(at)));
                if let Some(there) = there {
                    let what = format_args!("its get from rank {peer} ({})", world.node_of(peer));
                    if world.read(peer, there, lend_mut(bytes), &what)? {
                        return Ok(());
                    }
                }
                let place = Place { context: self.communicator.context, peer, at };
                let mut get = Get::new(place, there, bytes);
                let result = self.wait("get", place.peer, |engine| get.look(engine));
                world.with_engine(|engine| get.forget(engine));
                result?;
            }
        }
        Ok(())
    }

    /// Reads from this rank's own memory.
    ///
    /// # Errors
    /// [`Error::BeyondWindow`], [`Error::Over`].
    pub fn read(&self, offset: usize, data: &mut [T]) -> Result<()> {
        let (_, at) = self.locate("read", self.communicator.rank(), offset, data.len())?;
        self.communicator.world.tick(size_of_val(data))?;
        words::read(self.memory.words(), at, bytemuck::cast_slice_mut(data));
        Ok(())
    }

    /// Writes to this rank's own memory.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&self, offset: usize, data: &[T]) -> Result<()> {
        let (_, at) = self.locate("write", self.communicator.rank(), offset, data.len())?;
        self.communicator.world.tick(size_of_val(data))?;
        words::write(self.memory.words(), at, bytemuck::cast_slice(data));
        Ok(())
    }

    /// Waits until an element of this rank's own memory is as it should be, and gives it. What its writer had flushed before can
    /// be read then.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let (data, arrived) = (world.window::<f64>(3)?, world.window::<u64>(1)?);
    /// let right = (world.rank() + 1) % world.size();
    /// data.put(right, 0, &[1.0, 2.0, 3.0])?;
    /// data.flush(right)?;
    /// arrived.add(right, 0, &[1])?;
    /// arrived.wait_until(0, |count| count > 0)?;
    /// let mut got = [0.0; 3];
    /// data.read(0, &mut got)?;
    /// assert_eq!(got, [1.0, 2.0, 3.0]);
    /// # data.close()?;
    /// # arrived.close()?;
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`Error::TimedOut`].
    pub fn wait_until(&self, offset: usize, mut is_right: impl FnMut(T) -> bool) -> Result<T> {
        let (_, at) = self.locate("wait_until", self.communicator.rank(), offset, 1)?;
        self.communicator.world.tick(0)?;
        let what = format_args!("its wait for element {offset} of its own memory");
        let mut look = || {
            let mut value = T::zeroed();
            words::read(self.memory.words(), at, bytemuck::bytes_of_mut(&mut value));
            is_right(value).then_some(value)
        };
        self.communicator.world.wait_for(&what, || (0..GLANCES).find_map(|_| look()))
    }

    /// Waits until what this rank has put and added to a rank's memory is there, for everyone.
    ///
    /// # Errors
    /// [`Error::NoSuchRank`], [`Error::PeerLost`], [`Error::Over`], [`Error::TimedOut`].
    pub fn flush(&self, rank: u32) -> Result<()> {
        let (part, _) = self.locate("flush", rank, 0, 0)?;
        self.communicator.world.tick(0)?;
        fence(Ordering::SeqCst);
        if matches!(part.way, Way::Far(_)) {
            let peer = self.peer(rank);
            self.wait("flush", peer, |engine| access::all_done(engine, peer))?;
        }
        Ok(())
    }

    /// The same for all ranks' memory.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn flush_all(&self) -> Result<()> {
        (0..self.communicator.size()).try_for_each(|rank| self.flush(rank))
    }

    /// Returns when every rank has called it: what any of them did to the window before, all see after it.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn fence(&self) -> Result<()> {
        self.flush_all()?;
        self.communicator.barrier()?;
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Ends the window; every rank must call it. Returns when nobody accesses it any more.
    ///
    /// # Errors
    /// As [`flush`](Self::flush); then it is as if the window had been dropped.
    pub fn close(self) -> Result<()> {
        self.fence()?;
        self.communicator.world.close_window(self.communicator.context);
        Ok(())
    }

    /// A rank's memory, and where in it, in bytes, these elements begin.
    pub(super) fn locate(
        &self,
        what: &'static str,
        rank: u32,
        offset: usize,
        length: usize,
    ) -> Result<(&Part, usize)> {
        let peer = self.communicator.job_rank(what, rank)?;
        let part = &self.parts[rank as usize];
        if offset.checked_add(length).is_none_or(|end| end > part.length) {
            let node = self.communicator.world.node_of(peer).to_owned();
            return Err(Error::BeyondWindow { what, rank, node, offset, length, window: part.length });
        }
        // The window's length in bytes is no more than `usize` can say.
        Ok((part, offset * size_of::<T>()))
    }

    /// As a rank of the job.
    pub(super) fn peer(&self, rank: u32) -> u32 {
        self.communicator.rank_in_job(rank).unwrap_or(u32::MAX)
    }

    pub(super) fn wait<R>(
        &self,
        what: &'static str,
        peer: u32,
        look: impl FnMut(&mut Engine<Transports>) -> Option<Result<R, Failure>>,
    ) -> Result<R> {
        let world = &self.communicator.world;
        let described = format_args!("its {what} with rank {peer} ({})", world.node_of(peer));
        world.wait_until(&described, look)?.map_err(|failure| world.error(&failure, 0))
    }
}

impl<T: Pod> fmt::Debug for Window<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window")
            .field("communicator", &self.communicator)
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}
