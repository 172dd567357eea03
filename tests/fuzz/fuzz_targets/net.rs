//! A malicious driver against virtio-net over a socket on which frames wait.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::devices::harness::targets::net(input));
