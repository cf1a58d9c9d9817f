//! `rocectl restore`: puts back the default class that a killed step has left.

use roce_node_wide::NodeWide;

use crate::cli::RestoreArgs;
use crate::print;

pub(crate) fn run(arguments: &RestoreArgs) -> anyhow::Result<()> {
    let node = NodeWide::below(&std::path::absolute(&arguments.sysfs)?);
    let owners = node.owners()?;
    if !owners.is_empty() && !arguments.force {
        let list: Vec<String> =
            owners.iter().map(|owner| format!("step {} (slurmstepd {})", owner.step, owner.pid)).collect();
        anyhow::bail!(
            "{} still needs the class, and puts it back at its end; --force puts it back now",
            list.join(", ")
        );
    }
    let restored = if arguments.force { node.take_away()? } else { node.recover()? };
    if restored.is_empty() {
        return print("nothing to restore\n");
    }
    print(&restored.iter().map(|line| format!("{line}\n")).collect::<String>())
}
