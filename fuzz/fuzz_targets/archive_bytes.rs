#![no_main]

use std::path::Path;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(roce_node::read_bytes(Path::new("fuzzed"), bytes)));
