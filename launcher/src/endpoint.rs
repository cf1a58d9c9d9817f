//! An opened NIC port of this rank.

use std::path::Path;
use std::sync::Arc;

use roce_types::DevicePort;
use roce_verbs::{Context, Limits, Mtu, ProtectionDomain};

use crate::assignment::Nic;
use crate::error::{Error, Result};

/// A port that was found active, with its GID in the table.
pub(crate) struct Endpoint {
    pub(crate) nic: Nic,
    pub(crate) domain: Arc<ProtectionDomain>,
    pub(crate) limits: Limits,
    /// As it was when it was opened: to look again takes a file for each row of the GID table.
    pub(crate) opened: Now,
    node: String,
}

/// What a port is like at this moment.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    pub(crate) gid_index: u8,
    pub(crate) mtu: Mtu,
}

impl Endpoint {
    /// Opens the port and checks that it can carry traffic. Several ports of one device are opened apart.
    pub(crate) fn open(nic: &Nic, node: &str) -> Result<Self> {
        let cannot =
            |source| Error::Port { port: nic.port.clone(), node: node.to_owned(), source: Box::new(source) };
        let context = Context::open(&nic.port.device).map_err(cannot)?;
        let limits = context.limits().map_err(cannot)?;
        let domain = ProtectionDomain::create(&context).map_err(cannot)?;
        let (nic, node) = (nic.clone(), node.to_owned());
        let opened = now(&nic, &domain, &node)?;
        Ok(Self { nic, domain, limits, opened, node })
    }

    /// Looks again: the port's state and MTU, and the GID's row by its value, for rows move.
    pub(crate) fn now(&self) -> Result<Now> {
        now(&self.nic, &self.domain, &self.node)
    }
}

fn now(nic: &Nic, domain: &ProtectionDomain, node: &str) -> Result<Now> {
    let port: &DevicePort = &nic.port;
    let cannot = |source| Error::Port { port: port.clone(), node: node.to_owned(), source: Box::new(source) };
    let state = domain.context().port(port.port).map_err(cannot)?;
    let problem = match (state.ethernet, state.active) {
        (true, true) => None,
        (false, _) => Some("it is not an Ethernet port, so it speaks no RoCE"),
        (true, false) => Some("it is not active: its netdev is down, or has no carrier"),
    };
    if let Some(problem) = problem {
        return Err(Error::PortState { port: port.clone(), node: node.to_owned(), problem });
    }
    let table = roce_verbs::read_gid_table(Path::new(roce_verbs::INFINIBAND), port).map_err(cannot)?;
    let gid_index = roce_verbs::find_roce_v2(&table, port, nic.gid).map_err(cannot)?;
    Ok(Now { gid_index, mtu: state.active_mtu })
}
