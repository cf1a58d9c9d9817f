use std::fmt;

use rdma_mummy_sys::ibv_mtu;

/// A path MTU: the payload bytes of one packet (`enum ibv_mtu` of verbs.h).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Mtu {
    /// 256 bytes.
    B256,
    /// 512 bytes.
    B512,
    /// 1024 bytes: what fits a 1500-byte netdev.
    B1024,
    /// 2048 bytes.
    B2048,
    /// 4096 bytes: what fits a 9000-byte netdev, or any from about 4200.
    B4096,
}

impl Mtu {
    /// Payload bytes per packet.
    #[must_use]
    pub fn bytes(self) -> u32 {
        256 << (self.to_verbs() - ibv_mtu::IBV_MTU_256)
    }

    /// From payload bytes per packet, `None` for anything that verbs has no value for.
    #[must_use]
    pub fn from_bytes(bytes: u32) -> Option<Self> {
        [Self::B256, Self::B512, Self::B1024, Self::B2048, Self::B4096]
            .into_iter()
            .find(|mtu| mtu.bytes() == bytes)
    }

    pub(crate) fn to_verbs(self) -> ibv_mtu::Type {
        match self {
            Self::B256 => ibv_mtu::IBV_MTU_256,
            Self::B512 => ibv_mtu::IBV_MTU_512,
            Self::B1024 => ibv_mtu::IBV_MTU_1024,
            Self::B2048 => ibv_mtu::IBV_MTU_2048,
            Self::B4096 => ibv_mtu::IBV_MTU_4096,
        }
    }

    pub(crate) fn from_verbs(value: ibv_mtu::Type) -> Option<Self> {
        [Self::B256, Self::B512, Self::B1024, Self::B2048, Self::B4096]
            .into_iter()
            .find(|mtu| mtu.to_verbs() == value)
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_verbs_h() {
        for (value, bytes) in [(1, 256), (2, 512), (3, 1024), (4, 2048), (5, 4096)] {
            let mtu = Mtu::from_verbs(value).unwrap();
            assert_eq!((mtu.to_verbs(), mtu.bytes()), (value, bytes));
            assert_eq!(Mtu::from_bytes(bytes), Some(mtu));
        }
        assert_eq!((Mtu::from_verbs(0), Mtu::from_verbs(6), Mtu::from_bytes(1500)), (None, None, None));
    }
}
