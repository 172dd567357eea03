//! A user name that a client sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    ssh_proxy::harness::name(input);
});
