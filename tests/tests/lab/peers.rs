//! Rails are wires of their own: who has no NIC on a peer's rail can't reach it, and must say so.

use crate::{
    Control,
    lab::{Lab, TIMEOUT, all_idle, ensure, told},
};
use libtest_mimic::Failed;
use roce_lab::scenario::Step;

pub(crate) const CONTROLS: &[Control] = &[Control {
    name: "peers::with_one_nic_each_a_pair_across_rails_is_refused_with_both_gids",
    run: across_rails,
}];

fn across_rails(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let step = Step::new("across", "--roce-tc=3").with_program_options("--peers all");
    let result = step.run(&cluster, TIMEOUT)?;
    ensure(!result.output.success(), || "the command returned 0".into())?;
    let text = &result.output.stderr;
    let names_both = |line: &str| {
        line.contains("share no rail") && line.contains("::ffff:10.0.0.") && line.contains("::ffff:10.0.1.")
    };
    ensure(text.lines().any(names_both), || {
        let told = told(&result.command, &result.output);
        format!(
            "no line with \"share no rail\" and a GID of each rail: {}",
            told.message().unwrap_or_default()
        )
    })?;
    ensure(!text.contains("panicked"), || format!("a panic: {text}"))?;
    all_idle(&cluster)
}
