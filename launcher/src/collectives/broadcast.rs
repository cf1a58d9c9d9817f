//! A binomial tree: in each round everyone who has the data gives it to one more. Or a chain. Long data goes in pieces, so that a
//! rank hands on the first while the next comes.

use bytemuck::Pod;

use crate::collectives::call;
use crate::collectives::choose::{Algorithm, Collective};
use crate::collectives::round::Team;
use crate::error::Result;
use crate::messages::Communicator;

/// Bytes of a piece.
const PIECE: usize = 128 * 1024;

impl Communicator {
    /// Gives every rank what `data` is on rank `root`; its length must be the same everywhere.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let mut sizes = if world.rank() == 0 { [640, 480] } else { [0; 2] };
    /// world.broadcast(0, &mut sizes)?;
    /// assert_eq!(sizes, [640, 480]);
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier), and [`Error::Lengths`](crate::Error::Lengths). A rank that needs no other to get its part
    /// done may not hear that another one failed.
    pub fn broadcast<T: Pod>(&self, root: u32, data: &mut [T]) -> Result<()> {
        self.collective(call::<T>("broadcast", Some(root), data.len()), |round| {
            let choice = self.nodes.choose::<T>(Collective::Broadcast, data.len());
            if !choice.shared_memory {
                return choice.messages.map_or(Ok(()), |way| by_messages(&round.everyone(), way, root, data));
            }
            let local = self.nodes.enter(round)?;
            let speaker = local.speaker(Some(root));
            if let Some(way) = choice.messages.filter(|_| speaker == local.place()) {
                let (speakers, root) = local.speakers(Some(root));
                by_messages(&speakers, way, root, data)?;
            }
            local.spread(speaker, data, 0)
        })
    }
}

fn by_messages<T: Pod>(team: &Team<'_>, way: Algorithm, root: u32, data: &mut [T]) -> Result<()> {
    let size = team.size();
    // Counted from the root, those who give are lower.
    let place = (team.rank() + size - root) % size;
    let rank = |place: u32| (place + root) % size;
    let lowest = if place == 0 { size.next_power_of_two() } else { place & place.wrapping_neg() };
    let (from, to): (u32, Vec<u32>) = match way {
        Algorithm::Chain => (place.wrapping_sub(1), vec![place + 1]),
        _ => {
            let distances = (0..lowest.ilog2()).rev().map(|bit| 1 << bit);
            (place.wrapping_sub(lowest), distances.map(|distance| place + distance).collect())
        }
    };
    // Data of no length has a message too.
    let piece = (PIECE / size_of::<T>().max(1)).max(1);
    for number in 0..data.len().div_ceil(piece).max(1) {
        let end = data.len().min((number + 1) * piece);
        let piece = &mut data[number * piece..end];
        if place != 0 {
            team.receive(rank(from), piece)?;
        }
        to.iter().filter(|to| **to < size).try_for_each(|to| team.send(rank(*to), piece))?;
    }
    Ok(())
}
