//! The exchange of `roce-bootstrap`: everyone's bytes come with joining.

use anyhow::{Context, Result};
use roce_bootstrap::{Bootstrap, Identity, Options, Secret};

use crate::{Exchange, Known, LENGTH, Network, bytes_of};

pub(crate) struct Ours {
    joined: Option<Bootstrap>,
}

impl Ours {
    pub(crate) fn new() -> Self {
        Self { joined: None }
    }
}

impl Exchange for Ours {
    /// What `Bootstrap::init` does, with a look at the rank in between, on which the bytes depend here.
    fn run(&mut self) -> Result<Known> {
        let identity = Identity::discover()?;
        let secret = Secret::take_from_environment()?;
        let card = bytes_of(identity.rank as usize).to_vec();
        let options = Options { card, ..Options::default() };
        let joined = self.joined.insert(Bootstrap::join(identity, secret.as_ref(), &options)?);
        let mut bytes = Vec::with_capacity(joined.size() as usize * LENGTH);
        for rank in 0..joined.size() {
            bytes.extend_from_slice(
                joined.card_of(rank).with_context(|| format!("rank {rank} told nothing"))?,
            );
        }
        let (rank, size) = (joined.rank() as usize, joined.size() as usize);
        Ok(Known { rank, size, bytes: Some(bytes) })
    }

    fn network(&self) -> Option<Network> {
        let counters = self.joined.as_ref()?.counters();
        let connections = counters.connections_made + counters.connections_accepted;
        Some(Network { rounds: counters.rounds, connections })
    }

    fn end(self: Box<Self>) -> Result<()> {
        if let Some(joined) = self.joined {
            joined.leave()?;
        }
        Ok(())
    }
}
