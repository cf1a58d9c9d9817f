use std::path::Path;

/// A new temporary folder for trees, removed when it is dropped: in memory where the system has
/// `/dev/shm`, because a tree is thousands of tiny files, else wherever temporary files go.
///
/// # Errors
/// When it can't be made.
pub fn scratch() -> std::io::Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
}
