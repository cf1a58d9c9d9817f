//! Within a node through memory: short data is combined by everyone, long data in slices. Between nodes short data by recursive
//! doubling, ceil(log2 ranks) exchanges of all of it; of long data each rank reduces one part for all, then they exchange the
//! parts: everyone sends and receives less than twice the data, whatever the ranks.
//!
//! Who combines with whom, and in which order, depends on ranks, nodes and length only.

use bytemuck::Pod;

use crate::collectives::choose::{Algorithm, Choice, Collective};
use crate::collectives::local::Local;
use crate::collectives::node::Way;
use crate::collectives::round::Team;
use crate::collectives::{Operator, call, zeros};
use crate::error::Result;
use crate::messages::Communicator;

impl Communicator {
    /// Combines all ranks' elements, place by place; every rank gets the result in `data`.
    ///
    /// ```
    /// use roce_launcher::Max;
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let mut residual = [0.5 + f64::from(world.rank())];
    /// world.all_reduce(&mut residual, Max)?;
    /// assert_eq!(residual, [0.5 + f64::from(world.size() - 1)]);
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast). What is in `data` then, is not said.
    #[expect(clippy::needless_pass_by_value, reason = "operators have no size, and read better so")]
    pub fn all_reduce<T: Pod>(&self, data: &mut [T], operator: impl Operator<T>) -> Result<()> {
        self.collective(call::<T>("all_reduce", None, data.len()), |round| {
            let choice = self.nodes.choose::<T>(Collective::AllReduce, data.len());
            if choice.shared_memory {
                through_memory(&self.nodes.enter(round)?, choice, data, &operator)
            } else {
                choice.messages.map_or(Ok(()), |way| by_messages(&round.everyone(), way, data, &operator))
            }
        })
    }
}

fn through_memory<T: Pod>(
    local: &Local<'_>,
    choice: Choice,
    data: &mut [T],
    operator: &impl Operator<T>,
) -> Result<()> {
    let bytes = size_of_val(data);
    let leads = local.place() == 0;
    let mut steps = 0;
    if local.all_read(choice, bytes) {
        local.post(Way::Up, data)?;
        return local.fold(data, operator);
    }
    if local.is_little(bytes) {
        if leads {
            local.fold(data, operator)?;
        } else {
            local.post(Way::Up, data)?;
        }
    } else {
        steps = local.fold_slices(data, operator, leads || choice.messages.is_none())?;
        if choice.messages.is_none() {
            return Ok(());
        }
    }
    if let Some(way) = choice.messages.filter(|_| leads) {
        by_messages(&local.speakers(None).0, way, data, operator)?;
    }
    local.spread(0, data, steps)?;
    local.all_are_here();
    Ok(())
}

/// Every rank of the team gets the same, to the last bit.
fn by_messages<T: Pod>(
    team: &Team<'_>,
    way: Algorithm,
    data: &mut [T],
    operator: &impl Operator<T>,
) -> Result<()> {
    match way {
        Algorithm::Ring => ring(team, data, operator),
        Algorithm::Halving => halving(team, data, operator),
        _ => doubling(team, data, operator),
    }
}

/// A power of two of ranks takes part; the first few stand for two, themselves and the one behind them.
struct Half {
    /// Among those who take part, of which there are so many.
    place: u32,
    taking_part: u32,
    doubled: u32,
}

impl Half {
    /// Combines what those give who don't take part: they get `None`.
    fn enter<T: Pod>(team: &Team<'_>, data: &mut [T], operator: &impl Operator<T>) -> Result<Option<Self>> {
        let (rank, size) = (team.rank(), team.size());
        let taking_part = 1 << size.ilog2();
        let doubled = size - taking_part;
        if rank >= 2 * doubled {
            return Ok(Some(Self { place: rank - doubled, taking_part, doubled }));
        }
        if rank % 2 == 1 {
            team.send(rank - 1, data)?;
            return Ok(None);
        }
        let mut others = zeros(data.len());
        team.receive(rank + 1, &mut others)?;
        operator.combine(data, &others);
        Ok(Some(Self { place: rank / 2, taking_part, doubled }))
    }

    fn rank_at(&self, place: u32) -> u32 {
        if place < self.doubled { 2 * place } else { place + self.doubled }
    }

    /// Gives the result to those who did not take part.
    fn leave<T: Pod>(half: Option<Self>, team: &Team<'_>, data: &mut [T]) -> Result<()> {
        let rank = team.rank();
        match half {
            Some(half) if half.place < half.doubled => team.send(rank + 1, data),
            Some(_) => Ok(()),
            None => team.receive(rank - 1, data),
        }
    }
}

fn doubling<T: Pod>(team: &Team<'_>, data: &mut [T], operator: &impl Operator<T>) -> Result<()> {
    let half = Half::enter(team, data, operator)?;
    if let Some(half) = &half {
        let mut others = zeros(data.len());
        let mut distance = 1;
        while distance < half.taking_part {
            let peer = half.rank_at(half.place ^ distance);
            team.exchange(peer, data, peer, &mut others)?;
            combine_in_order(half.place & distance == 0, data, &mut others, operator);
            distance *= 2;
        }
    }
    Half::leave(half, team, data)
}

/// Both sides of an exchange combine in one order: rounding is not commutative for every operator.
fn combine_in_order<T: Pod>(is_lower: bool, own: &mut [T], others: &mut [T], operator: &impl Operator<T>) {
    if is_lower {
        operator.combine(own, others);
    } else {
        operator.combine(others, own);
        own.copy_from_slice(others);
    }
}

/// Rabenseifner's: each rank reduces one part for all, which it gets by exchanging halves, then quarters, and so on; then they give
/// each other the parts on the same ways back.
fn halving<T: Pod>(team: &Team<'_>, data: &mut [T], operator: &impl Operator<T>) -> Result<()> {
    let half = Half::enter(team, data, operator)?;
    if let Some(half) = &half {
        let mut others = zeros(data.len().div_ceil(2));
        let mut own = 0..data.len();
        let mut ways = Vec::new();
        let mut distance = half.taking_part / 2;
        while distance > 0 {
            let middle = own.start + own.len() / 2;
            let (lower, upper) = (own.start..middle, middle..own.end);
            let is_lower = half.place & distance == 0;
            let (kept, given) = if is_lower { (lower, upper) } else { (upper, lower) };
            let peer = half.rank_at(half.place ^ distance);
            let room = &mut others[..kept.len()];
            team.exchange(peer, &data[given.clone()], peer, room)?;
            combine_in_order(is_lower, &mut data[kept.clone()], room, operator);
            ways.push((peer, given, kept.clone()));
            own = kept;
            distance /= 2;
        }
        for (peer, given, kept) in ways.into_iter().rev() {
            let room = &mut others[..given.len()];
            team.exchange(peer, &data[kept], peer, room)?;
            data[given].copy_from_slice(room);
        }
    }
    Half::leave(half, team, data)
}

/// Each rank reduces one part for all, which goes around; then the parts go around.
fn ring<T: Pod>(team: &Team<'_>, data: &mut [T], operator: &impl Operator<T>) -> Result<()> {
    let (size, length) = (team.size() as usize, data.len());
    let rank = team.rank() as usize;
    let part = |number: usize| {
        let number = number % size;
        number * length / size..(number + 1) * length / size
    };
    let (right, left) = (team.after(1), team.before(1));
    let mut incoming = zeros(length.div_ceil(size));
    // Part k starts at rank k and goes around; it is whole at rank k - 1.
    for step in 0..size - 1 {
        let (outgoing, coming) = (part(rank + size - step), part(rank + size - step - 1));
        let room = &mut incoming[..coming.len()];
        team.exchange(right, &data[outgoing], left, room)?;
        operator.combine(room, &data[coming.clone()]);
        data[coming].copy_from_slice(room);
    }
    for step in 0..size - 1 {
        let (outgoing, coming) = (part(rank + 1 + size - step), part(rank + size - step));
        let room = &mut incoming[..coming.len()];
        team.exchange(right, &data[outgoing], left, room)?;
        data[coming].copy_from_slice(room);
    }
    Ok(())
}
