//! A Slurm of one node, or two, or (`many.rs`) many: munged, slurmctld, slurmd, each a child of this process that dies with it.

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::run::program;

/// The node's name in Slurm.
pub const NODE: &str = "n1";

/// The second node, where it has been started. It has four GPUs, and only the partition [`BOTH`] has it.
pub const SECOND: &str = "n2";

/// The partition of both nodes; the default one has the first node only.
pub const BOTH: &str = "both";

/// plugstack.conf of slurmd and slurmstepd, and that of srun, sbatch and salloc.
pub(crate) const NODE_PLUGSTACK: &str = "plugstack.conf";
const SECOND_PLUGSTACK: &str = "second-plugstack.conf";
pub(crate) const CLIENT_PLUGSTACK: &str = "client-plugstack.conf";

/// How long a daemon may take to be ready.
const START: Duration = Duration::from_secs(30);

/// A running cluster; dropping it ends its processes and removes its files.
pub struct Cluster {
    folder: PathBuf,
    /// By name, in the order of their start.
    daemons: Vec<(String, Child)>,
    slurm: String,
    glibc: String,
}

impl Cluster {
    /// Starts the daemons and waits until the node is idle.
    pub fn start(plugin: &Path) -> Result<Self> {
        let mut cluster = Self::new()?;
        cluster.write_configuration(plugin)?;
        cluster.start_controller()?;
        cluster.start_slurmd()?;
        cluster.read_versions()?;
        Ok(cluster)
    }

    /// A folder with what every cluster has in it, and no daemon yet.
    pub(crate) fn new() -> Result<Self> {
        remove_leftovers();
        // Not below the build folder: any user must be able to reach it, and a socket's path is short.
        let folder = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let cluster = Self { folder, daemons: Vec::new(), slurm: String::new(), glibc: String::new() };
        let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        open(&cluster.folder, 0o755)?;
        for folder in ["state", "work"] {
            fs::create_dir(cluster.path(folder))?;
        }
        open(&cluster.path("work"), 0o1777)?;
        let mut key = [0_u8; 128];
        std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut key)?;
        fs::write(cluster.path("munge.key"), key)?;
        open(&cluster.path("munge.key"), 0o400)?;
        // Later releases look for a cgroup hierarchy of their own unless told not to; 22.05 doesn't know the key.
        let version = program("slurmctld").args(["-V"]).run(&cluster)?.stdout;
        let major = version.strip_prefix("slurm-wlm ").or(version.strip_prefix("slurm ")).unwrap_or_default();
        let major = major.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_some_and(|major| major >= 23) {
            fs::write(cluster.path("cgroup.conf"), "CgroupPlugin=disabled\n")?;
        }
        cluster.without_plugin()?;
        Ok(cluster)
    }

    pub(crate) fn read_versions(&mut self) -> Result<()> {
        let shown = program("scontrol").args(["show", "config"]).run(self)?.succeeded()?;
        let version = shown.stdout.lines().find_map(|line| line.strip_prefix("SLURM_VERSION"));
        self.slurm = version.context("slurmctld tells no version")?.trim_matches([' ', '=']).to_owned();
        let libc = program("getconf").args(["GNU_LIBC_VERSION"]).run(self)?.succeeded()?;
        self.glibc = libc.stdout.trim().trim_start_matches("glibc ").to_owned();
        Ok(())
    }

    /// What the configuration of every cluster says; `plugstack` is a file of the folder, `own` the start of the names of
    /// a slurmd's own files. All nodes have one word for the spool's folder: Slurm's PMI-2 uses its own node's for the others'.
    pub(crate) fn configuration(&self, controller: u16, plugstack: &str, own: &str) -> Result<String> {
        let (folder, host) = (self.folder.display(), host()?);
        Ok(format!(
            "ClusterName=roce-tests\n\
                 SlurmctldHost={host}(127.0.0.1)\n\
                 SlurmctldPort={controller}\n\
                 SlurmUser=root\n\
                 SlurmdUser=root\n\
                 AuthType=auth/munge\n\
                 AuthInfo=socket={folder}/munge.socket\n\
                 StateSaveLocation={folder}/state\n\
                 SlurmdSpoolDir={folder}/spool-%n\n\
                 SlurmctldPidFile={folder}/slurmctld.pid\n\
                 SlurmdPidFile={folder}/{own}slurmd.pid\n\
                 SlurmctldLogFile={folder}/slurmctld.log\n\
                 SlurmdLogFile={folder}/{own}slurmd.log\n\
                 PlugStackConfig={folder}/{plugstack}\n\
                 ProctrackType=proctrack/linuxproc\n\
                 SelectType=select/cons_tres\n\
                 SelectTypeParameters=CR_Core\n\
                 SchedulerParameters=batch_sched_delay=0,sched_min_interval=1000,bf_interval=1\n\
                 SwitchType=switch/none\n\
                 MpiDefault=none\n\
                 KillWait=1\n\
                 SlurmdParameters=config_overrides\n"
        ))
    }

    fn write_configuration(&self, plugin: &Path) -> Result<()> {
        for folder in ["spool-n1", "spool-n2", "dev"] {
            fs::create_dir(self.path(folder))?;
        }
        self.install(plugin)?;
        let [controller, node, second] = free_ports()?;
        let (folder, host) = (self.folder.display(), host()?);
        let configuration = |plugstack: &str, own: &str| {
            let common = self.configuration(controller, plugstack, own)?;
            anyhow::Ok(format!(
                "{common}\
                 TaskPlugin=task/affinity\n\
                 LaunchParameters=use_interactive_step\n\
                 GresTypes=gpu\n\
                 NodeName={NODE} NodeHostname={host} NodeAddr=127.0.0.1 Port={node} \
                     CPUs=2 Sockets=2 CoresPerSocket=1\n\
                 NodeName={SECOND} NodeHostname={host} NodeAddr=127.0.0.1 Port={second} \
                     CPUs=2 Sockets=2 CoresPerSocket=1 Gres=gpu:4\n\
                 PartitionName=all Nodes={NODE} Default=YES State=UP\n\
                 PartitionName={BOTH} Nodes={NODE},{SECOND} State=UP\n"
            ))
        };
        fs::write(self.path("slurm.conf"), configuration(NODE_PLUGSTACK, "")?)?;
        fs::write(self.path("second.conf"), configuration(SECOND_PLUGSTACK, "second-")?)?;
        fs::write(self.path("client.conf"), configuration(CLIENT_PLUGSTACK, "")?)?;
        Ok(fs::write(
            self.path("gres.conf"),
            format!("NodeName={SECOND} Name=gpu File={folder}/dev/nvidia[0-3]\n"),
        )?)
    }

    /// Starts munged and slurmctld.
    pub(crate) fn start_controller(&mut self) -> Result<()> {
        let option = |name: &str, file: &str| format!("--{name}={}", self.path(file).display());
        let munged = [
            "--foreground".to_owned(),
            option("key-file", "munge.key"),
            option("socket", "munge.socket"),
            option("pid-file", "munged.pid"),
            option("log-file", "munged.log"),
            option("seed-file", "munged.seed"),
        ];
        self.daemon("munged", &munged)?;
        self.wait("munged", |cluster| Ok(cluster.path("munge.socket").exists()))?;
        self.daemon("slurmctld", &["-D".to_owned(), "-c".to_owned()])
    }

    fn start_slurmd(&mut self) -> Result<()> {
        self.daemon("slurmd", &["-D".to_owned(), "-N".to_owned(), NODE.to_owned()])?;
        self.wait("slurmd", |cluster| Ok(cluster.node_state()? == "idle"))
    }

    /// Starts the second node, with the facts of a machine with GPUs below `sysfs`.
    ///
    /// # Errors
    /// If it doesn't become idle.
    pub fn start_second(&mut self) -> Result<()> {
        // Slurm wants device files; what they are is nobody's business here, so they are like /dev/null.
        for gpu in 0..4 {
            let device = self.path(&format!("dev/nvidia{gpu}"));
            let made =
                Command::new("mknod").args(["-m", "666"]).arg(&device).args(["c", "1", "3"]).status()?;
            ensure!(made.success(), "mknod {} failed", device.display());
        }
        fs::write(self.path(SECOND_PLUGSTACK), "")?;
        let conf = self.path("second.conf");
        let arguments = ["-D", "-N", SECOND, "-f", &conf.display().to_string()].map(str::to_owned);
        self.daemon("second slurmd", &arguments)?;
        self.wait("second slurmd", |cluster| Ok(cluster.state_of(SECOND)? == "idle"))
    }

    /// Takes the plugin away from both nodes.
    ///
    /// # Errors
    /// If the files can't be written.
    pub fn without_plugins(&self) -> Result<()> {
        self.without_plugin()?;
        Ok(fs::write(self.path(SECOND_PLUGSTACK), "")?)
    }

    /// Gives the plugin to the second node, with these arguments.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn with_second_plugin(&self, arguments: &str) -> Result<()> {
        Ok(fs::write(self.path(SECOND_PLUGSTACK), self.plugstack(arguments))?)
    }

    /// Ends slurmd and starts it again, as after an update of its configuration.
    ///
    /// # Errors
    /// If it doesn't come back.
    pub fn restart_slurmd(&mut self) -> Result<()> {
        if let Some(at) = self.daemons.iter().position(|(name, _)| name == "slurmd") {
            let (_, mut child) = self.daemons.remove(at);
            end(&mut child);
        }
        self.start_slurmd()
    }

    /// The process id of slurmd.
    ///
    /// # Errors
    /// If it isn't running.
    pub fn slurmd(&self) -> Result<u32> {
        let found = self.daemons.iter().find(|(name, _)| name == "slurmd");
        found.map(|(_, child)| child.id()).context("slurmd is not running")
    }

    /// A child in the foreground, killed by the kernel if this process dies in whatever way. The last word of its name is
    /// the program.
    pub(crate) fn daemon(&mut self, name: &str, arguments: &[String]) -> Result<()> {
        let output = File::create(self.path(&format!("{name}.out")))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", name.rsplit(' ').next().unwrap_or(name)])
            .args(arguments)
            .env_clear()
            .env("PATH", program_path())
            .env("SLURM_CONF", self.path("slurm.conf"))
            .current_dir(&self.folder)
            .stdin(std::process::Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| name.to_owned())?;
        self.daemons.push((name.to_owned(), child));
        Ok(())
    }

    pub(crate) fn wait(&mut self, daemon: &str, is_ready: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !is_ready(self)? {
            for (name, child) in &mut self.daemons {
                if let Some(status) = child.try_wait()? {
                    let name = name.clone();
                    bail!("{name} ended with {status} while {daemon} started: {}", self.logs());
                }
            }
            ensure!(start.elapsed() < START, "{daemon} is not ready after {START:?}: {}", self.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// The end of each log.
    pub fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = fs::read_to_string(self.path(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(15).collect();
            format!("\n--- {name}\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        ["munged.out", "slurmctld.log", "slurmctld.out", "slurmd.log", "slurmd.out"].map(tail).concat()
    }

    /// The release of the running slurmctld: `22.05.8`.
    #[must_use]
    pub fn slurm(&self) -> &str {
        &self.slurm
    }

    /// Whether slurmctld is older than a release: `is_before(22, 5)`.
    #[must_use]
    pub fn is_before(&self, year: u32, month: u32) -> bool {
        let mut numbers = self.slurm.split('.').map(|number| number.parse().unwrap_or(0));
        (numbers.next(), numbers.next()) < (Some(year), Some(month))
    }

    /// The release of this machine's C library: `2.36`.
    #[must_use]
    pub fn glibc(&self) -> &str {
        &self.glibc
    }

    /// A path in the cluster's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A folder that every user may write to, where commands run.
    pub fn work(&self, name: &str) -> PathBuf {
        self.path("work").join(name)
    }

    /// Makes this file the plugin, by rename: a running slurmstepd keeps the old one.
    pub fn install(&self, plugin: &Path) -> Result<()> {
        fs::copy(plugin, self.path("new.so")).with_context(|| plugin.display().to_string())?;
        fs::set_permissions(self.path("new.so"), Permissions::from_mode(0o755))?;
        Ok(fs::rename(self.path("new.so"), self.path("spank_roce.so"))?)
    }

    /// Gives the plugin to commands and node, with these arguments. Slurm reads plugstack.conf for every
    /// command and step.
    pub fn with_plugin(&self, arguments: &str) -> Result<()> {
        fs::write(self.path(NODE_PLUGSTACK), self.plugstack(arguments))?;
        self.with_client_plugin(arguments)
    }

    /// Takes the plugin from commands and node.
    pub fn without_plugin(&self) -> Result<()> {
        fs::write(self.path(NODE_PLUGSTACK), "")?;
        self.without_client_plugin()
    }

    /// Takes the plugin from the commands: a submit host where it was never installed.
    pub fn without_client_plugin(&self) -> Result<()> {
        Ok(fs::write(self.path(CLIENT_PLUGSTACK), "")?)
    }

    /// Gives the plugin to the commands with other arguments than the node's.
    pub fn with_client_plugin(&self, arguments: &str) -> Result<()> {
        Ok(fs::write(self.path(CLIENT_PLUGSTACK), self.plugstack(arguments))?)
    }

    /// Gives commands and node a plugstack.conf of this text.
    pub fn with_plugstack(&self, text: &str) -> Result<()> {
        fs::write(self.path(NODE_PLUGSTACK), text)?;
        Ok(fs::write(self.path(CLIENT_PLUGSTACK), text)?)
    }

    fn plugstack(&self, arguments: &str) -> String {
        format!("required {} {arguments}\n", self.path("spank_roce.so").display())
    }

    /// The plugin with a site file of this text, and these other arguments.
    pub fn with_site(&self, site: &str, arguments: &str) -> Result<()> {
        fs::write(self.path("roce.toml"), site)?;
        self.with_plugin(&format!("config={} {arguments}", self.path("roce.toml").display()))
    }

    /// The node's state: `idle`, `mixed`, `idle+drain`, ...
    pub fn node_state(&self) -> Result<String> {
        self.state_of(NODE)
    }

    pub(crate) fn state_of(&self, node: &str) -> Result<String> {
        let shown = program("scontrol").args(["-o", "show", "node", node]).run(self)?;
        let state = shown.stdout.split_whitespace().find_map(|word| word.strip_prefix("State="));
        // Absent until slurmctld answers.
        Ok(state.unwrap_or_default().to_lowercase())
    }

    /// After whatever went wrong, the node must come back by itself.
    pub fn expect_idle(&self) -> Result<()> {
        self.expect_idle_node(NODE)
    }

    /// The same for both nodes.
    ///
    /// # Errors
    /// If one of them is not idle in time, or drained.
    pub fn expect_both_idle(&self) -> Result<()> {
        self.expect_idle_node(NODE)?;
        self.expect_idle_node(SECOND)
    }

    fn expect_idle_node(&self, node: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let state = self.state_of(node)?;
            if state == "idle" {
                return Ok(());
            }
            let is_patient = start.elapsed() < Duration::from_secs(10) && !state.contains("drain");
            ensure!(is_patient, "{node} is {state}, not idle: {}", self.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The name that this machine gives itself, as Slurm shortens it.
pub(crate) fn host() -> Result<String> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
    Ok(host.trim().split('.').next().unwrap_or_default().to_owned())
}

/// TCP ports that nobody listens on.
pub(crate) fn free_ports<const COUNT: usize>() -> Result<[u16; COUNT]> {
    // Held at the same time, so that they differ.
    let mut listeners = Vec::with_capacity(COUNT);
    let mut ports = [0; COUNT];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// The search path with the folders of daemons.
pub fn program_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Clusters of test runs that were killed leave their folder.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            // Another run may be removing it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The start of the folder's name; the rest is the process id.
const PREFIX: &str = "roce-slurm-";

/// Asks a daemon to end, and ends it if it doesn't.
fn end(child: &mut Child) {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    // If it has ended already, there is nothing to end.
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    let start = Instant::now();
    while child.try_wait().is_ok_and(|status| status.is_none()) {
        if start.elapsed() > Duration::from_secs(5) {
            let _ = child.kill();
            let _ = child.wait();
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // slurmd first: it ends what runs below it. Each was started here, so its id is still its own until
        // it is waited for.
        for (_, child) in self.daemons.iter_mut().rev() {
            end(child);
        }
        let is_kept = std::env::var_os("ROCE_KEEP").is_some();
        if is_kept {
            println!("kept: {}", self.folder.display());
        } else if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{}: {error}", self.folder.display());
        }
    }
}
