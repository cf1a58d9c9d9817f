//! Replaces what identifies a machine by something of the same structure.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use roce_types::Gid;

/// Replaces addresses and GUIDs, the same input by the same output for as long as it lives. The key
/// is random and never written, so two captures of one machine have different outputs.
///
/// Two addresses that have their first n bits in common still have, and no more: subnets of every
/// size stay subnets. An address keeps its scope: link-local, private, shared (100.64.0.0/10),
/// IPv4-mapped, unique local and global addresses stay what they are; the unspecified, loopback and
/// multicast addresses stay as they are.
pub(super) struct Anonymiser {
    key: RandomState,
}

/// Which numbers must not meet: each kind has its own mapping.
#[derive(Clone, Copy, Hash)]
enum Kind {
    V4,
    /// The upper half of an IPv6 address.
    Prefix,
    /// The lower half of an IPv6 address, and GUIDs: the two are the same number on many ports.
    Identifier,
}

impl Anonymiser {
    pub(super) fn new() -> Self {
        Self { key: RandomState::new() }
    }

    /// Flips each bit below the `kept` upper ones of `bits`, or not, as the bits above it say.
    fn replace(&self, kind: Kind, value: u64, bits: u32, kept: u32) -> u64 {
        let mut replaced = value;
        for bit in (0..bits - kept).rev() {
            let above = value.checked_shr(bit + 1).unwrap_or(0);
            replaced ^= (self.key.hash_one((kind, bit, above)) & 1) << bit;
        }
        replaced
    }

    /// An IP address.
    pub(super) fn ip(&self, ip: IpAddr) -> IpAddr {
        match ip {
            IpAddr::V4(v4) => IpAddr::V4(self.v4(v4)),
            IpAddr::V6(v6) => IpAddr::V6(self.v6(v6)),
        }
    }

    /// A GID of any kind.
    pub(super) fn gid(&self, gid: Gid) -> Gid {
        Gid::from(self.v6(gid.to_ipv6()))
    }

    /// A GUID as sysfs writes it, `0c42:a103:0011:2233`. `None` if it is of another form.
    pub(super) fn guid(&self, text: &str) -> Option<String> {
        let mut value: u64 = 0;
        let mut words = 0;
        for word in text.split(':') {
            if word.len() != 4 || !word.bytes().all(|byte| byte.is_ascii_hexdigit()) || words == 4 {
                return None;
            }
            value = value << 16 | u64::from(u16::from_str_radix(word, 16).ok()?);
            words += 1;
        }
        let guid = self.identifier(value);
        let part = |shift: u32| guid >> shift & 0xffff;
        (words == 4).then(|| format!("{:04x}:{:04x}:{:04x}:{:04x}", part(48), part(32), part(16), part(0)))
    }

    fn v4(&self, v4: Ipv4Addr) -> Ipv4Addr {
        let Some(scope) = Scope4::of(v4) else { return v4 };
        let mut value = v4;
        // An address of the global scope may become one of another; the mapping is one to one, so
        // walking on comes back to the scope. The scope is told by the first 16 bits at most, so
        // that addresses of one subnet walk the same way.
        loop {
            let replaced = self.replace(Kind::V4, u64::from(value.to_bits()), 32, scope.kept());
            value = Ipv4Addr::from_bits(u32::try_from(replaced).unwrap_or_default());
            if Scope4::of(value) == Some(scope) {
                return value;
            }
        }
    }

    fn v6(&self, v6: Ipv6Addr) -> Ipv6Addr {
        if let Some(v4) = v6.to_ipv4_mapped() {
            return self.v4(v4).to_ipv6_mapped();
        }
        if v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() {
            return v6;
        }
        let upper = u64::try_from(v6.to_bits() >> 64).unwrap_or_default();
        let lower = u64::try_from(v6.to_bits() & u128::from(u64::MAX)).unwrap_or_default();
        let kept = match v6.segments()[0] {
            // The rest of a link-local prefix is zero.
            0xfe80..=0xfebf => 64,
            // Unique local, with the bit that says "chosen here".
            0xfc00..=0xfdff => 8,
            // Global unicast.
            0x2000..=0x3fff => 3,
            // What isn't assigned; nothing is lost if its first group is told.
            _ => 16,
        };
        let upper = self.replace(Kind::Prefix, upper, 64, kept);
        Ipv6Addr::from_bits(u128::from(upper) << 64 | u128::from(self.identifier(lower)))
    }

    /// Zero means "none" in GUIDs: it stays, and no other becomes it.
    fn identifier(&self, value: u64) -> u64 {
        if value == 0 {
            return 0;
        }
        match self.replace(Kind::Identifier, value, 64, 0) {
            // One to one, so zero's own replacement is free.
            0 => self.replace(Kind::Identifier, 0, 64, 0),
            replaced => replaced,
        }
    }
}

/// What an IPv4 address may stay in; each with the bits that say so.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope4 {
    Ten,
    SeventeenTwo,
    NineteenTwo,
    Shared,
    LinkLocal,
    Global,
}

impl Scope4 {
    /// `None` for an address that says nothing about a machine.
    fn of(v4: Ipv4Addr) -> Option<Self> {
        match v4.octets() {
            [0 | 127 | 224.., ..] => None,
            [10, ..] => Some(Self::Ten),
            [172, 16..=31, ..] => Some(Self::SeventeenTwo),
            [192, 168, ..] => Some(Self::NineteenTwo),
            [100, 64..=127, ..] => Some(Self::Shared),
            [169, 254, ..] => Some(Self::LinkLocal),
            _ => Some(Self::Global),
        }
    }

    fn kept(self) -> u32 {
        match self {
            Self::Ten => 8,
            Self::SeventeenTwo => 12,
            Self::NineteenTwo | Self::LinkLocal => 16,
            Self::Shared => 10,
            Self::Global => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn common(a: Ipv4Addr, b: Ipv4Addr) -> u32 {
        (a.to_bits() ^ b.to_bits()).leading_zeros()
    }

    #[test]
    fn the_first_bits_in_common_stay_in_common_and_no_more() {
        let it = Anonymiser::new();
        let a: Ipv4Addr = "10.1.2.3".parse().unwrap();
        for other in ["10.1.2.4", "10.1.2.130", "10.1.3.3", "10.200.2.3"] {
            let b = other.parse().unwrap();
            assert_eq!(common(a, b), common(it.v4(a), it.v4(b)), "{other}");
        }
    }

    #[test]
    fn what_names_no_machine_stays() {
        let it = Anonymiser::new();
        for text in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(it.ip(ip), ip);
        }
        assert_eq!(it.guid("0000:0000:0000:0000").as_deref(), Some("0000:0000:0000:0000"));
        for text in ["", "nonsense", "0000:0000:0000", "0:0:0:0", "0000:0000:0000:0000:0000"] {
            assert_eq!(it.guid(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn ipv4_keeps_its_scope_and_stays_one_to_one(a: u32, b: u32) {
            let it = Anonymiser::new();
            let (a, b) = (Ipv4Addr::from_bits(a), Ipv4Addr::from_bits(b));
            prop_assert_eq!(it.v4(a).is_private(), a.is_private());
            prop_assert_eq!(it.v4(a).is_link_local(), a.is_link_local());
            prop_assert_eq!(it.v4(a).is_multicast(), a.is_multicast());
            prop_assert_eq!(it.v4(a) == it.v4(b), a == b);
            let neighbour = Ipv4Addr::from_bits(a.to_bits() ^ 1);
            if Scope4::of(a).is_some() {
                prop_assert_eq!(common(it.v4(a), it.v4(neighbour)), 31);
            }
        }

        #[test]
        fn ipv6_keeps_its_scope_and_its_subnet(a: u128, host: u64) {
            let it = Anonymiser::new();
            let a = Ipv6Addr::from_bits(a);
            let neighbour = Ipv6Addr::from_bits((a.to_bits() & !u128::from(u64::MAX)) | u128::from(host));
            let (x, y) = (it.v6(a), it.v6(neighbour));
            prop_assert_eq!(x.is_unicast_link_local(), a.is_unicast_link_local());
            prop_assert_eq!(x.is_unique_local(), a.is_unique_local());
            prop_assert_eq!(x.is_multicast(), a.is_multicast());
            prop_assert_eq!(x.to_bits() >> 64, y.to_bits() >> 64);
            prop_assert_eq!(x == y, a == neighbour);
        }

        #[test]
        fn an_ipv4_address_and_its_gid_stay_the_same(v4: u32) {
            let it = Anonymiser::new();
            let v4 = Ipv4Addr::from_bits(v4);
            prop_assert_eq!(it.gid(Gid::from(v4)), Gid::from(it.v4(v4)));
        }
    }
}
