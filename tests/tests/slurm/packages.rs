//! The packages as an administrator uses them: installed, configured, upgraded and removed, while steps run.
//!
//! They install into /usr and /etc, so these tests are there only in the throw-away roots of the suites, where
//! `ROCE_PACKAGES` names the folder of the packages: the first revision as 1.deb and 1.rpm, the second as 2.deb and 2.rpm.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::Test;
use crate::cluster::Cluster;
use crate::run::{Ran, program, srun};
use crate::sysfs;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("the_deb_lives_and_dies_among_running_steps", deb),
    ("the_rpm_lives_and_dies_among_running_steps", rpm),
];

/// The folder of the packages, in a root that may be installed into.
pub(crate) fn folder() -> Option<PathBuf> {
    std::env::var_os("ROCE_PACKAGES").map(PathBuf::from)
}

const FRAGMENT: &str = "/etc/slurm/plugstack.conf.d/roce.conf";
const SITE: &str = "/etc/slurm/roce.toml";
const PLUGSTACK: &str = "/etc/slurm/plugstack.conf";
const INCLUDE: &str = "include /etc/slurm/plugstack.conf.d/*.conf\n";
/// Slurm's plugin directories: Debian's, and that of SchedMD's RPMs.
const DEBIAN_PLUGINS: &str = "/usr/lib/x86_64-linux-gnu/slurm-wlm";
const RPM_PLUGINS: &str = "/usr/lib64/slurm";

/// The commands of a package manager.
struct Manager {
    kind: &'static str,
    install: Vec<&'static str>,
    upgrade: Vec<&'static str>,
    remove: Vec<&'static str>,
    /// Where it puts the plugin.
    plugins: &'static str,
}

fn deb(cluster: &Cluster) -> Result<()> {
    let dpkg = Manager {
        kind: "deb",
        install: vec!["dpkg", "--install"],
        upgrade: vec!["dpkg", "--install"],
        remove: vec!["dpkg", "--remove", "spank-roce"],
        plugins: DEBIAN_PLUGINS,
    };
    let before = configuration()?;
    dpkg.lives_and_dies(cluster)?;
    // Removed, what the admin wrote stays; purged, nothing does.
    ensure!(fs::read_to_string(SITE)?.ends_with(EDIT), "the edited site file is gone");
    program("dpkg").args(["--purge", "spank-roce"]).run(cluster)?.succeeded()?;
    let after = configuration()?;
    ensure!(after == before, "after the purge there is {after:?}, before the installation {before:?}");
    Ok(())
}

fn rpm(cluster: &Cluster) -> Result<()> {
    // Where SchedMD's RPMs have their plugins, this root's Slurm looks too.
    fs::create_dir_all("/usr/lib64")?;
    if !Path::new(RPM_PLUGINS).exists() {
        symlink(DEBIAN_PLUGINS, RPM_PLUGINS)?;
    }
    // Debian's rpm knows of no installed libc, and older ones ask whether one means it.
    let has_force = program("rpm").args(["--help"]).run(cluster)?.stdout.contains("--force-debian");
    let rpm = |action| {
        let force = has_force.then_some("--force-debian");
        ["rpm", action, "--nodeps"].into_iter().chain(force).collect()
    };
    let rpm = Manager {
        kind: "rpm",
        install: rpm("--install"),
        upgrade: rpm("--upgrade"),
        remove: vec!["rpm", "--erase", "spank-roce"],
        plugins: RPM_PLUGINS,
    };
    rpm.lives_and_dies(cluster)?;
    let saved = format!("{SITE}.rpmsave");
    ensure!(fs::read_to_string(&saved)?.ends_with(EDIT), "the edited site file is gone");
    fs::remove_file(saved)?;
    Ok(fs::remove_file(format!("{FRAGMENT}.disabled"))?)
}

/// Every file of Slurm's configuration, in order.
fn configuration() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in ["/etc/slurm", "/etc/slurm/plugstack.conf.d"] {
        for entry in fs::read_dir(folder).with_context(|| folder.to_owned())? {
            files.push(entry?.path());
        }
    }
    files.sort();
    Ok(files)
}

/// What the admin adds to the site file.
const EDIT: &str = "[policy]\nlossless = \"ignore\"\n";

impl Manager {
    fn lives_and_dies(&self, cluster: &Cluster) -> Result<()> {
        let plugin = Path::new(self.plugins).join("spank_roce.so");
        cluster.with_plugstack(INCLUDE)?;

        // Debian's Slurm has the line in its plugstack.conf; SchedMD's has no such file.
        ensure!(fs::read_to_string(PLUGSTACK)?.contains(INCLUDE), "{PLUGSTACK} is not as Debian has it");
        fs::remove_file(PLUGSTACK)?;
        let said = self.run(cluster, &self.install, Some(1))?;
        ensure!(said.stdout.contains(INCLUDE.trim_end()), "no word about what to add: {said}");
        for file in [
            plugin.to_str().unwrap_or_default(),
            "/usr/bin/rocectl",
            SITE,
            FRAGMENT,
            "/usr/share/bash-completion/completions/rocectl",
        ] {
            ensure!(Path::new(file).exists(), "{file} was not installed");
        }
        program("rocectl").args(["plan", "--help"]).run(cluster)?.succeeded()?;

        // What an admin does then: the line in plugstack.conf, arguments and a site file of their own.
        fs::write(PLUGSTACK, INCLUDE)?;
        let tree = sysfs::two_nics(cluster, "two-nics")?;
        let line = format!("required spank_roce.so {tree}\n");
        fs::write(FRAGMENT, &line)?;
        fs::write(SITE, format!("{}{EDIT}", fs::read_to_string(SITE)?.replace("[policy]", "")))?;
        placed(cluster)?;

        let old = fs::metadata(&plugin)?.ino();
        let said = meanwhile(cluster, &["--roce-tc=3"], || self.run(cluster, &self.upgrade, Some(2)))?;
        ensure!(!said.stdout.contains(INCLUDE.trim_end()), "it can't see the line: {said}");
        ensure!(fs::metadata(&plugin)?.ino() != old, "the upgrade has not replaced the file by rename");
        ensure!(fs::read_to_string(FRAGMENT)? == line, "the upgrade has changed {FRAGMENT}");
        ensure!(fs::read_to_string(SITE)?.ends_with(EDIT), "the upgrade has changed {SITE}");
        placed(cluster)?;

        meanwhile(cluster, &[], || self.run(cluster, &self.remove, None))?;
        ensure!(!plugin.exists() && !Path::new(FRAGMENT).exists(), "something of the package is still there");
        srun(["true"]).run(cluster)?.succeeded()?;
        let unknown = srun(["--roce-tc=3", "true"]).run(cluster)?;
        ensure!(unknown.status != 0, "the option is still known: {unknown}");

        // Installed again, it is as the admin had it.
        self.run(cluster, &self.install, Some(2))?;
        ensure!(fs::read_to_string(FRAGMENT)? == line, "{FRAGMENT} is not back");
        self.run(cluster, &self.remove, None)?;
        cluster.expect_idle()
    }

    /// Runs one of the commands, on a package where one is named.
    fn run(&self, cluster: &Cluster, command: &[&str], revision: Option<u32>) -> Result<Ran> {
        let file = match revision {
            Some(revision) => {
                let folder = folder().context("ROCE_PACKAGES is not set")?;
                Some(folder.join(format!("{revision}.{}", self.kind)).display().to_string())
            }
            None => None,
        };
        let arguments = command[1..].iter().copied().chain(file.as_deref());
        program(command[0]).args(arguments).run(cluster)?.succeeded()
    }
}

/// A step gets what it asks for.
fn placed(cluster: &Cluster) -> Result<()> {
    let ran = srun(["--roce-tc=3", "bash", "-c", "echo $ROCE_DEVICES $ROCE_TRAFFIC_CLASS"]).run(cluster)?;
    let ran = ran.succeeded()?;
    ensure!(ran.stdout == "mlx5_0:1 106\n", "{ran}");
    Ok(())
}

/// Does something while one step runs through it all and others start and end: none may notice.
fn meanwhile(cluster: &Cluster, options: &[&str], work: impl FnOnce() -> Result<Ran>) -> Result<Ran> {
    let (started, go) = (cluster.work("started"), cluster.work("go"));
    let wait = format!("touch {}; until [ -e {} ]; do sleep 0.1; done", started.display(), go.display());
    let long = srun(options.iter().copied().chain(["-n1", "bash", "-c", wait.as_str()])).start(cluster)?;
    let start = Instant::now();
    while !started.exists() {
        ensure!(start.elapsed() < Duration::from_secs(30), "the long step does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let is_over = AtomicBool::new(false);
    let (said, short) = std::thread::scope(|scope| {
        let short = scope.spawn(|| {
            let mut steps = 0_u32;
            // At least one after the work, which finds what it has left.
            loop {
                let is_last = is_over.load(Ordering::Acquire);
                srun(options.iter().copied().chain(["-n1", "true"])).run(cluster)?.succeeded()?;
                steps += 1;
                if is_last {
                    return anyhow::Ok(steps);
                }
            }
        });
        // Some are under way when it begins.
        std::thread::sleep(Duration::from_millis(300));
        let said = work();
        std::thread::sleep(Duration::from_millis(300));
        is_over.store(true, Ordering::Release);
        (said, short.join())
    });
    fs::write(&go, "")?;
    let long = long.wait()?.succeeded().context("the step that ran meanwhile");
    fs::remove_file(&go)?;
    fs::remove_file(&started)?;
    long?;
    match short {
        Ok(steps) => ensure!(steps.context("a step that started meanwhile")? > 1, "too few steps to tell"),
        Err(_) => bail!("the thread of the short steps panicked"),
    }
    cluster.expect_idle()?;
    said
}
