//! Commands of users on the cluster, and what they gave.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, program_path};

/// A user without rights.
pub const USER: &str = "65534";

/// A command to be run on the cluster, as root unless [`Program::unprivileged`] says otherwise.
pub struct Program {
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    is_user: bool,
    memlock_kib: Option<u32>,
    limit: Duration,
}

/// How long a command may run unless [`Program::limit`] says otherwise.
const LIMIT: Duration = Duration::from_secs(60);

/// A command.
pub fn program(name: &str) -> Program {
    Program {
        arguments: vec![name.to_owned()],
        variables: Vec::new(),
        is_user: false,
        memlock_kib: None,
        limit: LIMIT,
    }
}

/// `srun` with these arguments, as a user without rights.
pub fn srun<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Program {
    program("srun").args(arguments).unprivileged()
}

/// `srun` of a step that may use both CPUs of its job, whatever the number of its tasks.
pub fn wide<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Program {
    program("salloc").args(["--quiet", "-n2", "srun"]).args(arguments).unprivileged()
}

/// Submits a job and waits for its end. Gives whether it ended well, and what it wrote.
pub fn batch<'a>(cluster: &Cluster, arguments: impl IntoIterator<Item = &'a str>) -> Result<(bool, String)> {
    let output = cluster.work("job.out");
    let output_option = format!("--output={}", output.display());
    let submit =
        program("sbatch").unprivileged().args(["--parsable", output_option.as_str()]).args(arguments);
    let submitted = submit.run(cluster)?.succeeded()?;
    let job = submitted.stdout.trim();
    // Not `sbatch --wait`, which looks every few seconds.
    let start = Instant::now();
    loop {
        let shown = program("scontrol").args(["-o", "show", "job", job]).run(cluster)?.succeeded()?;
        let state = shown.stdout.split_whitespace().find_map(|word| word.strip_prefix("JobState="));
        if !matches!(state, Some("PENDING" | "RUNNING" | "COMPLETING")) {
            let said = std::fs::read_to_string(&output)?;
            std::fs::remove_file(&output)?;
            return Ok((state == Some("COMPLETED"), without_hint(&said)));
        }
        ensure!(start.elapsed() < Duration::from_secs(60), "job {job} does not end: {shown}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Without the hint that this machine's slurmd may not raise limits.
fn without_hint(text: &str) -> String {
    text.lines().filter(|line| !line.ends_with(HINT)).map(|line| format!("{line}\n")).collect()
}

/// The end of the line that a task writes when slurmd could not raise a limit.
pub const HINT: &str = "slurmd lacks CAP_SYS_RESOURCE";

impl Program {
    /// With these arguments too.
    pub fn args<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.arguments.extend(arguments.into_iter().map(str::to_owned));
        self
    }

    /// With this variable; no other is handed on.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// As a user without rights.
    pub fn unprivileged(mut self) -> Self {
        self.is_user = true;
        self
    }

    /// With this soft limit of locked memory in the submitting shell.
    pub fn memlock_kib(mut self, kib: u32) -> Self {
        self.memlock_kib = Some(kib);
        self
    }

    /// It may run for so long instead of a minute.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end, for at most a minute.
    ///
    /// # Errors
    /// If it can't be started, or takes longer.
    pub fn run(self, cluster: &Cluster) -> Result<Ran> {
        let ran = self.start(cluster)?.wait()?;
        // What it waited for, the daemons may know.
        ensure!(ran.status != OUT_OF_TIME, "{ran}{}", cluster.logs());
        Ok(ran)
    }

    /// Starts it, to be ended by itself or within a minute.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(self, cluster: &Cluster) -> Result<Running> {
        let mut line: Vec<String> = ["setpriv", "--pdeathsig", "KILL"].map(str::to_owned).into();
        if self.is_user {
            line.extend(["--reuid", USER, "--regid", USER, "--clear-groups"].map(str::to_owned));
        }
        line.push("--".to_owned());
        if let Some(kib) = self.memlock_kib {
            line.extend(["bash".to_owned(), "-c".to_owned(), format!("ulimit -Sl {kib}; exec \"$@\"")]);
            line.push("bash".to_owned());
        }
        line.extend(["timeout".to_owned(), self.limit.as_secs().to_string()]);
        // Where timeout is killed, as when this program is, it can't end what it started.
        line.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(str::to_owned));
        line.extend(self.arguments);
        let child = Command::new(&line[0])
            .args(&line[1..])
            // The tests' own environment may hold anything.
            .env_clear()
            .env("PATH", program_path())
            .env("HOME", cluster.path("work"))
            .env("SLURM_CONF", cluster.path("client.conf"))
            .envs(self.variables)
            .current_dir(cluster.path("work"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let line = line.join(" ");
        Ok(Running { child: child.with_context(|| line.clone())?, line })
    }
}

/// The exit code of `timeout` where it had to end a command.
const OUT_OF_TIME: i32 = 124;

/// A command that was started.
#[derive(Debug)]
pub struct Running {
    child: Child,
    line: String,
}

impl Running {
    /// The process id of `timeout`, which hands a signal on to the command itself.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If its output can't be read.
    pub fn wait(self) -> Result<Ran> {
        let Self { child, line } = self;
        let output = child.wait_with_output().with_context(|| line.clone())?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran {
            line,
            status: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }
}

/// What a command gave.
#[derive(Debug)]
pub struct Ran {
    line: String,
    /// The exit code; -1 if a signal ended it.
    pub status: i32,
    /// All that it wrote to its standard output.
    pub stdout: String,
    /// All that it wrote to its standard error.
    pub stderr: String,
}

impl Ran {
    /// The plugin's own lines, without Slurm's and without the hint that this machine's slurmd may not raise
    /// limits.
    pub fn own_lines(&self) -> Vec<&str> {
        let lines = self.stderr.lines().filter(|line| line.contains("spank_roce: "));
        lines.filter(|line| !line.ends_with(HINT)).collect()
    }

    /// It must have ended well, and the plugin must have said nothing.
    pub fn succeeded(self) -> Result<Self> {
        let is_quiet = self.own_lines().is_empty();
        ensure!(self.status == 0 && is_quiet, "should have succeeded quietly: {self}");
        Ok(self)
    }

    /// It must have failed, and the plugin must have said exactly this one line, here with `...` for what
    /// may follow.
    pub fn failed_with(&self, line: &str) -> Result<()> {
        ensure!(self.status != 0, "should have failed with \"{line}\": {self}");
        self.said(line)
    }

    /// The plugin must have said exactly this one line.
    pub fn said(&self, line: &str) -> Result<()> {
        let said = self.own_lines();
        let is_it = |said: &str| match line.strip_suffix("...") {
            Some(start) => said.starts_with(start),
            None => said == line,
        };
        ensure!(said.len() == 1 && is_it(said[0]), "should have said \"{line}\": {self}");
        Ok(())
    }

    /// The lines `NAME=value` of the output, as `env` writes them.
    pub fn variables(&self) -> BTreeMap<&str, &str> {
        self.stdout.lines().filter_map(|line| line.split_once('=')).collect()
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { line, status, stdout, stderr } = self;
        write!(f, "{line}\nexit code {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// One variable must have this value.
pub fn expect(variables: &BTreeMap<&str, &str>, name: &str, value: &str) -> Result<()> {
    let found = variables.get(name).copied();
    ensure!(found == Some(value), "{name} should be {value:?}, is {found:?} in {variables:#?}");
    Ok(())
}
