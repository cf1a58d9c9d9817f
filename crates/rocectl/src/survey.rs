//! The node's ports, judged: which may be used, and why the others may not.

use roce_node::{Node, RdmaPort};
use roce_plan::{GidSearch, Nic, Plan, PlanError, PortRejection, Request, Site, choose_gid, plan};
use roce_types::DevicePort;

/// The judgement on one port.
pub(crate) struct Judged<'a> {
    pub(crate) port: &'a RdmaPort,
    /// The NIC that it is for tasks, or why it is none.
    pub(crate) nic: Result<Nic, PortRejection>,
    /// Its GID table.
    pub(crate) gids: GidSearch,
}

/// Judges every port as a plan would that asks for nothing in particular. The error says why there
/// is no port at all.
pub(crate) fn survey<'a>(
    node: &'a Node,
    request: &Request,
    site: &Site,
) -> Result<Vec<Judged<'a>>, PlanError> {
    // A plan without tasks judges the ports all the same.
    match plan(node, request, site, &[]) {
        Ok(plan) => Ok(judged(node, request, site, &plan)),
        Err(PlanError::NoUsablePort { ports, .. }) => {
            let reason = |port: &DevicePort| {
                let name = port.to_string();
                ports.iter().find(|(rejected, _)| *rejected == name).map(|(_, reason)| reason.clone())
            };
            Ok(node.ports.iter().filter_map(|port| one(node, request, site, port, None, &reason)).collect())
        }
        Err(error) => Err(error),
    }
}

/// The judgement of a plan.
pub(crate) fn judged<'a>(node: &'a Node, request: &Request, site: &Site, plan: &Plan) -> Vec<Judged<'a>> {
    let reason = |port: &DevicePort| {
        plan.rejected.iter().find(|(rejected, _)| rejected == port).map(|(_, reason)| reason.clone())
    };
    let nic = |port: &RdmaPort| plan.nics.iter().find(|nic| nic.port == port.name).cloned();
    node.ports.iter().filter_map(|port| one(node, request, site, port, nic(port), &reason)).collect()
}

/// `None` for a port that is neither a NIC nor rejected, which the planner leaves no room for.
fn one<'a>(
    node: &Node,
    request: &Request,
    site: &Site,
    port: &'a RdmaPort,
    nic: Option<Nic>,
    reason: &dyn Fn(&DevicePort) -> Option<PortRejection>,
) -> Option<Judged<'a>> {
    let nic = match nic {
        Some(nic) => Ok(nic),
        None => Err(reason(&port.name)?),
    };
    Some(Judged { port, nic, gids: choose_gid(port, node, request, site) })
}

/// Why a port is no NIC, in a few words: the GID table has its own place.
pub(crate) fn in_short(reason: &PortRejection) -> String {
    match reason {
        PortRejection::NoGid(_) => "no usable GID".to_owned(),
        other => other.to_string(),
    }
}

/// `400`, `2.5`.
pub(crate) fn gbit(rate_mbit: u64) -> String {
    let (whole, rest) = (rate_mbit / 1000, rate_mbit % 1000);
    if rest == 0 { whole.to_string() } else { format!("{whole}.{}", rest / 100) }
}
