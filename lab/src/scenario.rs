//! The one scenario that everything is shown with: `examples/pair_exchange` under Slurm, judged by what the wire carried
//! and by what each rank found.

mod judge;
mod report;

pub use judge::{Check, Expectation, judge};
pub use report::{Latency, Nic, Pair, RankReport};

use crate::{
    Cluster, Error, Output,
    wire::{Packet, Table},
};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::Duration,
};

/// One run of the example on the cluster.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its name, also of the folder with the ranks' reports: /lab/out/NAME.
    pub name: String,
    /// What stands between `srun` and the program.
    pub srun: String,
    /// The program's own options.
    pub program: String,
}

/// What a step left behind.
#[derive(Debug, Clone)]
pub struct StepResult {
    /// The command that was typed in the guest.
    pub command: String,
    /// What it printed and returned.
    pub output: Output,
    /// The ranks' own reports, in the order of their ranks.
    pub ranks: Vec<RankReport>,
    /// The RoCEv2 packets, from every capture.
    pub packets: Vec<Packet>,
}

impl StepResult {
    /// The packets, counted at their senders.
    #[must_use]
    pub fn table(&self) -> Table {
        Table::of(&self.packets)
    }
}

impl Step {
    /// A step with two tasks on every node, which is what the demo runs.
    #[must_use]
    pub fn new(name: &str, options: &str) -> Self {
        Self { name: name.into(), srun: format!("-N2 --ntasks-per-node=2 {options}"), program: String::new() }
    }

    /// Adds options of the program.
    #[must_use]
    pub fn with_program_options(self, program: &str) -> Self {
        Self { program: program.into(), ..self }
    }

    /// The command to type.
    #[must_use]
    pub fn command(&self) -> String {
        let program = ["/lab/bin/pair_exchange", &self.program, "--report", &self.folder()];
        let program: Vec<_> = program.into_iter().filter(|word| !word.is_empty()).collect();
        format!("srun {} {}", self.srun.trim_end(), program.join(" "))
    }

    /// Where the ranks' reports go, as guests see it.
    #[must_use]
    pub fn folder(&self) -> String {
        format!("/lab/out/{}", self.name)
    }

    /// Types the command on `vm1`, as the ordinary user with 64 KiB of locked memory, and gathers what it left.
    ///
    /// # Errors
    /// Those of [`Cluster::run`] and of reading captures and reports. A command that fails is no error.
    pub fn run(&self, cluster: &Cluster, timeout: Duration) -> Result<StepResult, Error> {
        self.run_script(cluster, &self.command(), timeout)
    }

    /// As [`run`](Self::run), with a script in place of the command; it should run the command somehow.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_script(
        &self,
        cluster: &Cluster,
        script: &str,
        timeout: Duration,
    ) -> Result<StepResult, Error> {
        let folder = self.empty_folder(cluster)?;
        let mark = cluster.captures().mark();
        let output = cluster.run("vm1", script, timeout)?;
        let ranks = report::read_all(&folder)?;
        let packets = cluster.captures().packets_since(&mark)?;
        Ok(StepResult { command: script.into(), output, ranks, packets })
    }

    /// Makes the reports' folder anew, so that no report of an earlier run is taken for this run's. Anybody in the guest
    /// may write there: if an ordinary user runs the lab, all files are that user's, whoever in the guest makes them.
    fn empty_folder(&self, cluster: &Cluster) -> Result<PathBuf, Error> {
        let folder = cluster.share().join("out").join(&self.name);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(Error::file("remove", &folder))?;
        }
        fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        fs::set_permissions(&folder, Permissions::from_mode(0o777))
            .map_err(Error::file("open up", &folder))?;
        Ok(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_those_that_the_readme_promises() {
        let one = Step::new("step1", "--roce-tc=3 --roce=verbose");
        assert_eq!(
            one.command(),
            "srun -N2 --ntasks-per-node=2 --roce-tc=3 --roce=verbose /lab/bin/pair_exchange --report /lab/out/step1"
        );
        let two = Step::new("step2", "--roce-tc=3 --roce=verbose --roce-nics=all")
            .with_program_options("--peers all");
        assert!(
            two.command()
                .ends_with("--roce-nics=all /lab/bin/pair_exchange --peers all --report /lab/out/step2")
        );
    }
}
