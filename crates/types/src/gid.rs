use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::ParseError;

/// A 128-bit global identifier of an RDMA port. On RoCE v2 it is an IPv6 address, or an IPv4
/// address in its IPv4-mapped form (`::ffff:10.0.0.1`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// The all-zero GID that marks an empty row of a port's table.
    pub const ZERO: Gid = Gid([0; 16]);

    /// The address that this GID is.
    #[must_use]
    pub fn to_ipv6(self) -> Ipv6Addr {
        Ipv6Addr::from(self.0)
    }

    /// The IPv4 address of an IPv4-mapped GID, `None` for any other.
    #[must_use]
    pub fn to_ipv4(self) -> Option<Ipv4Addr> {
        self.to_ipv6().to_ipv4_mapped()
    }

    /// Is this an empty row?
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// `ff00::/8`, or an IPv4-mapped multicast address.
    #[must_use]
    pub fn is_multicast(self) -> bool {
        self.to_ipv6().is_multicast() || self.to_ipv4().is_some_and(|v4| v4.is_multicast())
    }

    /// `fe80::/10`, or an IPv4-mapped address of `169.254.0.0/16`. Neither crosses a router, and
    /// every port of a node has one, so it says nothing about which fabric a port is on.
    #[must_use]
    pub fn is_link_local(self) -> bool {
        self.to_ipv6().is_unicast_link_local() || self.to_ipv4().is_some_and(|v4| v4.is_link_local())
    }
}

impl From<Ipv4Addr> for Gid {
    fn from(v4: Ipv4Addr) -> Self {
        Self(v4.to_ipv6_mapped().octets())
    }
}

impl From<Ipv6Addr> for Gid {
    fn from(v6: Ipv6Addr) -> Self {
        Self(v6.octets())
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ipv6().fmt(f)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gid({self})")
    }
}

impl FromStr for Gid {
    type Err = ParseError;

    /// Reads every way of writing an IPv6 address, among them the full form of sysfs
    /// (`0000:0000:0000:0000:0000:ffff:0a00:0001`).
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let address = Ipv6Addr::from_str(text)
            .map_err(|_| ParseError::new(text, "a GID such as fe80::1 or ::ffff:10.0.0.1"))?;
        Ok(Self(address.octets()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(text: &str) -> Gid {
        text.parse().unwrap()
    }

    #[test]
    fn reads_the_form_of_sysfs_and_prints_the_short_one() {
        assert_eq!(gid("0000:0000:0000:0000:0000:ffff:0a00:0001").to_string(), "::ffff:10.0.0.1");
        assert_eq!(gid("::ffff:10.0.0.1").to_ipv4(), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(gid("fd00::1").to_ipv4(), None);
    }

    #[test]
    fn link_local_is_told_in_both_families() {
        assert!(gid("fe80::5054:ff:fe00:1").is_link_local());
        assert!(gid("::ffff:169.254.3.4").is_link_local());
        assert!(!gid("::ffff:10.0.0.1").is_link_local());
        assert!(!gid("fd00::1").is_link_local());
    }

    #[test]
    fn an_ipv4_mapped_multicast_group_is_multicast() {
        assert!(gid("ff02::1").is_multicast());
        assert!(gid("::ffff:224.0.0.1").is_multicast());
        assert!(!gid("::ffff:10.0.0.1").is_multicast());
    }

    #[test]
    fn nonsense_is_an_error_that_shows_it() {
        let error = "10.0.0.1\n".parse::<Gid>().unwrap_err();
        assert_eq!(error.to_string(), "\"10.0.0.1\\n\" is not a GID such as fe80::1 or ::ffff:10.0.0.1");
    }
}
