//! A binomial tree: in each round everyone who has the data gives it to one more. Long data goes in pieces, so that a rank
//! hands on the first while the next comes.

use bytemuck::Pod;

use crate::collectives::Round;
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
    /// As [`send`](Self::send), and [`Error::Lengths`](crate::Error::Lengths).
    pub fn broadcast<T: Pod>(&self, root: u32, data: &mut [T]) -> Result<()> {
        self.job_rank("broadcast", root)?;
        let round = Round::of(self);
        let size = round.size();
        // Counted from the root, parents are lower.
        let place = (round.rank() + size - root) % size;
        let rank = |place: u32| (place + root) % size;
        let lowest = if place == 0 { size.next_power_of_two() } else { place & place.wrapping_neg() };
        let pieces = data.chunks_mut((PIECE / size_of::<T>().max(1)).max(1));
        for piece in pieces {
            if place != 0 {
                round.receive("broadcast", rank(place - lowest), piece)?;
            }
            let mut distance = lowest / 2;
            while distance > 0 {
                if place + distance < size {
                    round.send(rank(place + distance), piece)?;
                }
                distance /= 2;
            }
        }
        Ok(())
    }
}
