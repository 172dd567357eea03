//! The machine's only unsafe code: guest memory given to KVM, the signal that takes a vCPU out of the guest, the
//! report of a failed exit, and the start of a process.

mod exit;
mod kick;
mod memory;
mod process;

pub use exit::{InternalError, internal_error};
pub use kick::{Armed, install, kick};
pub use memory::{give_to_kvm, prefer_huge_pages};
pub use process::close_inherited;
