//! The machine's only unsafe code: guest memory given to KVM, the signal that takes a vCPU out of the guest, the
//! report of a failed exit, the FPU's state, the start of a process, its jail, and copies of it.

mod exit;
mod fork;
mod jail;
mod kick;
mod memory;
mod process;
mod xsave;

pub use exit::{InternalError, internal_error};
pub use fork::{Side, close_all_but, fork, ignore_children, keep_out_of_copies, leave};
pub use jail::{become_user, detach, enter_namespaces, kvm_of, mount};
pub use kick::{Armed, install, kick};
pub use memory::{give_to_kvm, prefer_huge_pages};
pub use process::close_inherited;
pub use xsave::{get_xsave, set_xsave};
