//! Programs that would touch memory which an operation still uses do not compile, and for that reason: the line that is at
//! fault has a comment with the compiler's number for it, `//~ E0597`.
//!
//! The compiler is called with the library that this test was linked with. (The usual tool for this builds all of its dependencies
//! once more, which takes longer than all tests here.)

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The newest build of the library, which is the one that was made for this test.
fn library() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("libroce_launcher-") && name.ends_with(".rlib")
    };
    files.filter(is_it).max_by_key(|path| path.metadata().unwrap().modified().unwrap()).unwrap()
}

/// The errors of a program: number and line.
fn compile(program: &Path, library: &Path, output: &Path) -> Vec<(String, usize)> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut dependencies = std::ffi::OsString::from("dependency=");
    dependencies.push(library.parent().unwrap());
    let mut external = std::ffi::OsString::from("roce_launcher=");
    external.push(library);
    let mut command = Command::new(rustc);
    command.args(["--edition=2024", "--emit=metadata", "--error-format=json", "--cap-lints=allow"]);
    command.arg("--out-dir").arg(output).arg("-L").arg(dependencies).arg("--extern").arg(external);
    let output = command.arg(program).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let mut errors = Vec::new();
    for line in text.lines() {
        let message: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {text}"));
        let place = message["spans"]
            .as_array()
            .and_then(|spans| spans.iter().find(|span| span["is_primary"] == true)?["line_start"].as_u64());
        if let (Some("error"), Some(place)) = (message["level"].as_str(), place) {
            let code = message["code"]["code"].as_str().unwrap_or("no number");
            errors.push((code.to_owned(), usize::try_from(place).unwrap()));
        }
    }
    assert_eq!(output.status.success(), errors.is_empty(), "{}: {text}", program.display());
    errors.sort();
    errors.dedup();
    errors
}

#[test]
fn memory_in_use_cannot_be_touched() {
    let (library, output) = (library(), tempfile::tempdir().unwrap());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ui");
    let mut programs: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    programs.sort();
    let mut wrong = Vec::new();
    for program in &programs {
        let text = std::fs::read_to_string(program).unwrap();
        let marked = (1..).zip(text.lines()).filter_map(|(number, line)| {
            line.split_once("//~ ").map(|(_, code)| (code.trim().to_owned(), number))
        });
        let mut expected: Vec<_> = marked.collect();
        expected.sort();
        let found = compile(program, &library, output.path());
        if found != expected {
            wrong.push(format!("{}: {found:?} instead of {expected:?}", program.display()));
        }
    }
    // One of them is right, so that all are known to be compiled against the library.
    assert!(programs.iter().any(|program| program.ends_with("what_is_right_compiles.rs")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
