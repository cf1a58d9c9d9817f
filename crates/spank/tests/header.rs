//! Our declarations against the `slurm/spank.h` that is installed.
//!
//! bindgen reads the header when the test runs. What it finds is compared with what our crate *compiled*
//! (type names, sizes, offsets, numbers), so a declaration that is changed on one side only fails here.

use std::collections::HashMap;
use std::mem::{offset_of, size_of};

use roce_spank::abi::{Context, Host, Item, OptionCallback, SpankOption};

/// What bindgen made of the header.
struct Header {
    text: String,
    aliases: HashMap<String, String>,
}

/// The header's bindings, or why there are none. Panics where a skip is not allowed.
fn header() -> Option<Header> {
    let generated = std::panic::catch_unwind(|| {
        bindgen::Builder::default()
            .header_contents("spank_test.h", "#include <slurm/spank.h>\n")
            .allowlist_function("spank_.*|slurm_(error|info|verbose|debug|spank_log)")
            .allowlist_type("spank_.*")
            .layout_tests(false)
            .generate_comments(false)
            .formatter(bindgen::Formatter::None)
            .generate()
    });
    let skipped = match generated {
        Ok(Ok(bindings)) => return Some(Header::new(&bindings.to_string())),
        Ok(Err(error)) => format!("slurm/spank.h is not readable: {error}"),
        Err(_) => "libclang was not found".to_owned(),
    };
    let required = std::env::var("ROCE_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|tier| tier == "slurm"), "ROCE_REQUIRE has slurm, but {skipped}");
    println!("skipped: {skipped} (packages libslurm-dev and libclang-dev)");
    None
}

impl Header {
    fn new(bindings: &str) -> Self {
        let text = squeeze(bindings);
        let aliases = text
            .split(';')
            .filter_map(|item| {
                let alias = item.trim();
                let (name, target) = match alias.split_once("pub use self :: ") {
                    Some((_, alias)) => alias.split_once(" as ").map(|(target, name)| (name, target))?,
                    None => alias.split_once("pub type ")?.1.split_once('=')?,
                };
                Some((name.trim().to_owned(), target.trim().to_owned()))
            })
            .collect();
        Self { text, aliases }
    }

    /// The type of a function, as `std::any::type_name` writes ours.
    fn function(&self, name: &str) -> Option<String> {
        let declaration = between(&self.text, &format!("pub fn {name} ("), ";")?;
        let (arguments, result) = declaration.rsplit_once(')')?;
        Some(self.function_type(arguments, result))
    }

    fn function_type(&self, arguments: &str, result: &str) -> String {
        let arguments: Vec<String> = arguments
            .split(',')
            .map(|argument| argument.split_once(" : ").map_or(argument, |(_, kind)| kind).trim())
            .filter(|argument| !argument.is_empty())
            .map(|argument| self.resolve(argument))
            .collect();
        let result = result
            .trim()
            .strip_prefix("->")
            .map_or(String::new(), |kind| format!(" -> {}", self.resolve(kind)));
        format!("unsafe extern \"C\" fn({}){result}", arguments.join(", "))
    }

    /// The fields of a struct, in order, as (name, type).
    fn fields(&self, name: &str) -> Vec<(String, String)> {
        let body = between(&self.text, &format!("pub struct {name} {{"), "}").unwrap_or_default();
        body.split(',')
            .filter_map(|field| field.trim().strip_prefix("pub ")?.split_once(" : "))
            .map(|(name, kind)| (name.to_owned(), self.resolve(kind)))
            .collect()
    }

    /// The number of an enumerator.
    fn number(&self, enumerator: &str) -> Option<u32> {
        between(&self.text, &format!("_{enumerator} :"), ";")?.split_once('=')?.1.trim().parse().ok()
    }

    /// A C type as Rust's `type_name` writes it.
    fn resolve(&self, kind: &str) -> String {
        let kind = kind.trim();
        if kind == "..." {
            return kind.to_owned();
        }
        for pointer in ["* mut ", "* const "] {
            if let Some(target) = kind.strip_prefix(pointer) {
                return format!("*{} {}", &pointer[2..pointer.len() - 1], self.resolve(target));
            }
        }
        if let Some(function) = kind.strip_prefix(":: std :: option :: Option < unsafe extern \"C\" fn (") {
            let (arguments, result) = function.trim_end_matches('>').rsplit_once(')').unwrap_or_default();
            return format!("core::option::Option<{}>", self.function_type(arguments, result));
        }
        match kind.rsplit(":: ").next().unwrap_or(kind) {
            "c_char" => std::any::type_name::<std::ffi::c_char>().to_owned(),
            "c_int" => "i32".to_owned(),
            "c_uint" => "u32".to_owned(),
            "spank_handle" => "roce_spank::abi::SpankHandle".to_owned(),
            "spank_option" => "roce_spank::abi::SpankOption".to_owned(),
            other => match self.aliases.get(other) {
                Some(target) => self.resolve(target),
                None => format!("unknown type {other}"),
            },
        }
    }
}

/// One space between tokens.
fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let rest = &text[text.find(start)? + start.len()..];
    Some(&rest[..rest.find(end)?])
}

#[test]
fn functions_have_the_signatures_of_the_header() {
    let Some(header) = header() else { return };
    for (name, ours) in Host::declarations() {
        assert_eq!(header.function(name).as_deref(), Some(ours), "{name}");
    }
}

#[test]
fn the_option_struct_is_laid_out_as_in_the_header() {
    let Some(header) = header() else { return };
    fn field<T>(name: &str, _: fn(&SpankOption) -> &T, offset: usize) -> (String, String, usize, usize) {
        (name.to_owned(), std::any::type_name::<T>().to_owned(), offset, size_of::<T>())
    }
    let ours = [
        field("name", |option| &option.name, offset_of!(SpankOption, name)),
        field("arginfo", |option| &option.arginfo, offset_of!(SpankOption, arginfo)),
        field("usage", |option| &option.usage, offset_of!(SpankOption, usage)),
        field("has_arg", |option| &option.has_arg, offset_of!(SpankOption, has_arg)),
        field("val", |option| &option.val, offset_of!(SpankOption, val)),
        field("cb", |option| &option.cb, offset_of!(SpankOption, cb)),
    ];
    let theirs = header.fields("spank_option");
    let named: Vec<_> = ours.iter().map(|(name, kind, ..)| (name.clone(), kind.clone())).collect();
    assert_eq!(named, theirs);
    // C lays fields out in order, each at the next multiple of its size: these are pointers and ints.
    let mut next = 0;
    for (name, _, offset, size) in &ours {
        assert_eq!(*offset, next, "{name}");
        next = offset + size;
    }
    assert_eq!(size_of::<SpankOption>(), next);
    let callback = std::any::type_name::<Option<OptionCallback>>();
    assert_eq!(header.resolve("spank_opt_cb_f"), callback);
}

#[test]
fn items_and_contexts_have_the_numbers_of_the_header() {
    let Some(header) = header() else { return };
    for (name, ours) in [
        ("S_JOB_UID", Item::JobUid),
        ("S_JOB_GID", Item::JobGid),
        ("S_JOB_ID", Item::JobId),
        ("S_JOB_STEPID", Item::JobStepId),
        ("S_JOB_LOCAL_TASK_COUNT", Item::JobLocalTaskCount),
        ("S_JOB_NCPUS", Item::JobNcpus),
        ("S_JOB_ENV", Item::JobEnv),
        ("S_TASK_ID", Item::TaskId),
        ("S_TASK_GLOBAL_ID", Item::TaskGlobalId),
        ("S_TASK_PID", Item::TaskPid),
        ("S_STEP_CPUS_PER_TASK", Item::StepCpusPerTask),
        ("S_JOB_ALLOC_CORES", Item::JobAllocCores),
        ("S_STEP_ALLOC_CORES", Item::StepAllocCores),
    ] {
        assert_eq!(header.number(name), Some(ours as u32), "{name}");
    }
    for (name, ours) in [
        ("S_CTX_ERROR", Context::Error),
        ("S_CTX_LOCAL", Context::Local),
        ("S_CTX_REMOTE", Context::Remote),
        ("S_CTX_ALLOCATOR", Context::Allocator),
        ("S_CTX_SLURMD", Context::Slurmd),
        ("S_CTX_JOB_SCRIPT", Context::JobScript),
    ] {
        assert_eq!(header.number(name), Some(ours as u32), "{name}");
    }
}
