//! Guests that panic, hang or never boot are reported as that, and no guest outlives its run. One small guest each.

use crate::{
    Control,
    lab::{Lab, ensure, results},
};
use libtest_mimic::Failed;
use roce_lab::{Cluster, Error, GuestFault, GuestRoot, Interrupt, Options, Software};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

pub(crate) const CONTROLS: &[Control] = &[
    Control { name: "watchdog::a_kernel_that_panics", run: panics },
    Control { name: "watchdog::a_guest_that_never_boots", run: never_boots },
    Control { name: "watchdog::a_guest_that_hangs_in_its_set_up", run: hangs },
    Control { name: "watchdog::a_set_up_that_fails", run: set_up_fails },
    Control { name: "watchdog::an_emulator_that_does_not_start", run: does_not_start },
    Control { name: "watchdog::a_command_that_never_ends_is_killed_in_the_guest", run: command_timeout },
    Control { name: "watchdog::an_interrupt_ends_a_boot_and_its_guests", run: interrupted },
    Control { name: "watchdog::a_killed_harness_leaves_no_guest", run: killed },
];

/// Names the folder of the cluster that this program is to boot and to keep, for [`killed`].
const CHILD: &str = "ROCE_LAB_TEST_CHILD";

fn one_guest(name: &str) -> Options {
    Options { nodes: 1, rails: 1, numa_nodes: 1, memory_mib: 512, ..Options::new(results(name)) }
}

/// Boots what can't boot, and gives the fault with the console's end. It must be told within `bound`.
fn fault(lab: &Lab, options: Options, bound: Duration) -> Result<(GuestFault, String), Failed> {
    let root = lab.root()?;
    let folder = options.results.clone();
    let start = Instant::now();
    match Cluster::boot(&root, options, lab.interrupt()) {
        Err(Error::Guest { node, fault, console, .. }) => {
            ensure(node == "vm1", || format!("the guest is called {node}"))?;
            let elapsed = start.elapsed();
            ensure(elapsed < bound, || format!("it took {elapsed:?} to say that the guest {fault}"))?;
            gone(&folder, Duration::ZERO)?;
            Ok((fault, console))
        }
        Err(error) => Err(error.into()),
        Ok(_) => Err("it booted".into()),
    }
}

fn panics(lab: &Lab) -> Result<(), Failed> {
    let options = Options { kernel_arguments: "rdinit=/none root=/dev/none".into(), ..one_guest("panics") };
    let (fault, console) = fault(lab, options, Duration::from_secs(60))?;
    let told = matches!(&fault, GuestFault::Panicked(line) if line.contains("VFS: Unable to mount root fs"));
    ensure(told && console.contains("Kernel panic"), || format!("{fault:?}\n{console}"))
}

fn never_boots(lab: &Lab) -> Result<(), Failed> {
    // -S: the processors stand still.
    let options = Options {
        qemu_arguments: vec!["-S".into()],
        boot_timeout: Duration::from_secs(2),
        ..one_guest("never-boots")
    };
    let (fault, console) = fault(lab, options, Duration::from_secs(20))?;
    ensure(fault == GuestFault::NeverBooted && console == "(it is empty)", || format!("{fault:?}\n{console}"))
}

fn hangs(lab: &Lab) -> Result<(), Failed> {
    let options = Options {
        guest_script: Some("sleep 1000".into()),
        ready_timeout: Duration::from_secs(2),
        ..one_guest("hangs")
    };
    let (fault, console) = fault(lab, options, Duration::from_secs(70))?;
    ensure(fault == GuestFault::NeverReady && console.contains("LAB-BOOTED"), || {
        format!("{fault:?}\n{console}")
    })
}

fn set_up_fails(lab: &Lab) -> Result<(), Failed> {
    let options = Options { guest_script: Some("exit 12".into()), ..one_guest("fails") };
    let (fault, _) = fault(lab, options, Duration::from_secs(70))?;
    ensure(fault == GuestFault::SetupFailed("12".into()), || format!("{fault:?}"))
}

fn does_not_start(lab: &Lab) -> Result<(), Failed> {
    let options =
        Options { qemu_arguments: vec!["-device".into(), "nosuch".into()], ..one_guest("no-start") };
    let (fault, console) = fault(lab, options, Duration::from_secs(20))?;
    let told = matches!(fault, GuestFault::Exited(_)) && console.contains("nosuch");
    ensure(told, || format!("{fault:?}\n{console}"))
}

fn command_timeout(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    match cluster.run("vm2", "echo before; exec sleep 1234", Duration::from_secs(1)) {
        Err(Error::CommandTimeout { node, stdout, .. }) => {
            ensure(node == "vm2" && stdout == "before\n", || format!("{node}: {stdout}"))?;
        }
        other => return Err(format!("{other:?}").into()),
    }
    let left = cluster.run("vm2", "pgrep -f 'sleep 1234'", Duration::from_secs(30))?;
    ensure(left.status == 1, || format!("it still runs: {left:?}"))
}

fn interrupted(lab: &Lab) -> Result<(), Failed> {
    let root = lab.root()?;
    let interrupt = Interrupt::default();
    let options = Options { qemu_arguments: vec!["-S".into()], ..one_guest("interrupted") };
    let folder = options.results.clone();
    let raise = thread::spawn({
        let interrupt = interrupt.clone();
        move || {
            thread::sleep(Duration::from_secs(1));
            interrupt.raise();
        }
    });
    let start = Instant::now();
    let result = Cluster::boot(&root, options, &interrupt);
    let elapsed = start.elapsed();
    raise.join().map_err(|_| "the thread panicked")?;
    ensure(matches!(result, Err(Error::Interrupted)), || format!("{result:?}"))?;
    ensure(elapsed < Duration::from_secs(10), || format!("it took {elapsed:?}"))?;
    gone(&folder, Duration::ZERO)
}

/// SIGKILL leaves a process no time to clean up. This program starts itself, as a harness with a guest.
fn killed(lab: &Lab) -> Result<(), Failed> {
    lab.root()?;
    let folder = results("killed");
    // What the harness can't remove any more, this test does.
    let runtime = tempfile::Builder::new().prefix("roce-lab-test.").tempdir_in("/tmp")?;
    let mut harness = Command::new(env::current_exe()?)
        .env(CHILD, &folder)
        .env("XDG_RUNTIME_DIR", runtime.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let start = Instant::now();
    let mut started = processes(&folder)?;
    while started.is_empty() && start.elapsed() < Duration::from_secs(30) {
        thread::sleep(Duration::from_millis(100));
        started = processes(&folder)?;
    }
    thread::sleep(Duration::from_millis(300));
    harness.kill()?;
    harness.wait()?;
    ensure(!started.is_empty(), || "the harness started no guest".into())?;
    gone(&folder, Duration::from_secs(5))
}

/// The folder of the cluster, if this process is the harness that [`killed`] will kill.
pub(crate) fn folder_of_the_child() -> Option<PathBuf> {
    env::var_os(CHILD).map(PathBuf::from)
}

/// That harness: a guest that never boots, and all the patience in the world.
pub(crate) fn child(folder: &Path) -> ExitCode {
    let options = Options {
        qemu_arguments: vec!["-S".into()],
        boot_timeout: Duration::from_secs(600),
        ..Options { results: folder.into(), ..one_guest("") }
    };
    let interrupt = Interrupt::default();
    let result = GuestRoot::ensure(&roce_tests::target().join("lab"), "trixie", Software::Mpi, &interrupt)
        .and_then(|root| Cluster::boot(&root, options, &interrupt));
    eprintln!("this process was to be killed: {result:?}");
    ExitCode::FAILURE
}

/// Fails if a guest of a run is still there after `patience`.
fn gone(folder: &Path, patience: Duration) -> Result<(), Failed> {
    let start = Instant::now();
    loop {
        let left = processes(folder)?;
        if left.is_empty() {
            return Ok(());
        }
        if start.elapsed() >= patience {
            return Err(format!("processes outlived their run: {left:?}").into());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// The processes of a run, which have the path of its console among their arguments.
fn processes(folder: &Path) -> Result<Vec<String>, Failed> {
    let Ok(folder) = folder.canonicalize() else { return Ok(Vec::new()) };
    let mark = folder.join("logs/console.").display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        // A process may end while it is looked at, and a zombie has no arguments.
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if pid.bytes().all(|byte| byte.is_ascii_digit())
            && String::from_utf8_lossy(&arguments).contains(&mark)
        {
            found.push(pid);
        }
    }
    Ok(found)
}
