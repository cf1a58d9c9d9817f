//! From the class that was asked for to what goes into the packets.

use std::collections::BTreeMap;

use roce_node::{Qos, Trust};
use roce_types::{DevicePort, Dscp, Priority, TrafficClass};

use crate::nics::Nic;
use crate::request::ClassRequest;
use crate::site::{Lossless, Site};

/// A resolved traffic class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// 802.1p priority; the service level of a queue pair is the same number.
    pub priority: Priority,
    /// The upper six bits of the byte.
    pub dscp: Dscp,
    /// The byte of the GRH and the IP header.
    pub traffic_class: TrafficClass,
    /// Where the DSCP comes from, for people.
    pub reason: String,
    /// What is known to be wrong with this class on these NICs, a sentence each.
    pub warnings: Vec<String>,
}

/// A class that these NICs can't carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClassError {
    /// No DSCP leads to the priority.
    #[error(
        "{port} maps no DSCP to priority {priority}; choose with --roce-dscp, or name a class in the site file"
    )]
    NoDscp {
        /// The NIC.
        port: DevicePort,
        /// The priority.
        priority: Priority,
    },
    /// Several do, and none of them is the usual one.
    #[error(
        "{port} maps DSCPs {} to priority {priority}, none of them the usual {usual}; choose with --roce-dscp, or name a class in the site file",
        list(dscps)
    )]
    ManyDscps {
        /// The NIC.
        port: DevicePort,
        /// The priority.
        priority: Priority,
        /// The candidates.
        dscps: Vec<Dscp>,
        /// What the default map has.
        usual: Dscp,
    },
    /// Two NICs of the step have different tables.
    #[error(
        "{first} would send DSCP {first_dscp} in priority {first_priority}, {other} DSCP {other_dscp} in priority {other_priority}: make their DSCP tables the same, or choose with --roce-dscp"
    )]
    NicsDisagree {
        /// The one NIC.
        first: DevicePort,
        /// Its DSCP.
        first_dscp: Dscp,
        /// Its priority.
        first_priority: Priority,
        /// The other.
        other: DevicePort,
        /// Its DSCP.
        other_dscp: Dscp,
        /// Its priority.
        other_priority: Priority,
    },
    /// A DSCP whose own class selector is allowed, but not the priority that the NIC gives it.
    #[error("{port} sends DSCP {dscp} in priority {priority}, and {} allows {}", site, list(allowed))]
    Forbidden {
        /// The NIC.
        port: DevicePort,
        /// What was asked for.
        dscp: Dscp,
        /// What its table makes of it.
        priority: Priority,
        /// The priorities that the site allows.
        allowed: Vec<Priority>,
        /// The site file.
        site: String,
    },
    /// `lossless = "fail"` of the site file, and a NIC is known to drop.
    #[error("{0}; the site file says lossless = \"fail\"")]
    Lossy(String),
}

fn list(values: &[impl ToString]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// RoCE's usual priority, and the DSCP that vendors' lossless set-ups pair with it.
const PRIORITY_3_DSCP: u8 = 26;

impl Class {
    /// Resolves a class for the NICs of a step. The DSCP of a priority is that of the site's class,
    /// else the one in the NICs' own table, else the default map: priority 3 to DSCP 26 (AF31), any
    /// other to its class selector. The priority of a DSCP is that of the NICs' table, else its
    /// upper three bits.
    ///
    /// # Errors
    /// When the table has no DSCP or only unusual ones for the priority, the NICs' tables differ, or
    /// a NIC is known to be lossy and the site forbids that.
    pub fn resolve(request: &ClassRequest, nics: &[Nic], site: &Site) -> Result<Self, ClassError> {
        let mut resolved: Option<(&Nic, Self)> = None;
        for nic in nics {
            let class = Self::on_nic(request, nic, site)?;
            match &resolved {
                None => resolved = Some((nic, class)),
                Some((first, other)) if (other.dscp, other.priority) != (class.dscp, class.priority) => {
                    return Err(ClassError::NicsDisagree {
                        first: first.port.clone(),
                        first_dscp: other.dscp,
                        first_priority: other.priority,
                        other: nic.port.clone(),
                        other_dscp: class.dscp,
                        other_priority: class.priority,
                    });
                }
                Some(_) => {}
            }
        }
        let mut class = match resolved {
            Some((_, class)) => class,
            None => Self::without_table(request, site),
        };
        let lossy: Vec<String> = nics.iter().flat_map(|nic| lossy(nic, class.priority)).collect();
        match (site.policy.lossless, lossy.first()) {
            (Lossless::Fail, Some(reason)) => return Err(ClassError::Lossy(reason.clone())),
            (Lossless::Warn, Some(_)) => class.warnings.extend(lossy),
            _ => {}
        }
        class.warnings.extend(nics.iter().filter_map(|nic| forced(nic, class.traffic_class)));
        Ok(class)
    }

    fn on_nic(request: &ClassRequest, nic: &Nic, site: &Site) -> Result<Self, ClassError> {
        let Some(table) = nic.qos.as_ref().and_then(|qos| qos.dscp_to_priority.as_ref()) else {
            return Ok(Self::without_table(request, site));
        };
        // The site's word is about the priority that the packets have in the end.
        let of_dscp = |dscp: Dscp| {
            let priority = table.get(&dscp).copied().unwrap_or_else(|| request.priority());
            match &site.policy.allowed_priorities {
                Some(allowed) if !allowed.contains(&priority) => Err(ClassError::Forbidden {
                    port: nic.port.clone(),
                    dscp,
                    priority,
                    allowed: allowed.clone(),
                    site: site.path.clone(),
                }),
                _ => Ok(priority),
            }
        };
        match request {
            ClassRequest::Dscp(dscp) => {
                Ok(Self::of(of_dscp(*dscp)?, dscp.traffic_class(), format!("DSCP {dscp} as asked")))
            }
            ClassRequest::Byte(byte) => {
                Ok(Self::of(of_dscp(byte.dscp())?, *byte, format!("byte {byte} as asked")))
            }
            ClassRequest::Priority(priority) | ClassRequest::Named { priority, .. } => {
                if site_dscp(request, site).is_some() {
                    return Ok(Self::without_table(request, site));
                }
                let dscp = dscp_in_table(*priority, table, &nic.port)?;
                let reason = format!("the table of {} maps DSCP {dscp} to priority {priority}", nic.port);
                Ok(Self::of(*priority, dscp.traffic_class(), reason))
            }
        }
    }

    fn without_table(request: &ClassRequest, site: &Site) -> Self {
        let priority = request.priority();
        let (traffic_class, reason) = match (request, site_dscp(request, site)) {
            (_, Some((name, dscp))) => {
                (dscp.traffic_class(), format!("DSCP {dscp} of the site's class {name}"))
            }
            (ClassRequest::Dscp(dscp), _) => (dscp.traffic_class(), format!("DSCP {dscp} as asked")),
            (ClassRequest::Byte(byte), _) => (*byte, format!("byte {byte} as asked")),
            (ClassRequest::Priority(_) | ClassRequest::Named { .. }, None) => {
                let dscp = default_dscp(priority);
                (dscp.traffic_class(), format!("default map: priority {priority} is DSCP {dscp}"))
            }
        };
        Self::of(priority, traffic_class, reason)
    }

    fn of(priority: Priority, traffic_class: TrafficClass, reason: String) -> Self {
        Self { priority, dscp: traffic_class.dscp(), traffic_class, reason, warnings: Vec::new() }
    }
}

/// The DSCP that the site gives: that of the class that was named, or of its only class with the
/// priority that was asked for.
fn site_dscp(request: &ClassRequest, site: &Site) -> Option<(String, Dscp)> {
    match request {
        ClassRequest::Named { name, dscp, .. } => Some((name.clone(), (*dscp)?)),
        ClassRequest::Priority(priority) => {
            let mut same = site.classes.iter().filter(|(_, class)| class.priority == *priority);
            let (name, class) = same.next()?;
            if same.next().is_some() { None } else { Some((name.clone(), class.dscp?)) }
        }
        ClassRequest::Dscp(_) | ClassRequest::Byte(_) => None,
    }
}

fn dscp_in_table(
    priority: Priority,
    table: &BTreeMap<Dscp, Priority>,
    port: &DevicePort,
) -> Result<Dscp, ClassError> {
    let dscps: Vec<Dscp> =
        table.iter().filter(|(_, other)| **other == priority).map(|(dscp, _)| *dscp).collect();
    let usual = default_dscp(priority);
    match dscps[..] {
        [] => Err(ClassError::NoDscp { port: port.clone(), priority }),
        [only] => Ok(only),
        _ if dscps.contains(&usual) => Ok(usual),
        _ => Err(ClassError::ManyDscps { port: port.clone(), priority, dscps, usual }),
    }
}

fn default_dscp(priority: Priority) -> Dscp {
    let value = if priority.get() == 3 { PRIORITY_3_DSCP } else { priority.get() * 8 };
    Dscp::new(value).expect("8 * 7 is 56")
}

/// What this NIC is known not to do for the priority.
fn lossy(nic: &Nic, priority: Priority) -> Vec<String> {
    let Some(Qos { trust, pfc, .. }) = &nic.qos else { return Vec::new() };
    let mut lossy = Vec::new();
    if pfc.as_ref().is_some_and(|pfc| !pfc.contains(&priority)) {
        lossy.push(format!("{} has priority flow control off for priority {priority}", nic.port));
    }
    if *trust == Some(Trust::Pcp) {
        lossy.push(format!("{} trusts the VLAN priority, not the DSCP", nic.port));
    }
    lossy
}

/// A class that the vendor's driver puts in place of ours.
fn forced(nic: &Nic, ours: TrafficClass) -> Option<String> {
    let forced = nic.forced_traffic_class.filter(|&forced| forced != ours)?;
    Some(format!(
        "the driver of {} forces traffic class {forced} in place of {ours} (/sys/class/infiniband/{}/tc/{}/traffic_class)",
        nic.port, nic.port.device, nic.port.port
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nics::PhysicalPort;

    fn nic(device: &str, qos: Option<Qos>) -> Nic {
        let port = DevicePort { device: device.into(), port: 1 };
        Nic {
            physical_port: PhysicalPort::Software(port.clone()),
            port,
            netdev: None,
            pci: None,
            numa_node: None,
            rail: 0,
            gid: None,
            qos,
            forced_traffic_class: None,
        }
    }

    fn table(rows: &[(u8, u8)]) -> Qos {
        let row = |&(dscp, priority): &(u8, u8)| (Dscp::new(dscp).unwrap(), Priority::new(priority).unwrap());
        Qos { dscp_to_priority: Some(rows.iter().map(row).collect()), ..Qos::default() }
    }

    fn priority(value: u8) -> ClassRequest {
        ClassRequest::Priority(Priority::new(value).unwrap())
    }

    fn dscp(value: u8) -> ClassRequest {
        ClassRequest::Dscp(Dscp::new(value).unwrap())
    }

    fn site(text: &str) -> Site {
        Site::parse(text, "roce.toml").unwrap()
    }

    /// Priority, DSCP and byte on NICs with these tables.
    fn resolved(request: &ClassRequest, tables: &[&Qos], site: &Site) -> Result<(u8, u8, u8), String> {
        let nics: Vec<Nic> =
            (0..).zip(tables).map(|(i, qos)| nic(&format!("mlx5_{i}"), Some((*qos).clone()))).collect();
        let class = Class::resolve(request, &nics, site).map_err(|error| error.to_string())?;
        Ok((class.priority.get(), class.dscp.get(), class.traffic_class.0))
    }

    #[test]
    fn without_a_table_the_default_map_counts() {
        let of = |value| resolved(&priority(value), &[], &Site::default()).unwrap();
        assert_eq!(of(3), (3, 26, 106));
        assert_eq!(of(0), (0, 0, 2));
        assert_eq!(of(5), (5, 40, 162));
        assert_eq!(resolved(&dscp(46), &[], &Site::default()).unwrap(), (5, 46, 186));
        assert_eq!(
            resolved(&ClassRequest::Byte(TrafficClass(104)), &[], &Site::default()).unwrap(),
            (3, 26, 104)
        );
    }

    #[test]
    fn the_nics_own_table_comes_before_the_default_map() {
        let of = |rows: &[(u8, u8)]| resolved(&priority(3), &[&table(rows)], &Site::default());
        assert_eq!(of(&[(34, 3)]).unwrap().1, 34, "the only one");
        assert_eq!(of(&[(24, 3), (26, 3), (30, 3)]).unwrap().1, 26, "the usual one of several");
        insta::assert_snapshot!("many_dscps", of(&[(24, 3), (30, 3), (46, 5)]).unwrap_err());
        insta::assert_snapshot!("no_dscp", of(&[(46, 5)]).unwrap_err());
    }

    #[test]
    fn a_dscp_that_the_nic_sends_in_a_forbidden_priority_is_refused() {
        let site = site("[policy]\nallowed_priorities = [3]");
        let table = table(&[(26, 3), (30, 5)]);
        let of = |request: &ClassRequest| resolved(request, &[&table], &site);
        // Both have class selector 3, which is all that can be judged without the NIC.
        assert_eq!(of(&dscp(26)).unwrap(), (3, 26, 106));
        let said = "mlx5_0:1 sends DSCP 30 in priority 5, and roce.toml allows 3";
        assert_eq!(of(&dscp(30)).unwrap_err(), said);
        assert_eq!(of(&ClassRequest::Byte(TrafficClass(122))).unwrap_err(), said);
    }

    #[test]
    fn the_site_comes_before_the_table() {
        let bulk = site("[classes.bulk]\npriority = 3\ndscp = 30");
        let named = bulk.class("bulk").unwrap();
        let other_table = table(&[(34, 3)]);
        assert_eq!(resolved(&named, &[&other_table], &bulk).unwrap().1, 30);
        assert_eq!(
            resolved(&priority(3), &[&other_table], &bulk).unwrap().1,
            30,
            "its only class of priority 3"
        );
        let two = site("[classes.a]\npriority = 3\ndscp = 30\n[classes.b]\npriority = 3\ndscp = 28");
        assert_eq!(resolved(&priority(3), &[&other_table], &two).unwrap().1, 34, "the site does not decide");
        let no_dscp = site("[classes.bulk]\npriority = 3");
        assert_eq!(resolved(&no_dscp.class("bulk").unwrap(), &[], &no_dscp).unwrap().1, 26);
    }

    #[test]
    fn the_priority_of_a_dscp_is_that_of_the_table_else_its_class_selector() {
        let moved = table(&[(46, 6)]);
        assert_eq!(resolved(&dscp(46), &[&moved], &Site::default()).unwrap(), (6, 46, 186));
        assert_eq!(resolved(&dscp(26), &[&moved], &Site::default()).unwrap(), (3, 26, 106));
    }

    #[test]
    fn nics_with_different_tables_are_an_error_that_names_both() {
        let error = resolved(&priority(3), &[&table(&[(26, 3)]), &table(&[(34, 3)])], &Site::default());
        insta::assert_snapshot!("nics_disagree", error.unwrap_err());
    }

    #[test]
    fn a_lossy_class_is_a_warning_or_an_error_as_the_site_says_and_unknown_is_neither() {
        let lossy =
            Qos { pfc: Some(vec![Priority::new(4).unwrap()]), trust: Some(Trust::Pcp), ..Qos::default() };
        let good =
            Qos { pfc: Some(vec![Priority::new(3).unwrap()]), trust: Some(Trust::Dscp), ..Qos::default() };
        let warnings = |qos: Option<Qos>, text: &str| {
            Class::resolve(&priority(3), &[nic("mlx5_0", qos)], &site(text)).map(|class| class.warnings)
        };
        insta::assert_snapshot!("lossy", warnings(Some(lossy.clone()), "").unwrap().join("\n"));
        assert!(warnings(Some(good), "").unwrap().is_empty());
        assert!(warnings(Some(Qos::default()), "[policy]\nlossless = \"fail\"").unwrap().is_empty());
        assert!(warnings(None, "[policy]\nlossless = \"fail\"").unwrap().is_empty());
        assert!(warnings(Some(lossy.clone()), "[policy]\nlossless = \"ignore\"").unwrap().is_empty());
        let forbidden = warnings(Some(lossy), "[policy]\nlossless = \"fail\"").unwrap_err();
        insta::assert_snapshot!("lossy_forbidden", forbidden);
    }

    #[test]
    fn a_class_that_the_driver_forces_is_a_warning_unless_it_is_ours() {
        let mut nic = nic("mlx5_0", None);
        nic.forced_traffic_class = Some(TrafficClass(160));
        let class = Class::resolve(&priority(3), &[nic.clone()], &Site::default()).unwrap();
        insta::assert_snapshot!("forced", class.warnings.join("\n"));
        nic.forced_traffic_class = Some(TrafficClass(106));
        assert!(Class::resolve(&priority(3), &[nic], &Site::default()).unwrap().warnings.is_empty());
    }
}
