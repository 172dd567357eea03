//! A malicious driver against virtio-blk over a base and a writable top.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::devices::harness::targets::block(input));
