//! Did the kernel take what was asked? Compares `ibv_query_qp(3)` with what was set.
#![expect(unsafe_code, reason = "reads the raw bytes of a GID from a C union")]

use rdma_mummy_sys as ffi;
use roce_types::Gid;

use crate::connection::{Connection, MIN_RNR_TIMER, RETRY_COUNT, RNR_RETRY, TIMEOUT};
use crate::error::{Error, Result};

/// What reading a queue pair back told.
///
/// Providers may leave attributes out of their answer: rxe and mlx5 do not report the service level of a RoCE
/// path, others report no path at all. Such an attribute reads as zero and counts as not reported; any other
/// value than the one asked for is an error.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Readback {
    /// Attributes that the kernel reports as they were set.
    pub confirmed: Vec<&'static str>,
    /// Attributes that were set to something, and of which the kernel reports nothing.
    pub not_reported: Vec<&'static str>,
}

pub(crate) fn check(
    asked: &Connection,
    reported: &ffi::ibv_qp_attr,
    device: &str,
    qp_number: u32,
) -> Result<Readback> {
    let mut readback = Readback::default();
    let wrong = |field, asked: String, reported: String| Error::NotAsAsked {
        device: device.to_owned(),
        qp_number,
        field,
        asked,
        reported,
    };
    // The state is what every provider reports; without it nothing else counts.
    if reported.qp_state != ffi::ibv_qp_state::IBV_QPS_RTS {
        return Err(wrong("state", "RTS (3)".to_owned(), reported.qp_state.to_string()));
    }
    let path = &reported.ah_attr;
    // SAFETY: both members of the union are 16 plain bytes.
    let gid = Gid(unsafe { path.grh.dgid.raw });
    if gid == asked.remote_gid {
        readback.confirmed.push("peer's GID");
    } else if gid.is_zero() {
        readback.not_reported.push("peer's GID");
    } else {
        return Err(wrong("peer's GID", asked.remote_gid.to_string(), gid.to_string()));
    }
    // Without a GID there is no path in the answer, so a zero says nothing about the traffic class either.
    let no_path = gid.is_zero();
    let fields: [(&'static str, u32, u32, bool); 11] = [
        ("traffic class", asked.traffic_class.0.into(), path.grh.traffic_class.into(), no_path),
        ("GID index", asked.local_gid_index.into(), path.grh.sgid_index.into(), no_path),
        ("service level", asked.service_level.into(), path.sl.into(), true),
        ("path MTU", asked.path_mtu.to_verbs(), reported.path_mtu, true),
        ("peer's queue pair", asked.remote_qp_number, reported.dest_qp_num, true),
        ("timeout", TIMEOUT.into(), reported.timeout.into(), true),
        ("retry count", RETRY_COUNT.into(), reported.retry_cnt.into(), true),
        ("receiver-not-ready retries", RNR_RETRY.into(), reported.rnr_retry.into(), true),
        ("receiver-not-ready timer", MIN_RNR_TIMER.into(), reported.min_rnr_timer.into(), true),
        ("initiator depth", asked.initiator_depth.into(), reported.max_rd_atomic.into(), true),
        ("responder depth", asked.responder_depth.into(), reported.max_dest_rd_atomic.into(), true),
    ];
    for (field, asked, reported, may_be_left_out) in fields {
        if asked == reported {
            readback.confirmed.push(field);
        } else if reported == 0 && may_be_left_out {
            readback.not_reported.push(field);
        } else {
            return Err(wrong(field, asked.to_string(), reported.to_string()));
        }
    }
    Ok(readback)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::tests::connection;

    /// What a provider that reports everything answers.
    fn complete() -> ffi::ibv_qp_attr {
        let mut attributes = connection().to_rtr().attributes;
        let rts = connection().to_rts().attributes;
        attributes.qp_state = rts.qp_state;
        attributes.timeout = rts.timeout;
        attributes.retry_cnt = rts.retry_cnt;
        attributes.rnr_retry = rts.rnr_retry;
        attributes.max_rd_atomic = rts.max_rd_atomic;
        attributes
    }

    fn checked(attributes: &ffi::ibv_qp_attr) -> Result<Readback> {
        check(&connection(), attributes, "rxe0", 0x12)
    }

    #[test]
    fn a_complete_answer_confirms_everything() {
        let readback = checked(&complete()).unwrap();
        assert_eq!(readback.not_reported, Vec::<&str>::new());
        assert_eq!(readback.confirmed.len(), 12);
    }

    #[test]
    fn a_traffic_class_that_was_dropped_is_an_error_that_names_it() {
        let mut attributes = complete();
        attributes.ah_attr.grh.traffic_class = 0;
        let error = checked(&attributes).unwrap_err().to_string();
        assert_eq!(error, "queue pair 18 of rxe0 was given traffic class 106, but the kernel reports 0");
    }

    #[test]
    fn a_service_level_that_the_provider_leaves_out_is_told_but_no_error() {
        let mut attributes = complete();
        attributes.ah_attr.sl = 0;
        assert_eq!(checked(&attributes).unwrap().not_reported, ["service level"]);
        attributes.ah_attr.sl = 5;
        assert!(checked(&attributes).is_err());
    }

    #[test]
    fn a_provider_that_reports_no_path_leaves_the_class_unconfirmed() {
        let mut attributes = complete();
        attributes.ah_attr = crate::connection::blank().ah_attr;
        let readback = checked(&attributes).unwrap();
        assert!(readback.not_reported.contains(&"traffic class"));
        assert!(readback.confirmed.contains(&"path MTU"));
    }

    #[test]
    fn a_queue_pair_that_is_not_ready_is_an_error_whatever_else_it_reports() {
        let mut attributes = complete();
        attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_ERR;
        assert!(checked(&attributes).unwrap_err().to_string().contains("state"));
    }
}
