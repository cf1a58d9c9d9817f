//! The attributes of an RC queue pair on its way up, and which of them each step sets
//! (`ibv_modify_qp(3)`, table for IBV_QPT_RC).
#![expect(unsafe_code, reason = "zeroes a C struct")]

use rdma_mummy_sys as ffi;
use rdma_mummy_sys::ibv_qp_attr_mask as Mask;
use roce_types::{Gid, TrafficClass};

use crate::mtu::Mtu;

/// Local ACK timeout: 4.096 us x 2^18, about 1.1 s per attempt.
pub const TIMEOUT: u8 = 18;
/// Attempts after the first before a peer counts as not answering: on a NIC after about 9 s. Soft-RoCE takes 7 as without
/// end (seen on Linux 6.12, where 6 ends), so there only the caller's deadline does.
pub const RETRY_COUNT: u8 = 7;
/// Attempts while the peer has no receive posted: 7 means without end, so deadlines are the caller's.
pub const RNR_RETRY: u8 = 7;
/// What this side asks of a sender whose receive is missing: code 12 is 0.64 ms.
pub const MIN_RNR_TIMER: u8 = 12;
/// GRH hop limit. A router takes one off; 255 also passes every check for a directly connected peer.
const HOP_LIMIT: u8 = 255;
/// The default partition; RoCE knows no other.
const PKEY_INDEX: u16 = 0;

/// Both ends of a connection as this end sets them. Each end sets its own; the traffic class and the service
/// level must be set at both, else one direction's data and the other's acknowledgements travel in another class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// This end's port, from 1.
    pub port: u8,
    /// The row of this end's GID now, from [`find_roce_v2`](crate::find_roce_v2).
    pub local_gid_index: u8,
    /// The peer's GID.
    pub remote_gid: Gid,
    /// The peer's queue pair.
    pub remote_qp_number: u32,
    /// First packet number this end sends (24 bits, random).
    pub local_psn: u32,
    /// First packet number the peer sends (24 bits, random).
    pub remote_psn: u32,
    /// The smaller of both ports' active MTUs.
    pub path_mtu: Mtu,
    /// The byte of the IP header: DSCP and ECN.
    pub traffic_class: TrafficClass,
    /// 0-7; on RoCE the 802.1p priority.
    pub service_level: u8,
    /// RDMA reads this end may have outstanding: at most the peer's responder depth.
    pub initiator_depth: u8,
    /// RDMA reads of the peer that this end answers at once.
    pub responder_depth: u8,
}

/// What peers may do to this end's windows.
pub(crate) const ACCESS: ffi::ibv_access_flags = ffi::ibv_access_flags(
    ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0 | ffi::ibv_access_flags::IBV_ACCESS_REMOTE_READ.0,
);

/// One transition: what to set, and the bits that say so.
pub(crate) struct Step {
    pub(crate) attributes: ffi::ibv_qp_attr,
    pub(crate) mask: Mask,
    pub(crate) call: &'static str,
}

/// All-zero attributes.
pub(crate) fn blank() -> ffi::ibv_qp_attr {
    // SAFETY: ibv_qp_attr is integers, enums held as integers, and byte arrays: all zeros is a value.
    unsafe { std::mem::zeroed() }
}

/// RESET to INIT.
pub(crate) fn to_init(port: u8) -> Step {
    let mut attributes = blank();
    attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_INIT;
    attributes.pkey_index = PKEY_INDEX;
    attributes.port_num = port;
    attributes.qp_access_flags = ACCESS.0;
    let mask = Mask::IBV_QP_STATE | Mask::IBV_QP_PKEY_INDEX | Mask::IBV_QP_PORT | Mask::IBV_QP_ACCESS_FLAGS;
    Step { attributes, mask, call: "ibv_modify_qp to INIT" }
}

/// RESET to INIT of an unreliable datagram pair: whoever knows `key` may send to it.
pub(crate) fn datagram_to_init(port: u8, key: u32) -> Step {
    let mut attributes = blank();
    attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_INIT;
    attributes.pkey_index = PKEY_INDEX;
    attributes.port_num = port;
    attributes.qkey = key;
    let mask = Mask::IBV_QP_STATE | Mask::IBV_QP_PKEY_INDEX | Mask::IBV_QP_PORT | Mask::IBV_QP_QKEY;
    Step { attributes, mask, call: "ibv_modify_qp to INIT" }
}

/// INIT to RTR, and RTR to RTS, of an unreliable datagram pair.
pub(crate) fn datagram_to_ready() -> [Step; 2] {
    let mut receive = blank();
    receive.qp_state = ffi::ibv_qp_state::IBV_QPS_RTR;
    let mut send = blank();
    send.qp_state = ffi::ibv_qp_state::IBV_QPS_RTS;
    [
        Step { attributes: receive, mask: Mask::IBV_QP_STATE, call: "ibv_modify_qp to RTR" },
        Step {
            attributes: send,
            mask: Mask::IBV_QP_STATE | Mask::IBV_QP_SQ_PSN,
            call: "ibv_modify_qp to RTS",
        },
    ]
}

/// Any state to RESET: what is outstanding is forgotten.
pub(crate) fn to_reset() -> Step {
    let mut attributes = blank();
    attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_RESET;
    Step { attributes, mask: Mask::IBV_QP_STATE, call: "ibv_modify_qp to RESET" }
}

/// Any state to ERR: what is outstanding is flushed.
pub(crate) fn to_error() -> Step {
    let mut attributes = blank();
    attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_ERR;
    Step { attributes, mask: Mask::IBV_QP_STATE, call: "ibv_modify_qp to ERR" }
}

/// A way to a port of a peer, with the class of what goes there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// This end's port, from 1.
    pub port: u8,
    /// The row of this end's GID now, from [`find_roce_v2`](crate::find_roce_v2).
    pub local_gid_index: u8,
    /// The peer's GID.
    pub remote_gid: Gid,
    /// The byte of the IP header: DSCP and ECN.
    pub traffic_class: TrafficClass,
    /// 0-7; on RoCE the 802.1p priority.
    pub service_level: u8,
}

impl Path {
    pub(crate) fn attributes(self) -> ffi::ibv_ah_attr {
        let mut attributes = blank().ah_attr;
        attributes.is_global = 1;
        attributes.port_num = self.port;
        attributes.sl = self.service_level;
        attributes.grh.dgid.raw = self.remote_gid.0;
        attributes.grh.sgid_index = self.local_gid_index;
        attributes.grh.hop_limit = HOP_LIMIT;
        attributes.grh.traffic_class = self.traffic_class.0;
        attributes
    }
}

impl Connection {
    fn path(self) -> Path {
        Path {
            port: self.port,
            local_gid_index: self.local_gid_index,
            remote_gid: self.remote_gid,
            traffic_class: self.traffic_class,
            service_level: self.service_level,
        }
    }

    /// INIT to RTR: the peer, the path, and what this end answers.
    pub(crate) fn to_rtr(self) -> Step {
        let mut attributes = blank();
        attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_RTR;
        attributes.path_mtu = self.path_mtu.to_verbs();
        attributes.dest_qp_num = self.remote_qp_number;
        attributes.rq_psn = self.remote_psn;
        attributes.max_dest_rd_atomic = self.responder_depth;
        attributes.min_rnr_timer = MIN_RNR_TIMER;
        attributes.ah_attr = self.path().attributes();
        let mask = Mask::IBV_QP_STATE
            | Mask::IBV_QP_AV
            | Mask::IBV_QP_PATH_MTU
            | Mask::IBV_QP_DEST_QPN
            | Mask::IBV_QP_RQ_PSN
            | Mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | Mask::IBV_QP_MIN_RNR_TIMER;
        Step { attributes, mask, call: "ibv_modify_qp to RTR" }
    }

    /// RTR to RTS: how this end sends.
    pub(crate) fn to_rts(self) -> Step {
        let mut attributes = blank();
        attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_RTS;
        attributes.sq_psn = self.local_psn;
        attributes.timeout = TIMEOUT;
        attributes.retry_cnt = RETRY_COUNT;
        attributes.rnr_retry = RNR_RETRY;
        attributes.max_rd_atomic = self.initiator_depth;
        let mask = Mask::IBV_QP_STATE
            | Mask::IBV_QP_SQ_PSN
            | Mask::IBV_QP_TIMEOUT
            | Mask::IBV_QP_RETRY_CNT
            | Mask::IBV_QP_RNR_RETRY
            | Mask::IBV_QP_MAX_QP_RD_ATOMIC;
        Step { attributes, mask, call: "ibv_modify_qp to RTS" }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn connection() -> Connection {
        Connection {
            port: 1,
            local_gid_index: 3,
            remote_gid: "::ffff:10.0.0.2".parse().unwrap(),
            remote_qp_number: 0x11,
            local_psn: 0x12_3456,
            remote_psn: 0x65_4321,
            path_mtu: Mtu::B4096,
            traffic_class: TrafficClass(106),
            service_level: 3,
            initiator_depth: 16,
            responder_depth: 16,
        }
    }

    /// The bits as verbs.h numbers them, so that a slip in a name shows.
    #[test]
    fn each_transition_sets_exactly_the_attributes_that_rc_requires() {
        assert_eq!(to_init(1).mask.0, 1 | 1 << 3 | 1 << 4 | 1 << 5);
        let rtr = 1 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 15 | 1 << 17 | 1 << 20;
        assert_eq!(connection().to_rtr().mask.0, rtr);
        let rts = 1 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 16;
        assert_eq!(connection().to_rts().mask.0, rts);
    }

    #[test]
    fn the_path_carries_class_service_level_gid_row_and_a_global_header() {
        let av = connection().to_rtr().attributes.ah_attr;
        assert_eq!((av.is_global, av.port_num, av.sl), (1, 1, 3));
        assert_eq!((av.grh.traffic_class, av.grh.sgid_index, av.grh.hop_limit), (106, 3, 255));
    }

    #[test]
    fn each_direction_has_its_own_first_packet_number() {
        assert_eq!(connection().to_rtr().attributes.rq_psn, 0x65_4321);
        assert_eq!(connection().to_rts().attributes.sq_psn, 0x12_3456);
    }
}
