//! The version tag: which Slurm release the plugin says it was built for.
//!
//! Since 22.05 Slurm loads a SPANK plugin only if `plugin_version` names its own release. The interface has
//! not changed in ten releases, so the tag is filled in while the file is being loaded, from the release
//! that is loading it, if that release is one where the plugin was tried.
#![expect(unsafe_code, reason = "asks the loading program for its version")]

use std::ffi::{c_long, c_uint, c_void};

use crate::abi;

/// API major (`SLURM_API_MAJOR` of the release's libslurm) and the release as (year, month).
const RELEASES: [(u32, u32, u32); 10] = [
    (36, 20, 11),
    (37, 21, 8),
    (38, 22, 5),
    (39, 23, 2),
    (40, 23, 11),
    (41, 24, 5),
    (42, 24, 11),
    (43, 25, 5),
    (44, 25, 11),
    (45, 26, 5),
];

/// The version tag for a `slurm_api_version()`; 0, which no Slurm accepts, if that release is unknown.
///
/// ```
/// assert_eq!(roce_spank::version_tag(38 << 16), 22 << 16 | 5 << 8);
/// assert_eq!(roce_spank::version_tag(99 << 16), 0);
/// ```
#[must_use]
pub fn version_tag(api_version: c_long) -> c_uint {
    let Ok(version) = u32::try_from(api_version) else { return 0 };
    let release = RELEASES.iter().find(|(major, ..)| *major == version >> 16);
    release.map_or(0, |(_, year, month)| year << 16 | month << 8)
}

/// The version tag for the program that is loading the plugin. Called from an ELF constructor: it must not
/// panic, allocate or take a lock.
#[doc(hidden)]
#[must_use]
pub fn host_version_tag() -> c_uint {
    let Some(address) = abi::symbol(c"slurm_api_version") else { return 0 };
    // SAFETY: the symbol is libslurm's `long slurm_api_version(void)`, unchanged since its first release;
    // it only returns a constant.
    let api_version = unsafe {
        let function = std::mem::transmute::<*mut c_void, extern "C" fn() -> c_long>(address);
        function()
    };
    version_tag(api_version)
}

/// The running program's release as (year, month); `None` if it is unknown, or no Slurm at all.
#[must_use]
pub fn release() -> Option<(u32, u32)> {
    let tag = host_version_tag();
    (tag != 0).then_some((tag >> 16, tag >> 8 & 0xff))
}

/// Exports what Slurm's loader looks for in a plugin: `plugin_name`, `plugin_type`, `plugin_version`, and
/// the constructor that fills in the last before Slurm reads it.
///
/// Slurm makes the name part of `_SLURM_SPANK_OPTION_<name>_<option>`.
#[macro_export]
macro_rules! plugin_tag {
    ($name:literal) => {
        /// The plugin's name, as Slurm reads it.
        // SAFETY: no other symbol of this name is in the file, and Slurm looks it up in this file alone.
        #[unsafe(no_mangle)]
        #[expect(non_upper_case_globals, reason = "the symbol that Slurm looks up")]
        pub static plugin_name: [u8; $name.len() + 1] = $crate::terminated($name);

        /// The kind of plugin, as Slurm reads it.
        // SAFETY: as above.
        #[unsafe(no_mangle)]
        #[expect(non_upper_case_globals, reason = "the symbol that Slurm looks up")]
        pub static plugin_type: [u8; 6] = *b"spank\0";

        /// The release that the plugin says it was built for: see [`roce_spank::version_tag`].
        // SAFETY: as above; an atomic has the layout of the `uint32_t` that Slurm reads.
        #[unsafe(no_mangle)]
        #[expect(non_upper_case_globals, reason = "the symbol that Slurm looks up")]
        pub static plugin_version: ::std::sync::atomic::AtomicU32 = ::std::sync::atomic::AtomicU32::new(0);

        extern "C" fn fill_in_version() {
            plugin_version.store($crate::host_version_tag(), ::std::sync::atomic::Ordering::Relaxed);
        }

        // SAFETY: the dynamic loader calls each address of .init_array as a C function while it loads the
        // file, before dlopen returns; this one is such a function, can't panic, and may run twice.
        #[used]
        #[unsafe(link_section = ".init_array")]
        static FILL_IN_VERSION: extern "C" fn() = fill_in_version;
    };
}

/// A text with the terminating zero that C wants, at compile time.
#[doc(hidden)]
#[must_use]
pub const fn terminated<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    assert!(text.len() + 1 == N);
    let mut i = 0;
    while i < text.len() {
        bytes[i] = text.as_bytes()[i];
        i += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_releases_of_the_list_get_a_tag() {
        assert_eq!(version_tag(36 << 16), 0x14_0b_00);
        assert_eq!(version_tag(45 << 16 | 3), 0x1a_05_00);
        for unknown in [0, 35 << 16, 46 << 16, -1, 22 << 16, c_long::MAX, c_long::MIN] {
            assert_eq!(version_tag(unknown), 0, "{unknown}");
        }
    }

    #[test]
    fn a_program_that_is_not_slurm_gets_no_tag() {
        assert_eq!(host_version_tag(), 0);
        assert_eq!(release(), None);
    }
}
