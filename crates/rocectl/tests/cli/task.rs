//! `rocectl env` and `rocectl exec`: one task without Slurm.

use std::os::unix::process::CommandExt as _;

use crate::common::{Folder, TWO_CPUS, has_two_cpus, stderr, stdout};

fn two_cpus() -> Folder {
    Folder::with(&[]).machine("two", TWO_CPUS)
}

fn cpus(folder: &Folder, words: &str, variables: &[(&str, &str)]) -> String {
    let output = folder.run(&format!("exec {words} -- grep ^Cpus_allowed_list /proc/self/status"), variables);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).trim_start_matches("Cpus_allowed_list:").trim().to_owned()
}

#[test]
fn the_environment_for_a_shell() {
    let folder = Folder::with(&["dgx_h100"]);
    let words = "env --rank 1 --of 8 --gpus-per-task 1 --roce-tc=3 --topology dgx_h100";
    insta::assert_snapshot!(folder.seen(words));
}

#[test]
fn the_environment_as_json_without_what_the_user_has_set() {
    let folder = Folder::with(&["dgx_h100"]).file("site.toml", "[exports]\nlibraries = [\"ucx\"]\n");
    let words = "env --rank 1 --of 2 --format json --site site.toml --topology dgx_h100";
    insta::assert_snapshot!(folder.seen_with(words, &[("UCX_NET_DEVICES", "mine:1")]));
}

#[test]
fn the_launchers_variables_say_which_task_it_is() {
    let folder = Folder::with(&["dgx_h100"]);
    let words = "env --topology dgx_h100";
    let devices = |variables: &[(&str, &str)]| {
        let text = stdout(&folder.run(words, variables));
        text.lines().next().unwrap_or_default().to_owned()
    };
    let last = "export ROCE_DEVICES='mlx5_9:1'";
    assert_eq!(devices(&[("OMPI_COMM_WORLD_LOCAL_RANK", "7"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "8")]), last);
    assert_eq!(devices(&[("MPI_LOCALRANKID", "7"), ("MPI_LOCALNRANKS", "8")]), last);
    let slurm = [("SLURM_LOCALID", "7"), ("SLURM_STEP_TASKS_PER_NODE", "4,8"), ("SLURM_NODEID", "1")];
    assert_eq!(devices(&slurm), last);
}

#[test]
fn roce_off_leaves_everything_alone() {
    let folder = two_cpus();
    let off = [("SLURM_ROCE", "off")];
    assert_eq!(stdout(&folder.run("env --rank 0 --of 1 --sysfs two", &off)), "");
    let output = folder.run("exec --rank 0 --of 1 --sysfs two -- env", &off);
    assert!(!stdout(&output).contains("ROCE_DEVICES"), "{output:?}");
}

#[test]
fn each_rank_of_an_unbound_launch_is_pinned_to_its_own_cpus_and_nic() {
    if !has_two_cpus() {
        return;
    }
    let folder = two_cpus();
    for rank in ["0", "1"] {
        let variables = [("MPI_LOCALRANKID", rank), ("MPI_LOCALNRANKS", "2")];
        assert_eq!(cpus(&folder, "--sysfs two", &variables), rank);
        let output = folder.run("exec --sysfs two -- env", &variables);
        assert!(stdout(&output).contains(&format!("ROCE_DEVICES=mlx5_{rank}:1\n")), "{output:?}");
    }
}

#[test]
fn a_rank_that_the_launcher_has_bound_stays_there_and_gets_the_nic_of_that_place() {
    if !has_two_cpus() {
        return;
    }
    let folder = two_cpus();
    let bound = |cpu: &'static str| {
        let folder = &folder;
        std::thread::scope(|scope| {
            let run = move || {
                // Children inherit the mask of the thread that starts them.
                roce_bind::set_affinity(&cpu.parse().unwrap()).unwrap();
                let variables = [("MPI_LOCALRANKID", "0"), ("MPI_LOCALNRANKS", "2")];
                let output = folder.run("exec --sysfs two -- env", &variables);
                (cpus(folder, "--sysfs two", &variables), stdout(&output))
            };
            scope.spawn(run).join().unwrap()
        })
    };
    for (cpu, device) in [("0", "mlx5_0"), ("1", "mlx5_1")] {
        let (cpus, environment) = bound(cpu);
        assert_eq!(cpus, cpu);
        assert!(environment.contains(&format!("ROCE_DEVICES={device}:1\n")), "{environment}");
    }
}

#[test]
fn more_ranks_than_cpus_share_them() {
    if !has_two_cpus() {
        return;
    }
    let folder = two_cpus();
    let of = |rank: &str| cpus(&folder, &format!("--rank {rank} --of 6 --sysfs two"), &[]);
    let pinned: Vec<String> = ["0", "1", "2", "5"].iter().map(|rank| of(rank)).collect();
    assert_eq!(pinned, ["0", "1", "0", "1"]);
}

#[test]
fn verbose_says_what_the_task_gets() {
    if !has_two_cpus() {
        return;
    }
    let folder = two_cpus().keeping_memlock();
    let words = "exec -v --rank 0 --of 2 --roce-tc=3 --site site.toml --sysfs two -- true";
    // A container may forbid memory policies, and says so.
    let lines: Vec<String> = stderr(&folder.run(words, &[])).lines().map(str::to_owned).collect();
    let lines = lines.into_iter().filter(|line| !line.contains("the memory policy stays"));
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"));
}

#[test]
fn memory_comes_from_the_numa_node_of_the_cpus() {
    if !has_two_cpus() {
        return;
    }
    let folder = two_cpus().keeping_memlock();
    let words = "exec -v --rank 0 --of 2 --site site.toml --sysfs two -- cat /proc/self/numa_maps";
    let output = folder.run(words, &[]);
    if stderr(&output).contains("the memory policy stays") || stdout(&output).is_empty() {
        assert!(std::env::var_os("ROCE_REQUIRE").is_none(), "{output:?}");
        eprintln!("skipped: memory policies can't be set or seen here: {}", stderr(&output));
        return;
    }
    let policies = stdout(&output);
    let mut policies = policies.lines().map(|line| line.split_whitespace().nth(1));
    assert!(policies.all(|policy| policy == Some("prefer:0")), "{output:?}");
}

#[test]
fn a_program_under_exec_may_use_it_again_with_other_options() {
    if !has_two_cpus() {
        return;
    }
    let folder = two_cpus();
    let outer = "exec --rank 0 --of 2 --roce-tc=3 --sysfs two --";
    let inner = "exec --rank 0 --of 2 --roce-nics=mlx5_1 --sysfs two -- env";
    let words = format!("{outer} {} {inner}", env!("CARGO_BIN_EXE_rocectl"));
    let environment = stdout(&folder.run(&words, &[]));
    assert!(environment.contains("UCX_NET_DEVICES=mlx5_1:1\n"), "{environment}");
    assert!(!environment.contains("UCX_IB_TRAFFIC_CLASS"), "the class was the outer one's: {environment}");
}

#[test]
fn the_command_keeps_its_arguments_and_exit_code() {
    let folder = two_cpus();
    let mut command = folder.command("exec --rank 0 --of 1 --sysfs two -- sh -c", &[]);
    command.arg("printf '%s|' \"$@\"; exit 7").args(["sh", "a b", "", "--tasks", "$HOME"]);
    let output = command.output().unwrap();
    assert_eq!(stdout(&output), "a b||--tasks|$HOME|");
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn it_becomes_the_command_and_leaves_no_process_between() {
    let folder = two_cpus();
    let mut command = folder.command("exec --rank 0 --of 1 --sysfs two -- sh -c", &[]);
    let child = command.arg("echo $$").arg0("rocectl").stdout(std::process::Stdio::piped()).spawn().unwrap();
    let id = child.id();
    let output = child.wait_with_output().unwrap();
    assert_eq!(stdout(&output).trim(), id.to_string());
}

#[test]
fn a_site_may_prefer_running_untouched_to_failing() {
    let folder = Folder::with(&["no_rdma"]).file("site.toml", "[policy]\non_failure = \"warn\"\n");
    insta::assert_snapshot!(
        folder.seen("exec --rank 0 --of 1 --site site.toml --sysfs no_rdma -- echo it runs")
    );
}
