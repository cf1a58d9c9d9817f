//! A node that has no RDMA at all, with the same programs on it.

use crate::{
    Control,
    lab::{Lab, TIMEOUT, all_idle, ensure, told},
};
use libtest_mimic::Failed;
use roce_lab::{Cluster, Output};

pub(crate) const CONTROLS: &[Control] = &[Control {
    name: "no_rdma::the_plugin_and_the_launcher_say_so_and_neither_crashes_nor_hangs",
    run: no_rdma,
}];

const TAKE_AWAY: &str = "rdma link del rxe0 && rdma link del rxe1 && \
                         modprobe -r rdma_ucm rdma_cm iw_cm ib_cm rdma_rxe ib_uverbs ib_core && \
                         [ ! -e /sys/class/infiniband ]";
const PUT_BACK: &str = "modprobe -a rdma_rxe ib_uverbs rdma_ucm && rdma link add rxe0 type rxe netdev rail0 && \
                        rdma link add rxe1 type rxe netdev rail1";

fn no_rdma(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let result = as_root(&cluster, TAKE_AWAY).and_then(|()| both(&cluster));
    as_root(&cluster, PUT_BACK)?;
    result?;
    all_idle(&cluster)
}

fn both(cluster: &Cluster) -> Result<(), Failed> {
    let srun = |options: &str| -> Result<(String, Output), Failed> {
        let script =
            format!("srun -N1 -n1 -w vm2 {options} /lab/bin/pair_exchange --report /lab/out/no-rdma");
        let output = cluster.run("vm1", &script, TIMEOUT)?;
        Ok((script, output))
    };
    let (script, output) = srun("--roce-tc=3")?;
    let ours: Vec<_> = output.stderr.lines().filter(|line| line.contains("spank_roce:")).collect();
    let says =
        ours.len() == 1 && ["vm2", "no RoCE port", "--roce-tc=3"].iter().all(|word| ours[0].contains(word));
    ensure(!output.success() && says, || {
        let told = told(&script, &output);
        format!(
            "not one line with the node, \"no RoCE port\" and the option: {}",
            told.message().unwrap_or_default()
        )
    })?;

    // Nothing asked of the plugin: now the program itself finds no device.
    let (script, output) = srun("")?;
    let calm = !output.success() && output.status < 128 && !output.stderr.contains("panicked");
    ensure(calm && output.stderr.contains("no RoCE port"), || {
        let told = told(&script, &output);
        format!("not an error that says \"no RoCE port\": {}", told.message().unwrap_or_default())
    })
}

fn as_root(cluster: &Cluster, script: &str) -> Result<(), Failed> {
    let output = cluster.run_as_root("vm2", script, TIMEOUT)?;
    ensure(output.success(), || told(script, &output).message().unwrap_or_default().to_owned())
}
