//! What the ranks of a step agree on before they meet.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::error::Result;
use crate::resolve::NodeAddresses;

/// How long to wait, and where to meet. The same for every rank but for `card`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// How long joining may take. Default 60 s.
    pub join: Duration,
    /// How long a collective waits for its last rank. Default 300 s.
    pub collective: Duration,
    /// How long a caller may take to prove who it is. Default 5 s.
    pub handshake: Duration,
    /// How long a process that others wait for may be stopped (SIGSTOP, a debugger). Default 10 s. While all ranks are
    /// stopped, as by `scontrol suspend`, no time counts.
    pub stopped: Duration,
    /// How long a node's leader may be silent: it is stopped, or its node hangs. A node that is gone, or whose network is,
    /// is noticed sooner. Default 10 s.
    pub silence: Duration,
    /// The TCP ports that a node's leader may listen on. Default 49152-65535 (RFC 6335's dynamic ports); a firewall
    /// between compute nodes must let them through.
    pub ports: RangeInclusive<u16>,
    /// Where nodes are reached. Default: as `ROCE_NODE_ADDRS` says, else by their names.
    pub addresses: Option<NodeAddresses>,
    /// What this rank tells every other while joining, at most 4 KiB: [`Bootstrap::card_of`](crate::Bootstrap::card_of).
    pub card: Vec<u8>,
}

impl Options {
    /// Where nodes are reached.
    pub(crate) fn addresses(&self) -> Result<NodeAddresses> {
        self.addresses.clone().map_or_else(NodeAddresses::from_environment, Ok)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            join: Duration::from_secs(60),
            collective: Duration::from_secs(300),
            handshake: Duration::from_secs(5),
            stopped: Duration::from_secs(10),
            silence: Duration::from_secs(10),
            ports: 49_152..=65_535,
            addresses: None,
            card: Vec::new(),
        }
    }
}
