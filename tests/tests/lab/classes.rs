//! The class on the wire follows what was asked, and only that; so does the locked-memory limit.

use crate::{
    Control,
    lab::{Lab, TIMEOUT, all_idle, ensure, must_hold, must_run, without_plugin},
};
use libtest_mimic::Failed;
use roce_lab::scenario::{Expectation, Step};

pub(crate) const CONTROLS: &[Control] = &[
    Control { name: "classes::without_the_plugin_the_dscp_is_0", run: no_plugin },
    Control { name: "classes::roce_dscp_46_is_46_on_the_wire", run: dscp_46 },
    Control { name: "classes::a_plain_srun_inside_sbatch_inherits_the_jobs_class", run: sbatch },
    Control {
        name: "classes::memlock_is_unlimited_in_a_step_of_ours_and_the_shells_in_others",
        run: memlock,
    },
];

fn no_plugin(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    // What the plugin would have done: a secret for the exchange, and memory that may be locked.
    let step = Step::new("no-plugin", "--propagate=NONE");
    let script = format!("export SLURM_ROCE_SECRET={}\n{}", "5a".repeat(32), step.command());
    let result = without_plugin(&cluster, || Ok(step.run_script(&cluster, &script, TIMEOUT)?))?;
    // Without the plugin nobody chose the NICs, so that a rail may be silent: the class is what this is about.
    ensure(result.output.success(), || format!("{}{}", result.output.stdout, result.output.stderr))?;
    let table = result.table();
    ensure(table.dscps() == [0], || format!("not DSCP 0 alone:\n{table}"))
}

fn dscp_46(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let result = Step::new("dscp46", "--roce-dscp=46").run(&cluster, TIMEOUT)?;
    must_hold(&result, &Expectation::pairs(46))
}

fn sbatch(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let step = Step::new("sbatch", "");
    // sbatch --wait looks every few seconds; the job's own mark is there at once.
    let script = "cd /lab/out\n\
                  rm -f sbatch.status\n\
                  cat > /tmp/job.sh <<'END'\n\
                  #!/bin/bash\n\
                  #SBATCH -N2\n\
                  #SBATCH --ntasks-per-node=2\n\
                  #SBATCH --roce-tc=3\n\
                  #SBATCH --output=/lab/out/sbatch.log\n\
                  srun /lab/bin/pair_exchange --report /lab/out/sbatch\n\
                  echo $? > /lab/out/sbatch.status\n\
                  END\n\
                  sbatch /tmp/job.sh || exit\n\
                  until [ -s sbatch.status ]; do sleep 0.2; done\n\
                  cat sbatch.log\n\
                  exit $(cat sbatch.status)";
    let result = step.run_script(&cluster, script, TIMEOUT)?;
    must_hold(&result, &Expectation::pairs(26))?;
    all_idle(&cluster)
}

fn memlock(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let limits = |options: &str| -> Result<Vec<String>, Failed> {
        let output =
            must_run(&cluster, &format!("srun -N2 --ntasks-per-node=1 {options} bash -c 'ulimit -l'"))?;
        Ok(output.stdout.lines().map(str::to_owned).collect())
    };
    let shell = must_run(&cluster, "ulimit -l")?;
    ensure(shell.stdout.trim() == "64", || format!("the submitting shell has {}", shell.stdout))?;
    let (ours, others) = (limits("--roce-tc=3")?, limits("")?);
    ensure(ours == ["unlimited", "unlimited"], || format!("with --roce-tc=3: {ours:?}"))?;
    ensure(others == ["64", "64"], || format!("without an option: {others:?}"))
}
