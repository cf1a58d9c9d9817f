//! What nobody can do without who sends and receives eight bytes over libibverbs, for callgrind to count as it counts ours: one post of each
//! kind, whose request was filled in before, and one look at each completion queue, as `ib_send_lat` has it. The queue pair is its own peer.
#![expect(unsafe_code, reason = "calls libibverbs")]

use std::mem::zeroed;
use std::path::Path;
use std::ptr::null_mut;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rdma_mummy_sys as ffi;
use rdma_mummy_sys::ibv_qp_attr_mask as Mask;
use roce_launcher::{Job, Nic};

/// Many times what a packet takes.
const PAUSE: Duration = Duration::from_millis(10);

pub(crate) fn count(job: &Job, times: u32) -> Result<()> {
    let nic = job.require_nics()?.nics.first().context("no NIC")?.clone();
    let mut bare = Bare::open(&nic)?;
    for _ in 0..times {
        counted_send(&mut bare)?;
        std::thread::sleep(PAUSE);
        counted_receive(&mut bare)?;
    }
    Ok(())
}

/// Lives as long as the process, and is not moved.
struct Bare {
    pair: *mut ffi::ibv_qp,
    sent: *mut ffi::ibv_cq,
    received: *mut ffi::ibv_cq,
    send: Box<ffi::ibv_send_wr>,
    receive: Box<ffi::ibv_recv_wr>,
    entry: Box<ffi::ibv_wc>,
}

#[inline(never)]
fn counted_send(bare: &mut Bare) -> Result<()> {
    let mut bad = null_mut();
    // SAFETY: the queue pair exists, and the request with its part, whose memory is registered.
    let code = unsafe { ffi::ibv_post_send(bare.pair, &raw mut *bare.send, &raw mut bad) };
    ensure!(code == 0, "ibv_post_send: {code}");
    Ok(())
}

#[inline(never)]
fn counted_receive(bare: &mut Bare) -> Result<()> {
    for queue in [bare.sent, bare.received] {
        // SAFETY: the queue exists; there is room for one entry.
        let count = unsafe { ffi::ibv_poll_cq(queue, 1, &raw mut *bare.entry) };
        ensure!(count == 1 && bare.entry.status == ffi::ibv_wc_status::IBV_WC_SUCCESS, "no completion");
    }
    let mut bad = null_mut();
    // SAFETY: as above.
    let code = unsafe { ffi::ibv_post_recv(bare.pair, &raw mut *bare.receive, &raw mut bad) };
    ensure!(code == 0, "ibv_post_recv: {code}");
    Ok(())
}

impl Bare {
    fn open(nic: &Nic) -> Result<Self> {
        let row = {
            let table = roce_verbs::read_gid_table(Path::new(roce_verbs::INFINIBAND), &nic.port)?;
            roce_verbs::find_roce_v2(&table, &nic.port, nic.gid)?
        };
        // SAFETY: each call gets what an earlier one made, which is looked at first, and attributes that live during the call. Nothing
        // that is made is ever destroyed. All the structs are integers and pointers, for which zeros are a value.
        unsafe {
            let mut count = 0;
            let list = ffi::ibv_get_device_list(&raw mut count);
            ensure!(!list.is_null() && count == 1, "{count} devices, not one");
            let context = ffi::ibv_open_device(*list);
            ensure!(!context.is_null(), "ibv_open_device");
            let domain = ffi::ibv_alloc_pd(context);
            ensure!(!domain.is_null(), "ibv_alloc_pd");
            let memory: &mut [u64; 512] = Box::leak(Box::new([1; 512]));
            let start = memory.as_mut_ptr();
            let access = ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0;
            let region = ffi::ibv_reg_mr(domain, start.cast(), size_of_val(memory), access as i32);
            ensure!(!region.is_null(), "ibv_reg_mr");
            let queue = || ffi::ibv_create_cq(context, 8, null_mut(), null_mut(), 0);
            let (sent, received) = (queue(), queue());
            ensure!(!sent.is_null() && !received.is_null(), "ibv_create_cq");
            let mut wanted: ffi::ibv_qp_init_attr = zeroed();
            (wanted.send_cq, wanted.recv_cq) = (sent, received);
            wanted.qp_type = ffi::ibv_qp_type::IBV_QPT_RC;
            wanted.cap = ffi::ibv_qp_cap {
                max_send_wr: 4,
                max_recv_wr: 4,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 0,
            };
            let pair = ffi::ibv_create_qp(domain, &raw mut wanted);
            ensure!(!pair.is_null(), "ibv_create_qp");
            connect(pair, nic, row)?;

            let part = |place: usize| {
                let addr = start.add(place).addr() as u64;
                Box::leak(Box::new(ffi::ibv_sge { addr, length: 8, lkey: (*region).lkey }))
            };
            let mut send: Box<ffi::ibv_send_wr> = Box::new(zeroed());
            (send.sg_list, send.num_sge) = (part(0), 1);
            send.opcode = ffi::ibv_wr_opcode::IBV_WR_SEND;
            send.send_flags = ffi::ibv_send_flags::IBV_SEND_SIGNALED.0;
            let mut receive: Box<ffi::ibv_recv_wr> = Box::new(zeroed());
            (receive.sg_list, receive.num_sge) = (part(8), 1);
            let mut bad = null_mut();
            let code = ffi::ibv_post_recv(pair, &raw mut *receive, &raw mut bad);
            ensure!(code == 0, "ibv_post_recv: {code}");
            Ok(Self { pair, sent, received, send, receive, entry: Box::new(zeroed()) })
        }
    }
}

/// Connects a queue pair with itself.
///
/// # Safety
/// It exists.
unsafe fn connect(pair: *mut ffi::ibv_qp, nic: &Nic, row: u8) -> Result<()> {
    // SAFETY: the caller's; the attributes live during each call, and zeros are a value of all they have.
    unsafe {
        let mut to: ffi::ibv_qp_attr = zeroed();
        let modify = |to: &mut ffi::ibv_qp_attr, mask: Mask| {
            let code = ffi::ibv_modify_qp(pair, to, mask.0 as i32);
            ensure!(code == 0, "ibv_modify_qp: {code}");
            Ok(())
        };
        (to.qp_state, to.port_num) = (ffi::ibv_qp_state::IBV_QPS_INIT, nic.port.port);
        modify(
            &mut to,
            Mask::IBV_QP_STATE | Mask::IBV_QP_PKEY_INDEX | Mask::IBV_QP_PORT | Mask::IBV_QP_ACCESS_FLAGS,
        )?;
        to.qp_state = ffi::ibv_qp_state::IBV_QPS_RTR;
        to.path_mtu = ffi::ibv_mtu::IBV_MTU_1024;
        to.dest_qp_num = (*pair).qp_num;
        (to.max_dest_rd_atomic, to.min_rnr_timer) = (1, 12);
        (to.ah_attr.is_global, to.ah_attr.port_num) = (1, nic.port.port);
        to.ah_attr.grh.dgid.raw = nic.gid.0;
        (to.ah_attr.grh.sgid_index, to.ah_attr.grh.hop_limit) = (row, 64);
        modify(
            &mut to,
            Mask::IBV_QP_STATE
                | Mask::IBV_QP_AV
                | Mask::IBV_QP_PATH_MTU
                | Mask::IBV_QP_DEST_QPN
                | Mask::IBV_QP_RQ_PSN
                | Mask::IBV_QP_MAX_DEST_RD_ATOMIC
                | Mask::IBV_QP_MIN_RNR_TIMER,
        )?;
        to.qp_state = ffi::ibv_qp_state::IBV_QPS_RTS;
        (to.timeout, to.retry_cnt, to.rnr_retry, to.max_rd_atomic) = (18, 7, 7, 1);
        modify(
            &mut to,
            Mask::IBV_QP_STATE
                | Mask::IBV_QP_SQ_PSN
                | Mask::IBV_QP_TIMEOUT
                | Mask::IBV_QP_RETRY_CNT
                | Mask::IBV_QP_RNR_RETRY
                | Mask::IBV_QP_MAX_QP_RD_ATOMIC,
        )
    }
}
