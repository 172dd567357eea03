//! The devices' only unsafe code: guest memory in vectored reads and writes, and a few calls without a safe form.

mod fd;

pub use fd::borrow;
