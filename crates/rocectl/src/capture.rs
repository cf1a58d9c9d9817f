//! `rocectl capture`: this node in a file.

use crate::cli::CaptureArgs;
use crate::complain;
use crate::show::count;

pub(crate) fn run(arguments: &CaptureArgs) -> anyhow::Result<()> {
    let captured = roce_node::capture(&arguments.sysfs, &arguments.output, arguments.raw)?;
    for problem in &captured.node.problems {
        complain("warning: ", problem);
    }
    complain(
        "",
        &format!(
            "wrote {}: {}, GUIDs and addresses {}",
            arguments.output.display(),
            count(captured.node.ports.len(), "RDMA port"),
            if arguments.raw { "as they are" } else { "replaced" }
        ),
    );
    Ok(())
}
