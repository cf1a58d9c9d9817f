//! Within a node everyone shows that it has come. Between nodes dissemination: after round k a rank knows that the 2^(k+1) ranks up
//! to itself have come.

use crate::collectives::choose::Collective;
use crate::collectives::local::Local;
use crate::collectives::node::Way;
use crate::collectives::round::Team;
use crate::collectives::{Choice, call};
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
    /// As [`send`](Self::send), and [`Error::InCollective`](crate::Error::InCollective) where another rank failed or called
    /// something else.
    pub fn barrier(&self) -> Result<()> {
        self.collective(call::<u8>("barrier", None, 0), |round| {
            let choice = self.nodes.choose::<u8>(Collective::Barrier, 0);
            if choice.shared_memory {
                through_memory(&self.nodes.enter(round)?, choice)
            } else {
                dissemination(&round.everyone())
            }
        })
    }
}

fn through_memory(local: &Local<'_>, choice: Choice) -> Result<()> {
    local.post::<u8>(Way::Up, &[])?;
    if local.all_read(choice, 0) {
        return local.all_posted();
    }
    if local.place() == 0 {
        local.all_posted()?;
        if choice.messages.is_some() {
            dissemination(&local.speakers(None).0)?;
        }
    }
    local.spread::<u8>(0, &mut [], 0)?;
    local.all_are_here();
    Ok(())
}

pub(super) fn dissemination(team: &Team<'_>) -> Result<()> {
    let mut distance = 1;
    while distance < team.size() {
        team.exchange::<u8>(team.after(distance), &[], team.before(distance), &mut [])?;
        distance *= 2;
    }
    Ok(())
}
