//! A malicious client and a malicious network against the WireGuard engine.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    vpn::harness::engine(input);
});
