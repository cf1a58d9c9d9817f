//! Builds the part that only C can say, and exports the host's functions to the plugin.

fn main() {
    println!("cargo::rerun-if-changed=src/shim.c");
    cc::Build::new()
        .file("src/shim.c")
        .flag("-Wall")
        .flag("-Wextra")
        .link_lib_modifier("+whole-archive")
        .compile("shim");
    // The plugin looks Slurm's functions up in the program that loads it.
    println!("cargo::rustc-link-arg-bins=-rdynamic");
    println!("cargo::rustc-link-arg-tests=-rdynamic");
}
