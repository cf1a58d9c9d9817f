//! What the ranks of one node do in one round through the memory that they share.
//!
//! What a rank may read is what others have [posted](Memory::post) or made [progress](Memory::progress) with in this round. It may
//! write to a place of its own when nobody reads there any more: that is so when all have *finished* the round in which it was
//! last written. In most collectives a rank sees the others come; who has come has finished all rounds before.

use std::fmt;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::thread;

use bytemuck::Pod;

use crate::collectives::choose::Choice;
use crate::collectives::node::{Memory, Posted, SHORT, Way};
use crate::collectives::nodes::Nodes;
use crate::collectives::round::{Round, Team};
use crate::collectives::{Operator, zeros};
use crate::error::{Error, Result};

/// So often a rank looks for what it waits for before it does anything else, where each rank of the node has a CPU.
const SPINS: u32 = 2000;
/// So often it then lets others have its CPU, before it looks for news too.
const TURNS: u32 = 200;
/// Up to so many ranks of a node look at what each of them gives; if there are more, one does and tells the others.
const FEW: usize = 16;
/// Up to so many bytes of all ranks of a node together each rank reads all of them.
const LITTLE: usize = 64 << 10;
/// Elements are combined in blocks of so many bytes, which stay in a core's first cache.
const BLOCK: usize = 8 << 10;
/// Steps of one round, in a word beside its number.
const STEPS: u64 = 1 << 24;

/// What ranks of one node do in one round.
pub(super) struct Local<'a> {
    pub(super) nodes: &'a Nodes,
    pub(super) memory: &'a Memory,
    pub(super) round: &'a Round<'a>,
}

impl Drop for Local<'_> {
    /// Whatever became of it, this rank reads nothing of this round any more.
    fn drop(&mut self) {
        self.nodes.finish(self.memory, self.round.number);
    }
}

struct What<'a>(&'a Round<'a>);

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with the ranks of its node", self.0.what)
    }
}

impl<'a> Local<'a> {
    fn size(&self) -> usize {
        self.nodes.here.len()
    }

    pub(super) fn place(&self) -> usize {
        self.nodes.place
    }

    /// The place on this node of the rank that sends messages to other nodes: the leader, or `root` where that is here.
    pub(super) fn speaker(&self, root: Option<u32>) -> usize {
        root.and_then(|root| self.nodes.here.iter().position(|rank| *rank == root)).unwrap_or(0)
    }

    /// One rank of each node, to send messages, and the place of `root`'s node among them. Of this node it is the speaker, which
    /// must be this rank.
    pub(super) fn speakers(&self, root: Option<u32>) -> (Team<'a>, u32) {
        let nodes = self.nodes;
        let node = root.map_or(0, |root| nodes.node_of[root as usize]);
        let mut leaders = Rc::clone(&nodes.leaders);
        if let Some(root) = root
            && leaders[node as usize] != root
        {
            let mut changed = leaders.to_vec();
            changed[node as usize] = root;
            leaders = changed.into();
        }
        let own = nodes.node_of[self.round.communicator.rank() as usize];
        (self.round.team(leaders, own as usize), node)
    }

    /// Whether every rank of the node should read what each of them gives.
    pub(super) fn all_read(&self, choice: Choice, bytes: usize) -> bool {
        choice.messages.is_none() && self.size() <= FEW && self.is_little(bytes)
    }

    /// Whether so many bytes of each rank go in one piece.
    pub(super) fn is_little(&self, bytes: usize) -> bool {
        bytes <= SHORT || bytes <= self.memory.half() && bytes * self.size() <= LITTLE
    }

    #[inline]
    fn wait<R>(&self, place: usize, mut ready: impl FnMut() -> Option<R>) -> Result<R> {
        let spins = if self.nodes.is_crowded(self.memory) { 1 } else { SPINS };
        for _ in 0..spins {
            if let Some(found) = ready() {
                return Ok(found);
            }
            std::hint::spin_loop();
        }
        self.wait_long(place, ready)
    }

    #[cold]
    fn wait_long<R>(&self, place: usize, mut ready: impl FnMut() -> Option<R>) -> Result<R> {
        let communicator = self.round.communicator;
        let world = &communicator.world;
        for _ in 0..TURNS {
            thread::yield_now();
            if let Some(found) = ready() {
                return Ok(found);
            }
            // Others may wait for a message of this rank.
            world.progress();
        }
        world.awaited.set(communicator.rank_in_job(self.nodes.here[place]));
        world.wait_until(&What(self.round), |_| ready())
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let own = self.place();
        (0..self.size()).filter(move |place| *place != own)
    }

    /// Waits until nobody reads any more what this rank has written to its cells and halves of even or odd rounds, which it
    /// will write to.
    fn claim(&self, parity: usize) -> Result<()> {
        let written = self.nodes.written[parity].replace(self.round.number);
        // Within a round the steps say who has read what.
        if written < self.round.number && written >= self.nodes.past.get() {
            for place in self.others() {
                let finished = self.memory.finished(place);
                self.wait(place, || (finished.load(Ordering::Acquire) >= written).then_some(()))?;
            }
        }
        Ok(())
    }

    fn claim_both(&self) -> Result<()> {
        self.claim(0)?;
        self.claim(1)
    }

    /// Shows the others of the node something.
    pub(super) fn post<T: Pod>(&self, way: Way, data: &[T]) -> Result<()> {
        let Round { number, signature, .. } = *self.round;
        self.claim((number % 2) as usize)?;
        self.memory.post(self.place(), way, number, signature, bytemuck::cast_slice(data));
        Ok(())
    }

    /// Waits for what a rank of the node shows.
    fn posted(&self, place: usize, way: Way) -> Result<Posted> {
        let posted = self.wait(place, || self.memory.posted(place, way, self.round.number))?;
        if posted.signature != self.round.signature {
            let communicator = self.round.communicator;
            let rank = communicator.job_rank(self.round.what, self.nodes.here[place])?;
            return Err(communicator.world.differs(rank));
        }
        Ok(posted)
    }

    /// Takes what a rank of the node shows, all of it.
    pub(super) fn take<T: Pod>(&self, place: usize, way: Way, data: &mut [T]) -> Result<()> {
        let posted = self.posted(place, way)?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(data);
        if posted.length != bytes.len() {
            let problem = format!("{} bytes are there instead of {}", posted.length, bytes.len());
            return Err(Error::Lengths { what: self.round.what, problem });
        }
        self.memory.take(place, way, self.round.number, bytes);
        Ok(())
    }

    /// Waits until all ranks of the node have shown something.
    pub(super) fn all_posted(&self) -> Result<()> {
        self.others().try_for_each(|place| self.posted(place, Way::Up).map(|_| ()))?;
        self.all_are_here();
        Ok(())
    }

    /// To be called when all ranks of the node are known to be in this round: they have finished those before.
    pub(super) fn all_are_here(&self) {
        self.nodes.past.set(self.round.number);
    }

    /// What all ranks of the node give, in their order, for those who want it; and the number of steps that it took.
    pub(super) fn collect<T: Pod>(&self, data: &[T], wanted: bool) -> Result<(Vec<T>, u64)> {
        let (own, length) = (self.place(), data.len());
        let mut all = zeros(if wanted { length * self.size() } else { 0 });
        let mut parts: Vec<&mut [T]> = all.chunks_exact_mut(length.max(1)).collect();
        if let Some(part) = parts.get_mut(own) {
            part.copy_from_slice(data);
        }
        if self.is_little(size_of_val(data)) {
            self.post(Way::Up, data)?;
            if wanted {
                self.all_posted()?;
                let others = self.others().filter(|_| length > 0);
                others.into_iter().try_for_each(|place| self.take(place, Way::Up, parts[place]))?;
            }
            return Ok((all, 0));
        }
        self.post::<u8>(Way::Up, &[])?;
        self.all_posted()?;
        self.claim_both()?;
        let most = self.piece::<T>();
        let mut step = 0;
        for start in (0..length).step_by(most) {
            let piece = start..length.min(start + most);
            // The others have read what was here: they have come to the step before, each after it had read.
            self.memory.write(own, step, 0, bytemuck::cast_slice(&data[piece.clone()]));
            step += 1;
            self.tell_progress(step);
            self.wait_for_all(step)?;
            for (place, part) in parts.iter_mut().enumerate().filter(|(place, _)| *place != own) {
                self.memory.read(place, step - 1, 0, bytemuck::cast_slice_mut(&mut part[piece.clone()]));
            }
        }
        Ok((all, step + 1))
    }

    /// How many ranks each node has.
    pub(super) fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.nodes.leaders.len()];
        self.nodes.node_of.iter().for_each(|node| counts[*node as usize] += 1);
        counts
    }

    /// Puts so many elements of each rank, which are there node by node, into the order of ranks.
    pub(super) fn by_rank<T: Pod>(&self, all: &[T], each: usize) -> Vec<T> {
        let counts = self.counts();
        let mut next: Vec<usize> = Vec::with_capacity(counts.len());
        counts.iter().fold(0, |before, count| {
            next.push(before);
            before + count
        });
        let mut result = Vec::with_capacity(all.len());
        for node in &self.nodes.node_of {
            let place = &mut next[*node as usize];
            result.extend_from_slice(&all[*place * each..(*place + 1) * each]);
            *place += 1;
        }
        result
    }

    /// Combines what all ranks of the node have shown, in their order.
    pub(super) fn fold<T: Pod>(&self, data: &mut [T], operator: &impl Operator<T>) -> Result<()> {
        // Of the first rank it is here already.
        if self.place() > 0 {
            self.take(0, Way::Up, data)?;
        }
        with_room(data.len(), |room| -> Result<()> {
            for place in 1..self.size() {
                self.take(place, Way::Up, room)?;
                operator.combine(data, room);
            }
            Ok(())
        })?;
        self.all_are_here();
        Ok(())
    }

    fn tell_progress(&self, step: u64) {
        let progress = self.round.number * STEPS + step;
        self.memory.progress(self.place()).store(progress, Ordering::Release);
    }

    fn wait_for_progress(&self, place: usize, step: u64) -> Result<()> {
        let (progress, wanted) = (self.memory.progress(place), self.round.number * STEPS + step);
        self.wait(place, || (progress.load(Ordering::Acquire) >= wanted).then_some(()))
    }

    fn wait_for_all(&self, step: u64) -> Result<()> {
        self.others().try_for_each(|place| self.wait_for_progress(place, step))
    }

    /// Elements that fit into a half.
    fn piece<T>(&self) -> usize {
        (self.memory.half() / size_of::<T>().max(1)).max(1)
    }

    /// Combines long data of all ranks of the node, each rank a slice of every piece. Those get the result in `data` who
    /// say so. Gives the number of steps that it took.
    ///
    /// In a step a rank combines its slice of one piece while the piece before is taken and the next is given. A slice is combined
    /// in the order of ranks: from its own rank's memory, and from what the others have given. The result lies where the
    /// rank would have given its own slice.
    pub(super) fn fold_slices<T: Pod>(
        &self,
        data: &mut [T],
        operator: &impl Operator<T>,
        wanted: bool,
    ) -> Result<u64> {
        self.post::<u8>(Way::Up, &[])?;
        self.all_posted()?;
        self.claim_both()?;
        let (own, ranks, element) = (self.place(), self.size(), size_of::<T>());
        // Each slice has a place of its own in a half, wherever it is in a piece: the last piece is shorter.
        let slot = (self.piece::<T>() / ranks).max(1);
        let most = slot * ranks;
        let pieces = data.len().div_ceil(most);
        let length = data.len();
        let piece = |number: usize| number * most..length.min((number + 1) * most);
        let slice = |length: usize, rank: usize| rank * length / ranks..(rank + 1) * length / ranks;
        let block = (BLOCK / element.max(1)).clamp(1, most);
        let (mut sum, mut theirs) = (zeros::<T>(block), zeros::<T>(block));
        // What others combine of a piece of this rank's.
        let give = |data: &[T], number: usize| {
            let piece = &data[piece(number)];
            for rank in self.others() {
                let slice = slice(piece.len(), rank);
                let bytes = bytemuck::cast_slice(&piece[slice]);
                self.memory.write(own, number as u64, rank * slot * element, bytes);
            }
        };
        let mut combine = |data: &mut [T], number: usize| {
            let piece = &mut data[piece(number)];
            let slice = slice(piece.len(), own);
            for start in slice.clone().step_by(block) {
                let end = slice.end.min(start + block);
                let (sum, theirs) = (&mut sum[..end - start], &mut theirs[..end - start]);
                let offset = (own * slot + start - slice.start) * element;
                let block = &mut piece[start..end];
                let read = |rank: usize, into: &mut [T]| {
                    self.memory.read(rank, number as u64, offset, bytemuck::cast_slice_mut(into));
                };
                // In the order of ranks: this one's are where the sum is to be.
                if own > 0 {
                    read(0, sum);
                    for rank in 1..own {
                        read(rank, theirs);
                        operator.combine(sum, theirs);
                    }
                    operator.combine(sum, block);
                    block.copy_from_slice(sum);
                }
                for rank in own + 1..ranks {
                    read(rank, theirs);
                    operator.combine(block, theirs);
                }
                self.memory.write(own, number as u64, offset, bytemuck::cast_slice(block));
            }
        };
        let take = |data: &mut [T], number: usize| {
            let piece = &mut data[piece(number)];
            for rank in self.others() {
                let slice = slice(piece.len(), rank);
                let offset = rank * slot * element;
                self.memory.read(rank, number as u64, offset, bytemuck::cast_slice_mut(&mut piece[slice]));
            }
        };
        for step in 0..=pieces {
            if step == 0 {
                give(data, 0);
                self.tell_progress(1);
            }
            self.wait_for_all(step as u64 + 1)?;
            if wanted && step > 0 {
                take(data, step - 1);
            }
            if step < pieces {
                combine(data, step);
            }
            if step + 1 < pieces {
                give(data, step + 1);
            }
            self.tell_progress(step as u64 + 2);
        }
        // Who still takes the last piece reads of halves that are written to again only after another round, or in `spread`.
        Ok(pieces as u64 + 2)
    }

    /// Gives what one rank of the node has to the others. `steps` have been taken in this round before.
    pub(super) fn spread<T: Pod>(&self, from: usize, data: &mut [T], steps: u64) -> Result<()> {
        let is_own = from == self.place();
        if self.is_little(size_of_val(data)) {
            return if is_own { self.post(Way::Down, data) } else { self.take(from, Way::Down, data) };
        }
        // The length is said first.
        if is_own {
            self.claim_both()?;
            self.memory.post(from, Way::Down, self.round.number, self.round.signature, &[]);
        } else {
            self.posted(from, Way::Down)?;
        }
        let pieces = data.chunks_mut((self.piece::<T>() / 2).max(1));
        for (step, piece) in (steps..).zip(pieces) {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(piece);
            if is_own {
                if step >= steps + 2 {
                    self.wait_for_all(step - 1)?;
                }
                self.memory.write(from, step, 0, bytes);
            } else {
                self.wait_for_progress(from, step + 1)?;
                self.memory.read(from, step, 0, bytes);
            }
            self.tell_progress(step + 1);
        }
        Ok(())
    }
}

/// Lends room for so many elements: without asking for memory where they are few.
fn with_room<T: Pod, R>(length: usize, act: impl FnOnce(&mut [T]) -> R) -> R {
    #[repr(align(64))]
    struct Room([u8; SHORT]);
    let mut room = Room([0; SHORT]);
    let bytes = length.saturating_mul(size_of::<T>());
    match room.0.get_mut(..bytes).map(bytemuck::try_cast_slice_mut) {
        Some(Ok(room)) if room.len() == length => act(room),
        _ => act(&mut zeros(length)),
    }
}
