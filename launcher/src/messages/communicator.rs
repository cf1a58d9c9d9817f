//! A group of ranks and what they say to each other.

use std::fmt;
use std::rc::Rc;

use bytemuck::Pod;

use crate::collectives::Nodes;
use crate::error::{Error, Result};
use crate::messages::engine::{Engine, Received};
use crate::messages::lent::{Lent, LentMut};
use crate::messages::matching::{Context, Label, Wanted};
use crate::messages::request::Request;
use crate::messages::scope::Scope;
use crate::messages::select::{Source, Status, Tag};
use crate::messages::watch::Rounds;
use crate::messages::world::World;
use crate::transport::Transports;

/// Messages up to so many bytes need no operation, mostly.
const SHORT: usize = 8 << 10;

/// A group of ranks whose messages are apart from those of every other group. [`Job::world`](crate::Job::world) is all ranks.
///
/// Messages of one rank to another arrive in the order in which they were sent, if a receive takes both. Elements are any type
/// without padding or pointers ([`bytemuck::Pod`]: numbers, arrays of them, `#[repr(C)]` structs that derive it); they go as
/// they are in memory, so all nodes must have the same byte order.
///
/// A rank's messages move when it calls something here: a rank that computes for long between two calls lets others wait
/// for its long messages. A `Communicator` belongs to one thread; copies of it are cheap.
#[derive(Clone)]
pub struct Communicator {
    pub(crate) world: Rc<World>,
    /// As ranks of the job, by rank of this group.
    pub(crate) ranks: Rc<[u32]>,
    rank: u32,
    /// Of the program's messages; that of the collectives is one more.
    pub(crate) context: Context,
    /// So that collectives that follow each other don't take each other's messages.
    pub(crate) rounds: Rounds,
    /// What is shared with the ranks of this node, and where all ranks are.
    pub(crate) nodes: Rc<Nodes>,
}

/// A communicator without its world.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    ranks: Rc<[u32]>,
    rank: u32,
    context: Context,
    rounds: Rounds,
    nodes: Rc<Nodes>,
}

impl Communicator {
    pub(crate) fn world(world: Rc<World>, nodes: Rc<Nodes>) -> Self {
        let (ranks, rank) = ((0..world.size()).collect(), world.rank);
        let rounds = world.with_engine(|engine| engine.rounds(1));
        Self { world, ranks, rank, context: 0, rounds, nodes }
    }

    /// Ranks of the job that talk apart from all others.
    pub(crate) fn of(&self, ranks: Vec<u32>, context: Context, nodes: Nodes) -> Self {
        let rank = ranks.iter().position(|rank| *rank == self.world.rank).unwrap_or(0);
        let rank = u32::try_from(rank).unwrap_or(0);
        let world = Rc::clone(&self.world);
        let rounds = world.with_engine(|engine| engine.rounds(context + 1));
        Self { world, ranks: ranks.into(), rank, context, rounds, nodes: Rc::new(nodes) }
    }

    /// What this is apart from the world, which it would keep alive.
    pub(crate) fn group(&self) -> Group {
        let Self { ranks, rank, context, rounds, nodes, .. } = self.clone();
        Group { ranks, rank, context, rounds, nodes }
    }

    pub(crate) fn of_group(world: Rc<World>, group: Group) -> Self {
        let Group { ranks, rank, context, rounds, nodes } = group;
        Self { world, ranks, rank, context, rounds, nodes }
    }

    pub(crate) fn job_ranks(&self) -> Rc<[u32]> {
        Rc::clone(&self.ranks)
    }

    /// This rank in the group, 0 to `size - 1`.
    #[inline]
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// How many ranks the group has.
    #[inline]
    #[must_use]
    pub fn size(&self) -> u32 {
        u32::try_from(self.ranks.len()).unwrap_or(u32::MAX)
    }

    /// A rank of the group as a rank of the job.
    #[inline]
    #[must_use]
    pub fn rank_in_job(&self, rank: u32) -> Option<u32> {
        self.ranks.get(rank as usize).copied()
    }

    #[inline]
    pub(crate) fn job_rank(&self, what: &'static str, rank: u32) -> Result<u32> {
        match self.rank_in_job(rank) {
            Some(rank) => Ok(rank),
            None => Err(Error::NoSuchRank { what, rank, last: self.size().saturating_sub(1) }),
        }
    }

    #[inline]
    fn group_rank(&self, rank: u32) -> u32 {
        if self.context == 0 { rank } else { self.rank_here(rank).unwrap_or(u32::MAX) }
    }

    /// A rank of the job as a rank of the group.
    pub(crate) fn rank_here(&self, rank: u32) -> Option<u32> {
        let place = self.ranks.iter().position(|other| *other == rank);
        place.and_then(|place| u32::try_from(place).ok())
    }

    #[inline]
    pub(crate) fn wanted(&self, what: &'static str, source: Source, tag: Tag) -> Result<Wanted> {
        let source = match source.0 {
            Some(rank) => Some(self.job_rank(what, rank)?),
            None => None,
        };
        Ok(Wanted { source, tag: tag.0 })
    }

    /// What was received, in elements.
    #[inline]
    pub(crate) fn status<T>(&self, received: Received) -> Result<Status> {
        let Received { label, length } = received;
        let size = size_of::<T>().max(1);
        if !length.is_multiple_of(size) {
            let node = self.world.node_of(label.source).to_owned();
            return Err(Error::Uneven { source_rank: label.source, node, tag: label.tag, length, size });
        }
        Ok(Status { source: self.group_rank(label.source), tag: label.tag, length: length / size })
    }

    /// Sends to a rank, and returns when `data` may be changed again: a short message is on its way then, a long one has
    /// arrived.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// let world = job.world();
    /// world.send(world.rank(), 7, &[1.5, 2.5])?; // to itself: a short one needs no receive yet
    /// let mut got = [0.0; 2];
    /// world.receive(world.rank(), 7, &mut got)?;
    /// assert_eq!(got, [1.5, 2.5]);
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoSuchRank`], [`Error::PeerLost`], [`Error::Over`], [`Error::TimedOut`].
    pub fn send<T: Pod>(&self, to: u32, tag: u32, data: &[T]) -> Result<()> {
        self.send_in(self.context, to, tag, data)
    }

    #[inline]
    pub(crate) fn send_in<T: Pod>(&self, context: Context, to: u32, tag: u32, data: &[T]) -> Result<()> {
        let peer = self.job_rank("send", to)?;
        let bytes = bytemuck::cast_slice(data);
        if self.world.send_soon(context, peer, tag, bytes) {
            return Ok(());
        }
        self.send_later(context, peer, tag, bytes)
    }

    /// Sends with an operation, mostly.
    #[inline(never)]
    fn send_later(&self, context: Context, peer: u32, tag: u32, bytes: &[u8]) -> Result<()> {
        match self.world.send_later(context, peer, tag, lend(bytes), true)? {
            None => Ok(()),
            Some(operation) => {
                let what =
                    Described { what: "a send", peer: Some(peer), tag: Tag(Some(tag)), world: &self.world };
                self.world.wait(operation, bytes.len(), &what).map(|_| ())
            }
        }
    }

    /// Receives a message into `data`, which may be longer than the message; waits for it.
    ///
    /// ```
    /// use roce_launcher::Any;
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// world.send(0, 3, b"hello")?;
    /// let mut data = [0_u8; 100];
    /// let status = world.receive(Any, Any, &mut data)?;
    /// assert_eq!((status.source, status.tag, &data[..status.length]), (0, 3, &b"hello"[..]));
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`Error::TooLong`], [`Error::Uneven`].
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "part of the way of a short message, the rest of which is two functions"
    )]
    pub fn receive<T: Pod>(
        &self,
        from: impl Into<Source>,
        tag: impl Into<Tag>,
        data: &mut [T],
    ) -> Result<Status> {
        self.receive_in(self.context, from.into(), tag.into(), data)
    }

    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "what is known of source and tag where it is called need not be asked"
    )]
    pub(crate) fn receive_in<T: Pod>(
        &self,
        context: Context,
        from: Source,
        tag: Tag,
        data: &mut [T],
    ) -> Result<Status> {
        let wanted = self.wanted("receive", from, tag)?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(data);
        if let Wanted { source: Some(peer), tag: Some(tag) } = wanted
            && let Some(length) = self.world.receive_short(context, peer, tag, bytes)
        {
            return self.status::<T>(Received { label: Label { source: peer, tag }, length });
        }
        self.receive_otherwise::<T>(context, wanted.source, wanted.tag, bytes)
    }

    /// From whoever or with any tag, or with an operation.
    #[inline(never)]
    fn receive_otherwise<T>(
        &self,
        context: Context,
        source: Option<u32>,
        tag: Option<u32>,
        bytes: &mut [u8],
    ) -> Result<Status> {
        let wanted = Wanted { source, tag };
        if wanted.tag.is_none()
            && let Some(received) = self.world.receive_soon(context, wanted, bytes)
        {
            return self.status::<T>(received);
        }
        self.receive_later(context, wanted, bytes).and_then(|received| match received {
            Some(received) => self.status::<T>(received),
            // Only sends are over without having received.
            None => Ok(Status { source: u32::MAX, tag: 0, length: 0 }),
        })
    }

    /// Receives with an operation.
    #[inline(never)]
    fn receive_later(&self, context: Context, wanted: Wanted, bytes: &mut [u8]) -> Result<Option<Received>> {
        let (room, Wanted { source, tag }) = (bytes.len(), wanted);
        let operation = self.world.start_receive(context, wanted, lend_mut(bytes))?;
        let what = Described { what: "a receive", peer: source, tag: Tag(tag), world: &self.world };
        self.world.wait(operation, room, &what)
    }

    /// Receives a message of any length.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// world.send(0, 3, &[1_u64, 2, 3])?;
    /// let (numbers, status) = world.receive_vec::<u64>(0, 3)?;
    /// assert_eq!((numbers, status.length), (vec![1, 2, 3], 3));
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn receive_vec<T: Pod>(
        &self,
        from: impl Into<Source>,
        tag: impl Into<Tag>,
    ) -> Result<(Vec<T>, Status)> {
        self.receive_vec_in(self.context, from.into(), tag.into())
    }

    pub(crate) fn receive_vec_in<T: Pod>(
        &self,
        context: Context,
        from: Source,
        tag: Tag,
    ) -> Result<(Vec<T>, Status)> {
        let wanted = self.wanted("receive_vec", from, tag)?;
        let found = self.status::<T>(self.wait_for_message(context, wanted)?)?;
        let mut data = vec![T::zeroed(); found.length];
        let status = self.receive_in(context, found.source.into(), found.tag.into(), &mut data)?;
        Ok((data, status))
    }

    /// Waits for a message without taking it; `length` is in elements of `T`.
    ///
    /// ```
    /// # use roce_launcher::Any;
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// world.send(0, 3, &[0_u16; 5])?;
    /// assert_eq!(world.probe::<u16>(Any, Any)?.length, 5);
    /// # let mut data = [0_u16; 5];
    /// # world.receive(0, 3, &mut data)?;
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn probe<T: Pod>(&self, from: impl Into<Source>, tag: impl Into<Tag>) -> Result<Status> {
        let wanted = self.wanted("probe", from.into(), tag.into())?;
        self.status::<T>(self.wait_for_message(self.context, wanted)?)
    }

    /// The same without waiting: `None` if no such message is here.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn try_probe<T: Pod>(&self, from: impl Into<Source>, tag: impl Into<Tag>) -> Result<Option<Status>> {
        let wanted = self.wanted("try_probe", from.into(), tag.into())?;
        self.world.progress();
        let found = self.world.with_engine(|engine| engine.probe(self.context, wanted));
        found.map(|found| self.status::<T>(found)).transpose()
    }

    fn wait_for_message(&self, context: Context, wanted: Wanted) -> Result<Received> {
        let what =
            Described { what: "a receive", peer: wanted.source, tag: Tag(wanted.tag), world: &self.world };
        self.world.awaited.set(wanted.source);
        let look = |engine: &mut Engine<Transports>| {
            let found = engine.probe(context, wanted).map(Ok);
            found.or_else(|| engine.broken(wanted.source?).map(Err))
        };
        self.world.wait_until(&what, look)?.map_err(|failure| self.world.error(&failure, 0))
    }

    /// Sends and receives at the same time, so that two ranks can exchange long messages.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let right = (world.rank() + 1) % world.size();
    /// let left = (world.rank() + world.size() - 1) % world.size();
    /// let mut got = [0_u32];
    /// world.send_receive(right, 0, &[world.rank()], left, 0, &mut got)?;
    /// assert_eq!(got, [left]);
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send) and [`receive`](Self::receive).
    pub fn send_receive<S: Pod, R: Pod>(
        &self,
        to: u32,
        tag: u32,
        data: &[S],
        from: impl Into<Source>,
        from_tag: impl Into<Tag>,
        room: &mut [R],
    ) -> Result<Status> {
        self.send_receive_in(self.context, (to, tag, data), (from.into(), from_tag.into(), room))
    }

    pub(crate) fn send_receive_in<S: Pod, R: Pod>(
        &self,
        context: Context,
        (to, tag, data): (u32, u32, &[S]),
        (from, from_tag, room): (Source, Tag, &mut [R]),
    ) -> Result<Status> {
        let peer = self.job_rank("send", to)?;
        let bytes = bytemuck::cast_slice(data);
        if bytes.len() <= SHORT {
            // On its way at once, mostly: what is left is a receive.
            let started = self.world.start_send(context, peer, tag, lend(bytes), false)?;
            let sending = started.map(|operation| self.world.unfinished(operation));
            let received = self.receive_in(context, from, from_tag, room)?;
            if let Some(sending) = sending {
                let what =
                    Described { what: "a send", peer: Some(peer), tag: Tag(Some(tag)), world: &self.world };
                sending.wait(bytes.len(), &what)?;
            }
            return Ok(received);
        }
        self.scope_in(context, |scope| {
            let receive = scope.receive(from, from_tag, room)?;
            scope.send(to, tag, data)?;
            scope.wait(receive)
        })
    }

    /// Starts to send `data`, which the request gives back when it is over.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let receive = world.start_receive(0, 5, vec![0_u8; 100_000])?;
    /// let send = world.start_send(0, 5, vec![7_u8; 100_000])?;
    /// let received = receive.wait()?;
    /// assert_eq!(received.data, send.wait()?.data);
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn start_send<T: Pod>(&self, to: u32, tag: u32, data: Vec<T>) -> Result<Request<T>> {
        let peer = self.job_rank("start_send", to)?;
        Request::send(self, peer, tag, data)
    }

    /// Starts to receive a message that is at most as long as `data`.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn start_receive<T: Pod>(
        &self,
        from: impl Into<Source>,
        tag: impl Into<Tag>,
        data: Vec<T>,
    ) -> Result<Request<T>> {
        let wanted = self.wanted("start_receive", from.into(), tag.into())?;
        Request::receive(self, wanted, data)
    }

    /// Sends and receives with slices that are lent until the scope ends; it ends when all of them are over.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let (rank, size) = (world.rank(), world.size());
    /// let (left, right) = ((rank + size - 1) % size, (rank + 1) % size);
    /// let (to_left, to_right) = ([rank; 3], [rank + 100; 3]);
    /// let (mut from_left, mut from_right) = ([0; 3], [0; 3]);
    /// world.scope(|scope| {
    ///     scope.receive(left, 1, &mut from_left)?;
    ///     scope.receive(right, 2, &mut from_right)?;
    ///     scope.send(right, 1, &to_right)?;
    ///     scope.send(left, 2, &to_left)?;
    ///     Ok(()) // compute meanwhile what needs none of the four
    /// })?;
    /// assert_eq!((from_left, from_right), ([left + 100; 3], [right; 3]));
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// That of `act`, else the first of its operations'.
    pub fn scope<'env, R>(
        &self,
        act: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> Result<R>,
    ) -> Result<R> {
        self.scope_in(self.context, act)
    }

    pub(crate) fn scope_in<'env, R>(
        &self,
        context: Context,
        act: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> Result<R>,
    ) -> Result<R> {
        let scope = Scope::new(self, context);
        let result = act(&scope)?;
        scope.end()?;
        Ok(result)
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Communicator")
            .field("rank", &self.rank)
            .field("ranks", &self.ranks)
            .finish_non_exhaustive()
    }
}

/// `a receive from rank 3 (vm2) with tag 7`
pub(crate) struct Described<'a> {
    pub(crate) what: &'static str,
    pub(crate) peer: Option<u32>,
    pub(crate) tag: Tag,
    pub(crate) world: &'a World,
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, tag, .. } = self;
        let way = if *what == "a send" { "to" } else { "from" };
        match self.peer {
            Some(peer) => write!(f, "{what} {way} rank {peer} ({}) {tag}", self.world.node_of(peer)),
            None => write!(f, "{what} {way} any rank {tag}"),
        }
    }
}

/// Lends memory to an operation that is waited for before the borrow ends.
#[expect(unsafe_code, reason = "the borrow is longer than the operation")]
pub(crate) fn lend(bytes: &[u8]) -> Lent {
    // SAFETY: `World::wait` ends or forgets the operation before its caller returns, and the caller holds the borrow. It does
    // not unwind in between: nothing of the program's runs there.
    unsafe { Lent::new(bytes) }
}

#[expect(unsafe_code, reason = "the borrow is longer than the operation")]
pub(crate) fn lend_mut(bytes: &mut [u8]) -> LentMut {
    // SAFETY: as in `lend`.
    unsafe { LentMut::new(bytes) }
}
