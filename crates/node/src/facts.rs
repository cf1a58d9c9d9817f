//! The facts that a capture keeps beside its tree, because sysfs doesn't have them: the addresses of
//! the network interfaces and what DCB netlink said of each port.

use std::collections::BTreeMap;
use std::net::IpAddr;

use roce_types::{Dscp, Priority};

use crate::tree::{NodeError, Tree};
use crate::{Netdev, Qos, RdmaPort, Trust};

/// The name of the file, in the root of a captured tree.
pub(crate) const FILE: &str = "roce-capture.toml";

/// The one format that exists so far.
const FORMAT: u32 = 1;

/// What the file holds.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Facts {
    /// Version of this layout.
    format: u32,
    /// Are GUIDs and addresses replaced?
    #[serde(default)]
    pub(crate) anonymised: bool,
    /// By interface. One that isn't here has unknown addresses.
    #[serde(default)]
    pub(crate) addresses: BTreeMap<String, Vec<IpAddr>>,
    /// By port, `mlx5_0:1`.
    #[serde(default)]
    qos: BTreeMap<String, QosFacts>,
}

#[derive(Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct QosFacts {
    trust: Option<TrustFact>,
    pfc: Option<Vec<u8>>,
    /// DSCP to priority. The keys of a TOML table are texts.
    dscp: Option<BTreeMap<String, u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum TrustFact {
    Pcp,
    Dscp,
}

/// Adds what a captured tree has beside its `sys`; a tree without the file stays as it is.
pub(crate) fn fill_in(
    tree: &Tree,
    netdevs: &mut BTreeMap<String, Netdev>,
    ports: &mut [RdmaPort],
) -> Result<(), NodeError> {
    let Some(text) = tree.optional_text(FILE)? else { return Ok(()) };
    let error = |problem| NodeError::Facts { path: tree.path(FILE), problem };
    let mut facts = Facts::parse(&text).map_err(error)?;
    for (name, netdev) in netdevs {
        netdev.addresses = facts.addresses.remove(name);
    }
    for port in ports {
        let name = port.name.to_string();
        let qos = facts.qos.remove(&name).map(|qos| qos.to_qos()).transpose();
        port.qos = qos.map_err(|problem| error(format!("qos of {name}: {problem}")))?;
    }
    Ok(())
}

impl Facts {
    fn parse(text: &str) -> Result<Self, String> {
        // The error of the toml crate shows the line; what it says last is the sentence itself.
        let facts: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            format!("line {}: {}", before.matches('\n').count() + 1, error.message())
        })?;
        if facts.format != FORMAT {
            return Err(format!(
                "format {} is not known, {FORMAT} is: it comes from a newer rocectl",
                facts.format
            ));
        }
        Ok(facts)
    }
}

#[cfg(feature = "sources")]
impl Facts {
    /// What is known of this node beyond its tree.
    pub(crate) fn of(node: &crate::Node, anonymised: bool) -> Self {
        let addresses = node.netdevs.iter().filter_map(|(name, netdev)| {
            let addresses = netdev.addresses.clone()?;
            Some((name.clone(), addresses))
        });
        let qos = node.ports.iter().filter_map(|port| {
            let qos = port.qos.as_ref()?;
            Some((port.name.to_string(), QosFacts::of(qos)))
        });
        Self { format: FORMAT, anonymised, addresses: addresses.collect(), qos: qos.collect() }
    }

    /// The text of the file.
    pub(crate) fn to_text(&self) -> Result<String, toml::ser::Error> {
        let body = toml::to_string(self)?;
        Ok(format!("# Written by rocectl capture: what this node's sysfs doesn't tell.\n{body}"))
    }
}

impl QosFacts {
    #[cfg(feature = "sources")]
    fn of(qos: &Qos) -> Self {
        let trust = qos.trust.map(|trust| match trust {
            Trust::Pcp => TrustFact::Pcp,
            Trust::Dscp => TrustFact::Dscp,
        });
        let dscp = qos.dscp_to_priority.as_ref();
        let dscp = dscp.map(|map| map.iter().map(|(dscp, priority)| (dscp.to_string(), priority.get())));
        let pfc = qos.pfc.as_ref().map(|pfc| pfc.iter().map(|priority| priority.get()).collect());
        Self { trust, pfc, dscp: dscp.map(Iterator::collect) }
    }

    fn to_qos(&self) -> Result<Qos, String> {
        let priority = |value: u8| {
            Priority::new(value).ok_or_else(|| format!("{value} is not a priority, these are 0 to 7"))
        };
        let pfc = self.pfc.as_ref().map(|pfc| pfc.iter().map(|&value| priority(value)).collect());
        let table = self.dscp.as_ref().map(|table| {
            let row = |(dscp, &value): (&String, &u8)| {
                let dscp: Dscp = dscp.parse().map_err(|error| format!("{error}"))?;
                Ok::<_, String>((dscp, priority(value)?))
            };
            table.iter().map(row).collect()
        });
        let trust = self.trust.map(|trust| match trust {
            TrustFact::Pcp => Trust::Pcp,
            TrustFact::Dscp => Trust::Dscp,
        });
        Ok(Qos { trust, dscp_to_priority: table.transpose()?, pfc: pfc.transpose()? })
    }
}

/// Reads a text as the whole file.
#[cfg(feature = "sources")]
pub(crate) fn read_values(text: &str) {
    if let Ok(facts) = Facts::parse(text) {
        for qos in facts.qos.values() {
            drop(qos.to_qos());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told_with_their_line() {
        let problem = |text| Facts::parse(text).unwrap_err();
        assert_eq!(
            problem("format = 1\n[addresses]\neth0 = [\"10.0.0.256\"]\n"),
            "line 3: invalid IP address syntax"
        );
        assert_eq!(problem("format = 2\n"), "format 2 is not known, 1 is: it comes from a newer rocectl");
        assert!(problem("format = 1\ncolour = 1\n").starts_with("line 2: unknown field `colour`"));
    }

    #[test]
    fn values_outside_of_their_range_are_refused() {
        let facts = |text: &str| toml::from_str::<QosFacts>(text).unwrap().to_qos().unwrap_err();
        assert_eq!(facts("pfc = [8]"), "8 is not a priority, these are 0 to 7");
        assert_eq!(facts("dscp = { 64 = 1 }"), "\"64\" is not a DSCP: 0-63, or a name such as af31, cs3, ef");
    }
}
