//! A client and a VM at the bridge: two that keep to the protocol in any order, and two that do not.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    ssh_proxy::harness::bridge(input);
});
