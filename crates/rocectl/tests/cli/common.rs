//! Machines in a folder, and the real program run beside them.

use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Two NUMA nodes of one CPU, a NIC on each: small enough for `exec` to pin to on any machine that
/// has two CPUs.
pub(crate) const TWO_CPUS: &str = r#"
about = "Two CPUs on two NUMA nodes, a NIC on each"
distances = [[10, 20], [20, 10]]

[[numa]]
cpus = "0"
package = 0

[[numa]]
cpus = "1"
package = 0

[host]
"pci0000:00" = { numa = 0 }
"pci0000:80" = { numa = 1 }

[[nic]]
at = "pci0000:00/00:01.0/01:00.0"
device = "mlx5_0"
netdev = "eth0"
rate = 100
addresses = ["10.0.0.1"]

[[nic]]
at = "pci0000:80/80:01.0/81:00.0"
device = "mlx5_1"
netdev = "eth1"
rate = 100
addresses = ["10.1.0.1"]
"#;

/// A folder in which `rocectl` runs.
pub(crate) struct Folder(TempDir);

impl Folder {
    /// With these of the shipped machines in it, each a folder of its name.
    pub(crate) fn with(machines: &[&str]) -> Self {
        // A large machine is thousands of files, which memory makes much faster than a disk.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        let folder = Self(folder.unwrap());
        for name in machines {
            roce_machines::named(name).unwrap().build(&folder.path(name)).unwrap();
        }
        folder
    }

    /// With a site file for tests of `exec`: how much memory may be locked differs between the
    /// machines that tests run on.
    pub(crate) fn keeping_memlock(self) -> Self {
        self.file("site.toml", "[limits]\nmemlock = \"keep\"\n")
    }

    /// Adds a machine.
    pub(crate) fn machine(self, name: &str, toml: &str) -> Self {
        roce_machines::Machine::parse(toml).unwrap().build(&self.path(name)).unwrap();
        self
    }

    /// Adds a file.
    pub(crate) fn file(self, name: &str, content: &str) -> Self {
        std::fs::write(self.path(name), content).unwrap();
        self
    }

    /// Where something in it is.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        let path = self.0.path().join(name);
        if path.extension().is_none() && !path.exists() {
            std::fs::create_dir_all(&path).unwrap();
        }
        path
    }

    /// The program with these words, in this folder and without any variable but these.
    pub(crate) fn command(&self, words: &str, variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rocectl"));
        command.args(words.split_whitespace()).current_dir(self.0.path()).env_clear();
        command.env("PATH", "/usr/bin:/bin").envs(variables.iter().copied());
        command
    }

    pub(crate) fn run(&self, words: &str, variables: &[(&str, &str)]) -> Output {
        self.command(words, variables).output().unwrap()
    }

    /// What somebody at a terminal would see, and the exit code where it isn't 0.
    pub(crate) fn seen(&self, words: &str) -> String {
        self.seen_with(words, &[])
    }

    pub(crate) fn seen_with(&self, words: &str, variables: &[(&str, &str)]) -> String {
        let output = self.run(words, variables);
        let set: String = variables.iter().map(|(name, value)| format!("{name}={value} ")).collect();
        let mut seen = format!("$ {set}rocectl {words}\n{}{}", stdout(&output), stderr(&output));
        match output.status.code() {
            Some(0) => {}
            Some(code) => seen += &format!("[exit code {code}]\n"),
            None => seen += "[killed]\n",
        }
        seen
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Can `exec` pin to CPUs 0 and 1 here? Says so where it can't.
pub(crate) fn has_two_cpus() -> bool {
    let two = "0-1".parse().unwrap();
    let has = roce_bind::permitted_cpus().unwrap().intersection(&two) == two;
    if !has {
        assert!(std::env::var_os("ROCE_REQUIRE").is_none(), "CPUs 0 and 1 are not permitted here");
        eprintln!("skipped: CPUs 0 and 1 are not permitted here");
    }
    has
}

/// A file of the folder, as text.
pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
