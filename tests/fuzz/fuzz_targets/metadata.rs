//! A malicious guest against the metadata address: frames of any kind, time, and answers that it takes or leaves.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    vmm::devices::harness::targets::metadata(input);
});
