//! A malicious driver against virtio-vsock with a client that asks for a port.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::devices::harness::targets::vsock(input));
