//! `rocectl capture`: this node in a file.

use crate::cli::CaptureArgs;
use crate::complain;

pub(crate) fn run(arguments: &CaptureArgs) -> anyhow::Result<()> {
    let captured = roce_node::capture(&arguments.sysfs, &arguments.output, arguments.raw)?;
    for problem in &captured.node.problems {
        complain("warning: ", problem);
    }
    complain(
        "",
        &format!(
            "wrote {}: {} files, {} RDMA ports, GUIDs and addresses {}",
            arguments.output.display(),
            captured.files,
            captured.node.ports.len(),
            if arguments.raw { "as they are" } else { "replaced" }
        ),
    );
    Ok(())
}
