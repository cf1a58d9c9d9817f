use std::fmt;
use std::str::FromStr;

use crate::ParseError;

/// An 802.1p priority, 0-7: the traffic class as operators name it. PFC pauses one of these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Priority(u8);

impl Priority {
    /// `None` above 7.
    #[must_use]
    pub fn new(value: u8) -> Option<Self> {
        (value <= 7).then_some(Self(value))
    }

    /// 0-7.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A differentiated-services code point, 0-63: the upper six bits of the IP header's traffic
/// class byte (RFC 2474), by which a RoCE v2 switch chooses the queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dscp(u8);

/// The code points that have a name (IANA "Differentiated Services Field Codepoints").
const NAMES: [(&str, u8); 23] = [
    ("cs0", 0),
    ("cs1", 8),
    ("cs2", 16),
    ("cs3", 24),
    ("cs4", 32),
    ("cs5", 40),
    ("cs6", 48),
    ("cs7", 56),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("ef", 46),
    ("voice-admit", 44),
    ("le", 1),
];

impl Dscp {
    /// `None` above 63.
    #[must_use]
    pub fn new(value: u8) -> Option<Self> {
        (value <= 63).then_some(Self(value))
    }

    /// 0-63.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }

    /// The name of the code point (`af31`), where it has one.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(_, value)| *value == self.0).map(|(name, _)| *name)
    }

    /// The byte for a packet that a switch may mark when it is congested: `DSCP << 2 | ECT(0)`.
    #[must_use]
    pub fn traffic_class(self) -> TrafficClass {
        TrafficClass(self.0 << 2 | 0b10)
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Dscp {
    type Err = ParseError;

    /// A number 0-63 or a name (`af31`, `cs3`, `ef`), in either case.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let named = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, value)| *value);
        let number = || if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None };
        named
            .or_else(number)
            .and_then(Self::new)
            .ok_or_else(|| ParseError::new(text, "a DSCP: 0-63, or a name such as af31, cs3, ef"))
    }
}

/// The traffic class byte of the GRH and of the IP header: the DSCP and two bits of ECN.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct TrafficClass(pub u8);

impl TrafficClass {
    /// The upper six bits.
    #[must_use]
    pub fn dscp(self) -> Dscp {
        Dscp(self.0 >> 2)
    }
}

impl fmt::Display for TrafficClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn af31_is_26_and_its_byte_is_106() {
        let dscp: Dscp = "AF31".parse().unwrap();
        assert_eq!(dscp.get(), 26);
        assert_eq!(dscp.traffic_class(), TrafficClass(106));
        assert_eq!(TrafficClass(106).dscp().name(), Some("af31"));
    }

    #[test]
    fn out_of_range_and_oddly_written_values_are_refused() {
        for text in ["64", "-1", "+3", " 3", "", "af99", "256", "0x1a"] {
            assert!(text.parse::<Dscp>().is_err(), "{text:?}");
        }
        assert_eq!(Priority::new(8), None);
    }
}
