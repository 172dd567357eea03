//! Takes a vCPU out of the guest, without a race: the signal's handler runs on the vCPU's thread and sets
//! `immediate_exit`, so that a `KVM_RUN` that has not begun yet returns at once as well
//! (Documentation/virt/kvm/api.rst, section 5).
#![expect(unsafe_code, reason = "a signal handler writes into the page that is shared with KVM")]

use kvm_ioctls::VcpuFd;
use std::cell::Cell;
use std::marker::PhantomData;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU8, Ordering, compiler_fence};
use std::thread::JoinHandle;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs; null on other threads.
    static FLAG: Cell<*mut u8> = const { Cell::new(null_mut()) };
}

/// Installs the handler of the signal, once for the process.
///
/// # Errors
/// When the kernel refuses the handler.
pub fn install() -> Result<(), vmm_sys_util::errno::Error> {
    register_signal_handler(SIGRTMIN(), on_signal)
}

/// Makes a thread leave the guest. What it is to do then must be written before. A thread that has ended already
/// is left in peace.
pub fn kick<T>(thread: &JoinHandle<T>) {
    if thread.is_finished() {
        return;
    }
    // SAFETY: the thread was not joined yet (its handle is here), so its pthread_t is valid even if it ends now.
    let code = unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
    if code != 0 && code != libc::ESRCH {
        tracing::error!(code, "cannot signal a vCPU's thread");
    }
}

/// While this lives, [`kick`] works on the current thread. It borrows the vCPU's page for as long.
#[derive(Debug)]
pub struct Armed {
    flag: *mut u8,
    /// Not to be sent to another thread: the handler looks at this thread's variable.
    here: PhantomData<*mut u8>,
}

impl Armed {
    /// Connects the handler to a vCPU. Drop the result before the vCPU.
    pub fn new(vcpu: &mut VcpuFd) -> Self {
        let flag: *mut u8 = &raw mut vcpu.get_kvm_run().immediate_exit;
        FLAG.set(flag);
        Self { flag, here: PhantomData }
    }

    /// Lets the next `KVM_RUN` enter the guest again. Read the orders after this call, never before.
    pub fn clear(&self) {
        // SAFETY: the page is mapped for as long as the vCPU, which outlives self; the kernel and the handler write
        // the byte too, hence the atomic.
        unsafe { AtomicU8::from_ptr(self.flag) }.store(0, Ordering::SeqCst);
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        FLAG.set(null_mut());
        compiler_fence(Ordering::SeqCst);
    }
}

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = FLAG.get();
    if !flag.is_null() {
        // SAFETY: not null, so this thread is between the making and the dropping of its Armed, and the page is
        // mapped. A store is all that happens here: it is safe in a handler.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::SeqCst);
    }
}
