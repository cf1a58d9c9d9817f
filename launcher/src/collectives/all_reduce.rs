//! Short data: recursive doubling, ceil(log2 ranks) exchanges of all of it. Long data: each rank reduces one part for all
//! (ring), then they exchange the parts (ring): everyone sends and receives less than twice the data, whatever the ranks.

use bytemuck::Pod;

use crate::collectives::{Operator, Round, zeros};
use crate::error::Result;
use crate::messages::Communicator;

/// From so many bytes on data is long.
const LONG: usize = 32 * 1024;

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
    /// As [`send`](Self::send), and [`Error::Lengths`](crate::Error::Lengths).
    #[expect(clippy::needless_pass_by_value, reason = "operators have no size, and read better so")]
    pub fn all_reduce<T: Pod>(&self, data: &mut [T], operator: impl Operator<T>) -> Result<()> {
        let round = Round::of(self);
        if round.size() == 1 {
            return Ok(());
        }
        let is_long = size_of_val(data) >= LONG && data.len() >= round.size() as usize;
        if is_long { ring(&round, data, &operator) } else { doubling(&round, data, &operator) }
    }
}

fn doubling<T: Pod>(round: &Round<'_>, data: &mut [T], operator: &impl Operator<T>) -> Result<()> {
    const WHAT: &str = "all_reduce";
    let (rank, size) = (round.rank(), round.size());
    // A power of two of ranks takes part; the first few stand for two, themselves and the one behind them.
    let taking_part = 1 << size.ilog2();
    let doubled = size - taking_part;
    let mut others = zeros(data.len());
    let place = if rank < 2 * doubled {
        if rank % 2 == 1 {
            round.send(rank - 1, data)?;
            return round.receive(WHAT, rank - 1, data);
        }
        round.receive(WHAT, rank + 1, &mut others)?;
        operator.combine(data, &others);
        rank / 2
    } else {
        rank - doubled
    };
    let rank_at = |place: u32| if place < doubled { 2 * place } else { place + doubled };
    let mut distance = 1;
    while distance < taking_part {
        let peer = rank_at(place ^ distance);
        round.exchange(WHAT, peer, data, peer, &mut others)?;
        if place & distance == 0 {
            operator.combine(data, &others);
        } else {
            // Both sides combine in one order: rounding is not commutative for every operator.
            operator.combine(&mut others, data);
            data.copy_from_slice(&others);
        }
        distance *= 2;
    }
    if rank < 2 * doubled { round.send(rank + 1, data) } else { Ok(()) }
}

fn ring<T: Pod>(round: &Round<'_>, data: &mut [T], operator: &impl Operator<T>) -> Result<()> {
    const WHAT: &str = "all_reduce";
    let (size, length) = (round.size() as usize, data.len());
    let rank = round.rank() as usize;
    let part = |number: usize| {
        let number = number % size;
        number * length / size..(number + 1) * length / size
    };
    let (right, left) = (round.after(1), round.before(1));
    let mut incoming = zeros(length.div_ceil(size));
    // Part k starts at rank k and goes around; it is whole at rank k - 1.
    for step in 0..size - 1 {
        let (outgoing, coming) = (part(rank + size - step), part(rank + size - step - 1));
        let room = &mut incoming[..coming.len()];
        round.exchange(WHAT, right, &data[outgoing], left, room)?;
        operator.combine(room, &data[coming.clone()]);
        data[coming].copy_from_slice(room);
    }
    for step in 0..size - 1 {
        let (outgoing, coming) = (part(rank + 1 + size - step), part(rank + size - step));
        let room = &mut incoming[..coming.len()];
        round.exchange(WHAT, right, &data[outgoing], left, room)?;
        data[coming].copy_from_slice(room);
    }
    Ok(())
}
