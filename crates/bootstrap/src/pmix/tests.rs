//! Against Open MPI's mpirun, which is a PMIx launcher.

use std::process::{Command, Output};

use super::*;
use crate::discovery::Discovery;

fn variables() -> PmixVariables {
    PmixVariables { rank: 1, namespace: "job".to_owned(), size: None }
}

fn nodes(nodes: &[(&str, &[u32])]) -> Vec<(String, Vec<u32>)> {
    nodes.iter().map(|(name, ranks)| ((*name).to_owned(), ranks.to_vec())).collect()
}

#[test]
fn nodes_are_counted_by_their_lowest_rank() {
    let identity = arrange(nodes(&[("b", &[4, 1]), ("empty", &[]), ("a", &[3, 0, 2])]), 4, 5).unwrap();
    assert_eq!((identity.node_index, identity.local_rank, identity.node_name()), (1, 1, "b"));
    let tasks: Vec<_> = identity.nodes.iter().map(|node| (node.name.as_str(), node.tasks)).collect();
    assert_eq!((tasks, identity.root_name()), (vec![("a", 3), ("b", 2)], "a"));
}

#[test]
fn a_map_that_does_not_have_every_rank_once_is_refused() {
    for (map, says) in [
        (nodes(&[("a", &[0, 1])]), "have 2 ranks in all, not 0 to 2"),
        (nodes(&[("a", &[0, 1]), ("b", &[1])]), "have 3 ranks in all, not 0 to 2"),
        (nodes(&[("a", &[0, 1, 2, 3])]), "have 4 ranks in all, not 0 to 2"),
        (nodes(&[]), "have 0 ranks in all, not 0 to 2"),
    ] {
        let error = arrange(map, 1, 3).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

/// What a rank of the next tests does.
const ROLE: &str = "TEST_PMIX_ROLE";

/// Runs before and after a rank is introduced, as an MPI program would.
struct Mpi(libloading::Library);

#[expect(unsafe_code, reason = "MPI is a C library")]
impl Mpi {
    fn init() -> Self {
        // SAFETY: as for a program that is linked with Open MPI.
        let library = unsafe { libloading::Library::new("libmpi.so.40") }.expect("Open MPI's library");
        // SAFETY: int MPI_Init(int *, char ***), which both may be null.
        let init: libloading::Symbol<'_, unsafe extern "C" fn(*mut i32, *mut i32) -> i32> =
            unsafe { library.get(b"MPI_Init") }.unwrap();
        // SAFETY: once per process, as MPI wants it.
        assert_eq!(unsafe { init(std::ptr::null_mut(), std::ptr::null_mut()) }, 0);
        Self(library)
    }

    fn finalize(self) {
        // SAFETY: int MPI_Finalize(void).
        let finalize: libloading::Symbol<'_, unsafe extern "C" fn() -> i32> =
            unsafe { self.0.get(b"MPI_Finalize") }.unwrap();
        // SAFETY: once, after MPI_Init.
        assert_eq!(unsafe { finalize() }, 0);
        std::mem::forget(self.0);
    }
}

#[test]
#[ignore = "the next tests run it under mpirun"]
fn rank_under_mpirun() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let deadline = Instant::now() + Duration::from_secs(20);
    let found = Discovery::of_this_process().unwrap();
    let rank = found.pmix.as_ref().unwrap().rank;
    match role.as_str() {
        "late" if rank == 1 => return thread::sleep(Duration::from_secs(3)),
        "late" => {
            let error = found.introduce(Instant::now() + Duration::from_secs(1)).unwrap_err();
            println!("\n{error}");
            return;
        }
        _ => {}
    }
    let mpi = (role == "mpi first").then(Mpi::init);
    let pmix = found.pmix.clone().unwrap();
    let (identity, secret) = found.introduce(deadline).unwrap();
    let mpi = if role == "mpi later" { Some(Mpi::init()) } else { mpi };
    let nodes: Vec<_> = identity.nodes.iter().map(|node| node.tasks).collect();
    let secret = secret.unwrap();
    println!(
        "\nrank {} {} of {} on {nodes:?} has {}",
        identity.rank,
        identity.local_rank,
        identity.size,
        *secret.to_hex()
    );
    let again = introduce(&pmix, None, deadline).unwrap_err().to_string();
    assert!(again.contains("has joined before"), "{again}");
    mpi.into_iter().for_each(Mpi::finalize);
}

/// `None` where there is no mpirun.
fn mpirun(role: &str) -> Option<Output> {
    let this = std::env::current_exe().unwrap();
    // Debian has the name of its own for it, since MPICH has an mpirun too.
    let mut mpirun = Command::new("mpirun.openmpi");
    mpirun.args(["--oversubscribe", "-n", "4"]).arg(this).args(["--exact", "pmix::tests::rank_under_mpirun"]);
    mpirun.args(["--ignored", "--nocapture"]).env(ROLE, role);
    mpirun.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    match mpirun.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("ROCE_REQUIRE").is_none(), "mpirun.openmpi is not installed");
            println!("skipped: mpirun.openmpi is not installed (apt-get install openmpi-bin)");
            None
        }
        output => Some(output.unwrap()),
    }
}

#[test]
fn ranks_of_mpirun_have_one_secret_whether_they_use_mpi_or_not() {
    for role in ["no mpi", "mpi first", "mpi later"] {
        let Some(output) = mpirun(role) else { return };
        // mpirun fails where it takes a rank's end for a crash.
        assert!(output.status.success(), "{role}: {output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        let mut secrets = Vec::new();
        for rank in 0..4 {
            let start = format!("rank {rank} {rank} of 4 on [4] has ");
            // Before it there may be the beginning of another rank's line: mpirun passes on what comes.
            let line = printed.split_once(&start).and_then(|(_, rest)| rest.lines().next());
            secrets.push(line.unwrap_or_else(|| panic!("{role}: {printed}")));
        }
        assert!(
            secrets.iter().all(|secret| *secret == secrets[0] && secret.len() == 64),
            "{role}: {printed}"
        );
    }
}

#[test]
fn a_rank_that_never_comes_does_not_hang_the_others() {
    let Some(output) = mpirun("late") else { return };
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed.matches("the others did not come within").count(), 3, "{output:?}");
}

#[test]
fn without_the_launcher_that_the_variables_promise_there_is_an_error_not_one_rank() {
    let variable = |name: &str| match name {
        "PMIX_RANK" => Some("1".to_owned()),
        "PMIX_NAMESPACE" => Some("job".to_owned()),
        _ => None,
    };
    assert_eq!(PmixVariables::read(&variable).unwrap(), Some(variables()));
    assert!(Discovery::read(&variable, "here").unwrap().identity.is_none());
}
