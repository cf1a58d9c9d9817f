#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| roce_node::fuzzing::capture_facts(text));
