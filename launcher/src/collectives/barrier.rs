//! Dissemination: after round k a rank knows that the 2^(k+1) ranks up to itself have come.

use crate::collectives::Round;
use crate::error::Result;
use crate::messages::Communicator;

impl Communicator {
    /// Returns when every rank has called it.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// job.world().barrier()?;
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn barrier(&self) -> Result<()> {
        let round = Round::of(self);
        let mut distance = 1;
        while distance < round.size() {
            round.exchange::<u8>("barrier", round.after(distance), &[], round.before(distance), &mut [])?;
            distance *= 2;
        }
        Ok(())
    }
}
