//! A malicious driver against virtio-rng.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::devices::harness::targets::rng(input));
