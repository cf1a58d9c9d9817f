//! The tests of the crate for verbs that need a device.

use crate::{
    Control,
    lab::{Lab, TIMEOUT, ensure, told},
};
use libtest_mimic::Failed;

pub(crate) const CONTROLS: &[Control] =
    &[Control { name: "verbs::what_ends_with_a_connection_and_what_does_not", run: soft_roce }];

fn soft_roce(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let script = "ulimit -l unlimited\n\
                  export ROCE_TEST_PORT=rxe0 ROCE_TEST_GID=::ffff:10.0.0.1\n\
                  /lab/bin/soft_roce --ignored --test-threads=1";
    let output = cluster.run_as_root("vm1", script, TIMEOUT)?;
    ensure(
        output.success() && output.stdout.contains("test result: ok. 3 passed; 0 failed; 0 ignored"),
        || told(script, &output).message().unwrap_or_default().to_owned(),
    )
}
