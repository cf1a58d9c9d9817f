//! The check against files of its own making: C, linked by this machine's compiler, with one thing wrong at a time.

use super::*;
use std::process::Command;

/// Checks a library with everything that Slurm looks up and with `more`, linked with these options.
fn checked(more: &str, linker: &[&str]) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let at = |name: &str| folder.path().join(name);
    let tag = "char plugin_name[] = \"x\", plugin_type[] = \"spank\"; unsigned plugin_version;\n";
    let hooks = EXPORTS
        .iter()
        .filter(|name| name.starts_with("slurm_"))
        .map(|name| format!("int {name}(void) {{ return 0; }}\n"));
    let source = hooks.fold(tag.to_owned(), |text, hook| text + &hook) + more;
    fs::write(at("plugin.c"), source).map_err(|error| error.to_string())?;
    fs::write(at("other.c"), "int other(void) { return 0; }").map_err(|error| error.to_string())?;
    let compile = |arguments: &[&str]| {
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-w"])
            .args(arguments)
            .current_dir(folder.path())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "cc {arguments:?}");
    };
    compile(&["other.c", "-o", "libother.so"]);
    compile(&[&["plugin.c", "-o", "plugin.so", "-L."], linker].concat());
    plugin(&at("plugin.so")).map_err(|error| error.to_string())
}

/// What is said of a library that has one thing wrong.
fn refusal(more: &str, linker: &[&str]) -> String {
    let text = checked(more, linker).expect_err(more);
    let mut lines = text.lines().map(str::trim);
    assert!(lines.next().is_some_and(|line| line.ends_with("plugin.so may not be released:")), "{text}");
    let reasons: Vec<_> = lines.collect();
    assert_eq!(reasons.len(), 1, "{text}");
    reasons[0].to_owned()
}

#[test]
fn a_plugin_with_what_slurm_looks_up_and_no_more_may_be_released() {
    assert_eq!(checked("static int own(void) { return 0; }", &[]), Ok(()));
}

#[test]
fn an_export_too_many_is_refused() {
    for name in ["init", "fini", "slurm_spank_job_prolog", "helper"] {
        let more = format!("int {name}(void) {{ return 0; }}");
        let reason = format!("it exports {name}, which is not in EXPORTS of xtask/src/dist/check.rs");
        assert_eq!(refusal(&more, &[]), reason);
    }
    assert!(refusal("int counter = 1;", &[]).starts_with("it exports counter, "));
}

#[test]
fn a_hook_that_is_missing_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = folder.path().join("script");
    fs::write(&script, "{ local: slurm_spank_task_init; };").expect("a file");
    let option = format!("-Wl,--version-script={}", script.display());
    assert_eq!(refusal("", &[&option]), "it exports no slurm_spank_task_init");
}

#[test]
fn a_symbol_that_is_not_glibcs_is_refused_unless_it_may_be_absent() {
    let hard = "extern int slurm_error(const char *, ...); static int own(void) __attribute__((used)); \
                static int own(void) { return slurm_error(\"x\"); }";
    assert_eq!(refusal(hard, &[]), "it needs slurm_error, which is not glibc's");
    let weak = format!("__attribute__((weak)) {hard}");
    assert_eq!(checked(&weak, &[]), Ok(()));
}

#[test]
fn a_symbol_of_a_newer_glibc_is_refused() {
    // Moved into libc, and given a new version with that, by glibc 2.34.
    let more = "extern int pthread_create(void *, void *, void *, void *); \
                static int own(void) __attribute__((used)); static int own(void) { return pthread_create(0, 0, 0, 0); }";
    assert_eq!(refusal(more, &[]), "it needs pthread_create@GLIBC_2.34, and glibc 2.28 has none");
}

#[test]
fn a_library_that_a_node_may_lack_is_refused() {
    assert_eq!(
        refusal("", &["-Wl,--no-as-needed", "-lother"]),
        "it needs libother.so, which a node may lack"
    );
    assert_eq!(checked("", &["-Wl,--no-as-needed", "-lm", "-ldl"]), Ok(()));
}

#[test]
fn a_search_path_and_an_executable_stack_are_refused() {
    assert_eq!(refusal("", &["-Wl,-rpath,/home/user/lib"]), "it looks for libraries in /home/user/lib");
    assert_eq!(refusal("", &["-Wl,-z,execstack"]), "it asks for an executable stack");
}

#[test]
fn fault_injection_is_refused() {
    let more = "static const char where[] __attribute__((used)) = \"spank-plugin/src/fault.rs\";";
    assert_eq!(refusal(more, &[]), "it was built with the feature fault-injection");
}

#[test]
fn versions_are_compared_as_numbers() {
    assert_eq!(glibc("GLIBC_2.2.5"), Some((2, 2)));
    assert!(glibc("GLIBC_2.9") < Some(GLIBC));
    assert_eq!(glibc("GLIBC_PRIVATE"), None);
    assert_eq!(glibc("GCC_3.0"), None);
}
