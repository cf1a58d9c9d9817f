//! The demo's two steps.

use crate::{
    Control,
    lab::{Lab, TIMEOUT, all_idle, must_hold},
};
use libtest_mimic::Failed;
use roce_lab::scenario::{Expectation, Step};

pub(crate) const CONTROLS: &[Control] = &[
    Control { name: "demo::each_task_uses_the_nic_of_its_numa_node_in_the_class_asked_for", run: step_one },
    Control { name: "demo::with_all_nics_every_rank_reaches_every_rank_of_the_other_node", run: step_two },
];

fn step_one(lab: &Lab) -> Result<(), Failed> {
    run(lab, &Step::new("step1", "--roce-tc=3 --roce=verbose"), &Expectation::pairs(26))
}

fn step_two(lab: &Lab) -> Result<(), Failed> {
    let step =
        Step::new("step2", "--roce-tc=3 --roce=verbose --roce-nics=all").with_program_options("--peers all");
    run(lab, &step, &Expectation::all_to_all(26))
}

fn run(lab: &Lab, step: &Step, expected: &Expectation) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    must_hold(&step.run(&cluster, TIMEOUT)?, expected)?;
    all_idle(&cluster)
}
