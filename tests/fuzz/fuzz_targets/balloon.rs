//! A malicious driver against virtio-balloon.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::devices::harness::targets::balloon(input));
