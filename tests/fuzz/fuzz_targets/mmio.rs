//! A malicious driver against the registers of the transport.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::devices::harness::targets::mmio(input));
