//! Open MPI over UCX, as Debian packages them, follows the plan without a flag of its own: read from the wire.

use crate::{
    Control,
    lab::{Lab, TIMEOUT, ensure, told},
};
use libtest_mimic::Failed;
use roce_lab::Cluster;
use std::{collections::BTreeSet, net::IpAddr};

pub(crate) const CONTROLS: &[Control] = &[
    Control { name: "mpi::open_mpi_under_the_plugin_uses_the_nic_of_its_cpu", run: under_the_plugin },
    Control { name: "mpi::mpirun_rocectl_exec_uses_the_planned_nic_without_the_plugin", run: under_rocectl },
];

/// A ping-pong of messages up to 8 bytes between two ranks (NetPIPE).
const PING_PONG: &str = "NPopenmpi -u 8 -o /tmp/netpipe";

/// UCX's wire-up drops every packet on soft-RoCE without these; hardware needs neither.
const FOR_SOFT_ROCE: &str = "export UCX_UD_VERBS_ETH_DGID_CHECK=n UCX_UD_ETH_DGID_CHECK=n";

fn under_the_plugin(lab: &Lab) -> Result<(), Failed> {
    let cluster = cluster_with_ucx(lab)?;
    // CPU k is on NUMA node k, and that has rail k.
    for rail in [1, 0] {
        let srun = format!(
            "srun --mpi=pmix -N2 --ntasks-per-node=1 -c2 --cpu-bind=map_cpu:{rail} --roce-tc=3 {PING_PONG}"
        );
        must_use_rail(&cluster, &srun, rail)?;
    }
    Ok(())
}

fn under_rocectl(lab: &Lab) -> Result<(), Failed> {
    let cluster = cluster_with_ucx(lab)?;
    let mpirun = format!(
        "salloc -N2 --ntasks-per-node=1 -c2 \
         mpirun --bind-to none /lab/bin/rocectl exec --roce-tc=3 --roce-nics=rxe1 -- {PING_PONG}"
    );
    must_use_rail(&cluster, &mpirun, 1)
}

/// The cluster, with UCX switched on, which Debian's Open MPI has off in its file of defaults.
fn cluster_with_ucx(lab: &Lab) -> Result<std::sync::Arc<Cluster>, Failed> {
    let cluster = lab.cluster()?;
    for node in cluster.nodes() {
        let script = "sed -i '/^pml *= *^ucx/d' /etc/openmpi/openmpi-mca-params.conf";
        let output = cluster.run_as_root(node, script, TIMEOUT)?;
        ensure(output.success(), || told(script, &output).message().unwrap_or_default().to_owned())?;
    }
    Ok(cluster)
}

/// Runs the command as the ordinary user. It must send over this rail alone, both ways, with DSCP 26, between the
/// addresses of that rail.
fn must_use_rail(cluster: &Cluster, command: &str, rail: usize) -> Result<(), Failed> {
    let mark = cluster.captures().mark();
    // mpirun starts its ranks from the shell, and without the plugin nobody raises the shell's locked-memory limit.
    let script = format!(
        "cd /tmp; ulimit -l unlimited\n\
         setpriv --reuid=1000 --regid=1000 --clear-groups env HOME=/home/user bash -c '{FOR_SOFT_ROCE}; timeout -k 5 45 {command}'"
    );
    let output = cluster.run_as_root("vm1", &script, TIMEOUT)?;
    let told = || told(&script, &output).message().unwrap_or_default().to_owned();
    // Not the exit code: on soft-RoCE, UCX's disconnect in MPI_Finalize hangs now and then, when all is said and done.
    ensure([&output.stdout, &output.stderr].iter().any(|text| text.contains(" 8 bytes ")), told)?;
    let packets = cluster.captures().packets_since(&mark)?;
    let seen: BTreeSet<(usize, u8, IpAddr)> =
        packets.iter().map(|packet| (packet.rail, packet.dscp, packet.source)).collect();
    let address = |node: u8| IpAddr::from([10, 0, u8::try_from(rail).unwrap_or(u8::MAX), node]);
    let expected = BTreeSet::from([(rail, 26, address(1)), (rail, 26, address(2))]);
    ensure(seen == expected, || {
        format!("rails, DSCPs and sources on the wire are {seen:?}, not {expected:?}; {}", told())
    })
}
