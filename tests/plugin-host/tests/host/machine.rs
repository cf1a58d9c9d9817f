//! A made-up machine, and the plugin that reads it.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use roce_cluster::{prerequisites, sysfs};
use roce_plugin_host::plugin::Plugin;
use roce_plugin_host::step::Step;

/// Two NUMA nodes of one CPU and one NIC each, and a site file.
pub(crate) struct Machine {
    folder: tempfile::TempDir,
    pub(crate) file: PathBuf,
}

impl Machine {
    pub(crate) fn new() -> Result<Self> {
        // In memory: some tests write the tree a hundred times.
        let folder = tempfile::Builder::new().prefix("roce-host-").tempdir_in("/dev/shm")?;
        // The step's user reads it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let machine = Self { folder, file: prerequisites::plugin()? };
        sysfs::write_two_nics(&machine.root())?;
        machine.site("")?;
        Ok(machine)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Writes the site file. The locked-memory limit stays: not every machine may raise it.
    pub(crate) fn site(&self, policy: &str) -> Result<()> {
        let text = format!("[limits]\nmemlock = \"keep\"\n[policy]\n{policy}\n");
        Ok(fs::write(self.folder.path().join("roce.toml"), text)?)
    }

    /// The arguments of plugstack.conf for this machine, and more.
    pub(crate) fn arguments(&self, more: &[&str]) -> Result<Vec<CString>> {
        let path = |name: &str, path: &Path| {
            CString::new([name.as_bytes(), path.as_os_str().as_bytes()].concat()).context("a path")
        };
        let own = [path("sysfs=", &self.root())?, path("config=", &self.folder.path().join("roce.toml"))?];
        let more = more.iter().map(|argument| CString::new(*argument).context("an argument"));
        own.into_iter().map(Ok).chain(more).collect()
    }

    /// Loads the plugin into this process, which should be one of its own.
    pub(crate) fn load(&self) -> Result<Plugin> {
        Plugin::load(&self.file, &self.arguments(&[])?)
    }
}

/// The plugin with the feature that panics on demand.
pub(crate) fn faulty() -> Result<PathBuf> {
    let built = prerequisites::target().join("fault-injection/debug/libspank_roce.so");
    let path = std::env::var_os("ROCE_PLUGIN_FAULTY").map_or(built, PathBuf::from);
    ensure!(path.exists(), "{} does not exist; run `cargo xtask test --only host`", path.display());
    Ok(path)
}

/// A step of two tasks, bound to a CPU each, that asks for a class.
pub(crate) fn asking() -> Step {
    let binding = ["0", "1"].iter().filter_map(|cpu| cpu.parse().ok()).collect();
    Step { tasks: 2, binding, options: vec![("roce-tc", c"3".to_owned())], ..Step::default() }
}
