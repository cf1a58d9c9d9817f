#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| roce_node::fuzzing::sysfs_values(text));
