//! Descriptors of types that know only their number.
#![expect(unsafe_code, reason = "vmm-sys-util's EventFd does not implement AsFd")]

use std::os::fd::{AsRawFd, BorrowedFd};
use vmm_sys_util::eventfd::EventFd;

/// The event counter's descriptor, for calls that want a borrowed one.
#[must_use]
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `event`, whose borrow the result carries.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
