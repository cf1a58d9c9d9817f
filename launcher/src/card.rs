//! What a rank tells the others about itself when the job starts, and about its queue pairs when they connect.

use std::fmt;

use roce_types::{Gid, TrafficClass};
use serde::{Deserialize, Serialize};

use crate::assignment::{Assignment, Nic};
use crate::memory_file;
use crate::transport::Cards;

/// One NIC port as the other ranks need to know it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NicCard {
    /// `mlx5_0:1`, for messages.
    pub(crate) port: String,
    gid: [u8; 16],
    pub(crate) rail: Option<u32>,
}

/// One rank.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Card {
    pub(crate) nics: Vec<NicCard>,
    traffic_class: u8,
    service_level: u8,
    /// How messages reach it.
    pub(crate) transports: Cards,
    /// What its environment says about algorithms of collectives.
    pub(crate) algorithms: String,
    /// Where the ranks of its node share memory for collectives, if it leads them; or why not.
    pub(crate) collectives: Option<Result<memory_file::Card, String>>,
}

/// One end of a queue pair, for the rank at the other end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndCard {
    /// Whom it is for.
    pub(crate) peer: u32,
    /// Its NIC, as a place in its rank's list.
    pub(crate) nic: usize,
    pub(crate) qp_number: u32,
    /// The number of the first packet that it will send.
    pub(crate) psn: u32,
    /// The port's active MTU in bytes.
    pub(crate) mtu: u32,
    /// RDMA reads it may have outstanding.
    pub(crate) initiator_depth: u8,
    /// RDMA reads it answers at once.
    pub(crate) responder_depth: u8,
}

impl NicCard {
    pub(crate) fn gid(&self) -> Gid {
        Gid(self.gid)
    }
}

impl From<&Nic> for NicCard {
    fn from(nic: &Nic) -> Self {
        Self { port: nic.port.to_string(), gid: nic.gid.0, rail: nic.rail }
    }
}

/// `rxe0:1 rail 0 GID ::ffff:10.0.0.1`
impl fmt::Display for NicCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rail {
            Some(rail) => write!(f, "{} rail {rail} GID {}", self.port, self.gid()),
            None => write!(f, "{} GID {}", self.port, self.gid()),
        }
    }
}

impl Card {
    pub(crate) fn rails(&self) -> Vec<Option<u32>> {
        self.nics.iter().map(|nic| nic.rail).collect()
    }

    /// `traffic class 106 and service level 3`
    pub(crate) fn class(&self) -> String {
        format!("traffic class {} and service level {}", TrafficClass(self.traffic_class), self.service_level)
    }

    /// Every NIC, for messages.
    pub(crate) fn describe(&self) -> String {
        self.nics.iter().map(NicCard::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl From<&Assignment> for Card {
    fn from(assignment: &Assignment) -> Self {
        Self {
            nics: assignment.nics.iter().map(NicCard::from).collect(),
            traffic_class: assignment.traffic_class.0,
            service_level: assignment.service_level,
            ..Self::default()
        }
    }
}
