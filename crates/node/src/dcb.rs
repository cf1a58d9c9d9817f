//! A network interface's data centre bridging settings (IEEE 802.1Q: priority flow control, the
//! DSCP table), asked of the kernel over route netlink. No capability is needed to ask.
//!
//! The numbers are those of Linux's `linux/dcbnl.h`, `linux/rtnetlink.h` and netlink(7).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use roce_types::{Dscp, Priority};

use crate::{Qos, Trust};

/// Where the settings of an interface come from: the kernel, or a capture.
pub(crate) trait DcbSource {
    /// The settings, or `None` where the interface's driver has none.
    fn qos(&self, netdev: &str) -> io::Result<Option<Qos>>;
}

/// The live machine.
pub(crate) struct Kernel;

const RTM_GETDCB: u16 = 78;
const DCB_CMD_IEEE_GET: u8 = 21;
const DCB_ATTR_IFNAME: u16 = 1;
const DCB_ATTR_IEEE: u16 = 13;
const DCB_ATTR_IEEE_PFC: u16 = 2;
const DCB_ATTR_IEEE_APP_TABLE: u16 = 3;
/// Linux 6.2 and later, of the few drivers that have it.
const DCB_ATTR_DCB_APP_TRUST_TABLE: u16 = 11;
const IEEE_8021QAZ_APP_SEL_DSCP: u8 = 5;
const DCB_APP_SEL_PCP: u8 = 255;
const NLMSG_ERROR: u16 = 2;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct dcbmsg`.
const DCBMSG: usize = 4;
/// Two bits of an attribute's type are flags (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const TYPE_MASK: u16 = 0x3fff;

impl DcbSource for Kernel {
    fn qos(&self, netdev: &str) -> io::Result<Option<Qos>> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        // The kernel answers at once; a step must not wait for a driver that doesn't.
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
        sendto(socket.as_raw_fd(), &request(netdev), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut reply = vec![0; 16 * 1024];
        let length = recv(socket.as_raw_fd(), &mut reply, MsgFlags::empty())?;
        parse_reply(&reply[..length])
    }
}

/// `nlmsghdr`, `dcbmsg`, one attribute: the interface's name.
fn request(netdev: &str) -> Vec<u8> {
    let mut name = netdev.as_bytes().to_vec();
    name.push(0);
    let attribute = 4 + name.len();
    let total = HEADER + DCBMSG + attribute;
    let mut message = Vec::with_capacity(total + 4);
    let flags = u16::try_from(libc::NLM_F_REQUEST).unwrap_or(1);
    message.extend(u32::try_from(total).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(RTM_GETDCB.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]); // sequence and port: one request, one answer
    message.extend([0, DCB_CMD_IEEE_GET, 0, 0]);
    message.extend(u16::try_from(attribute).unwrap_or(u16::MAX).to_ne_bytes());
    message.extend(DCB_ATTR_IFNAME.to_ne_bytes());
    message.extend(name);
    message
}

/// Reads the answer: settings, or an error number, of which "not supported" and "no such
/// operation" mean that there are none.
fn parse_reply(reply: &[u8]) -> io::Result<Option<Qos>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's DCB answer is malformed");
    let kind = u16_at(reply, 4).ok_or_else(malformed)?;
    if kind == NLMSG_ERROR {
        let number = reply.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
        let number = -i32::from_ne_bytes(number.ok_or_else(malformed)?);
        return match number {
            libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS => Ok(None),
            _ => Err(io::Error::from_raw_os_error(number)),
        };
    }
    let body = reply.get(HEADER + DCBMSG..).ok_or_else(malformed)?;
    let Some(ieee) = attributes(body).find(|(kind, _)| *kind == DCB_ATTR_IEEE) else { return Ok(None) };
    let mut qos = Qos::default();
    let mut told = None;
    for (kind, value) in attributes(ieee.1) {
        match kind {
            DCB_ATTR_IEEE_PFC => qos.pfc = Some(pfc(value).ok_or_else(malformed)?),
            DCB_ATTR_IEEE_APP_TABLE => {
                let table = dscp_table(value);
                // A driver that maps DSCPs trusts them; without an entry, it may trust either.
                if !table.is_empty() {
                    qos.trust = Some(Trust::Dscp);
                    qos.dscp_to_priority = Some(table);
                }
            }
            DCB_ATTR_DCB_APP_TRUST_TABLE => told = trust(value),
            _ => {}
        }
    }
    qos.trust = told.or(qos.trust);
    Ok(Some(qos))
}

/// `struct ieee_pfc`: the second byte is a bit per priority.
fn pfc(value: &[u8]) -> Option<Vec<Priority>> {
    let enabled = *value.get(1)?;
    Some((0..8).filter(|priority| enabled >> priority & 1 == 1).filter_map(Priority::new).collect())
}

/// Selectors in order of precedence, a byte each: what the port looks at first.
fn trust(value: &[u8]) -> Option<Trust> {
    attributes(value).find_map(|(_, selector)| match *selector.first()? {
        IEEE_8021QAZ_APP_SEL_DSCP => Some(Trust::Dscp),
        DCB_APP_SEL_PCP => Some(Trust::Pcp),
        _ => None,
    })
}

/// Entries of `struct dcb_app`: selector, priority, protocol. Of several priorities for one DSCP
/// the kernel uses the highest.
fn dscp_table(value: &[u8]) -> BTreeMap<Dscp, Priority> {
    let mut table: BTreeMap<Dscp, Priority> = BTreeMap::new();
    for (_, entry) in attributes(value) {
        let (Some(&[selector, priority]), Some(protocol)) = (entry.first_chunk(), u16_at(entry, 2)) else {
            continue;
        };
        let dscp = u8::try_from(protocol).ok().and_then(Dscp::new);
        if let (IEEE_8021QAZ_APP_SEL_DSCP, Some(dscp), Some(priority)) =
            (selector, dscp, Priority::new(priority))
        {
            let entry = table.entry(dscp).or_insert(priority);
            *entry = priority.max(*entry);
        }
    }
    table
}

/// The attributes in a run of bytes; ends at the first that doesn't fit.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn reply(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    fn settings(attributes: &[Vec<u8>]) -> Vec<u8> {
        let name = attribute(DCB_ATTR_IFNAME, b"eth0\0");
        let ieee = attribute(DCB_ATTR_IEEE | 0x8000, &attributes.concat());
        reply(79, &[&[0, DCB_CMD_IEEE_GET, 0, 0], name.as_slice(), &ieee].concat())
    }

    fn app(selector: u8, priority: u8, protocol: u16) -> Vec<u8> {
        let [low, high] = protocol.to_ne_bytes();
        attribute(1, &[selector, priority, low, high])
    }

    #[test]
    fn pfc_and_the_dscp_table_are_read() {
        let mut pfc = vec![8, 0b0000_1000, 0, 0];
        pfc.resize(136, 0);
        let table = [app(5, 3, 26), app(1, 6, 0x8906), app(5, 5, 46), app(5, 6, 46), app(5, 3, 99)].concat();
        let message =
            settings(&[attribute(DCB_ATTR_IEEE_PFC, &pfc), attribute(DCB_ATTR_IEEE_APP_TABLE, &table)]);
        let qos = parse_reply(&message).unwrap().unwrap();
        assert_eq!(qos.pfc, Some(vec![Priority::new(3).unwrap()]));
        let table: Vec<(u8, u8)> = qos
            .dscp_to_priority
            .unwrap()
            .iter()
            .map(|(dscp, priority)| (dscp.get(), priority.get()))
            .collect();
        assert_eq!(table, [(26, 3), (46, 6)]);
        assert_eq!(qos.trust, Some(Trust::Dscp));
    }

    #[test]
    fn what_the_driver_tells_of_trust_beats_what_its_table_suggests() {
        let table = attribute(DCB_ATTR_IEEE_APP_TABLE, &app(5, 3, 26));
        let trusted = |selectors: &[u8]| {
            let entries: Vec<u8> = selectors.iter().flat_map(|&selector| attribute(1, &[selector])).collect();
            let message = settings(&[attribute(DCB_ATTR_DCB_APP_TRUST_TABLE, &entries), table.clone()]);
            parse_reply(&message).unwrap().unwrap().trust
        };
        assert_eq!(trusted(&[255]), Some(Trust::Pcp));
        assert_eq!(trusted(&[5, 255]), Some(Trust::Dscp));
        assert_eq!(trusted(&[]), Some(Trust::Dscp), "the table alone");
    }

    #[test]
    fn a_driver_without_dscp_entries_leaves_the_table_unknown() {
        let message = settings(&[attribute(DCB_ATTR_IEEE_APP_TABLE, &app(1, 6, 0x8906))]);
        assert_eq!(parse_reply(&message).unwrap(), Some(Qos::default()));
    }

    #[test]
    fn not_supported_is_no_settings_and_other_errors_are_errors() {
        let error = |number: i32| parse_reply(&reply(NLMSG_ERROR, &(-number).to_ne_bytes()));
        assert_eq!(error(libc::EOPNOTSUPP).unwrap(), None);
        assert_eq!(error(libc::ENODEV).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn cut_answers_are_refused_or_empty_and_never_panic() {
        let mut pfc = vec![8, 0b1000, 0, 0];
        pfc.resize(136, 0);
        let whole = settings(&[attribute(DCB_ATTR_IEEE_PFC, &pfc)]);
        for length in 0..whole.len() {
            let _ = parse_reply(&whole[..length]);
        }
    }

    /// The kernel of this machine, whatever it is: the loopback interface has no such settings.
    #[test]
    fn the_kernel_answers() {
        assert_eq!(Kernel.qos("lo").unwrap(), None);
        assert!(Kernel.qos("nosuch0").is_err() || Kernel.qos("nosuch0").unwrap().is_none());
    }
}
