//! From the class that was asked for to what goes into the packets.

use roce_types::{Dscp, Priority, TrafficClass};

use crate::request::ClassRequest;

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
}

/// RoCE's usual priority, and the DSCP that vendors' lossless set-ups pair with it.
const PRIORITY_3_DSCP: u8 = 26;

impl Class {
    /// Resolves a class without a NIC's own DSCP table: the site's DSCP for a class of the site,
    /// else the default map, priority 3 to DSCP 26 (AF31) and any other to its class selector.
    #[must_use]
    pub fn resolve(request: &ClassRequest) -> Self {
        let priority = request.priority();
        let (traffic_class, reason) = match request {
            ClassRequest::Named { name, dscp: Some(dscp), .. } => {
                (dscp.traffic_class(), format!("DSCP {dscp} of the site's class {name}"))
            }
            ClassRequest::Dscp(dscp) => (dscp.traffic_class(), format!("DSCP {dscp} as asked")),
            ClassRequest::Byte(byte) => (*byte, format!("byte {byte} as asked")),
            ClassRequest::Priority(_) | ClassRequest::Named { .. } => {
                let dscp = default_dscp(priority);
                (dscp.traffic_class(), format!("default map: priority {priority} is DSCP {dscp}"))
            }
        };
        Self { priority, dscp: traffic_class.dscp(), traffic_class, reason }
    }
}

fn default_dscp(priority: Priority) -> Dscp {
    let value = if priority.get() == 3 { PRIORITY_3_DSCP } else { priority.get() * 8 };
    Dscp::new(value).expect("8 * 7 is 56")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(request: &ClassRequest) -> (u8, u8, u8) {
        let class = Class::resolve(request);
        (class.priority.get(), class.dscp.get(), class.traffic_class.0)
    }

    #[test]
    fn the_default_map() {
        let of = |priority| resolved(&ClassRequest::Priority(Priority::new(priority).unwrap()));
        assert_eq!(of(3), (3, 26, 106));
        assert_eq!(of(0), (0, 0, 2));
        assert_eq!(of(5), (5, 40, 162));
    }

    #[test]
    fn a_site_class_has_its_own_dscp_or_the_default_one() {
        let named =
            |dscp| ClassRequest::Named { name: "bulk".into(), priority: Priority::new(3).unwrap(), dscp };
        assert_eq!(resolved(&named(Dscp::new(30))), (3, 30, 122));
        assert_eq!(resolved(&named(None)), (3, 26, 106));
    }

    #[test]
    fn a_dscp_and_a_byte_are_taken_as_they_are() {
        assert_eq!(resolved(&ClassRequest::Dscp(Dscp::new(46).unwrap())), (5, 46, 186));
        assert_eq!(resolved(&ClassRequest::Byte(TrafficClass(104))), (3, 26, 104));
    }
}
