//! Which system calls a VM's process may make once it has its order; any other one ends it by SIGSYS.
//!
//! A thread begins with the list of the thread that made it, so [`Role::Main`] has what all of them need, and each
//! thread then takes the shorter list of its own role. That each entry is used is what `tests/jail.rs` shows.

use rustix::thread::SecureComputingMode;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use std::collections::BTreeMap;
use std::io;
use thiserror::Error;

/// Why there is no filter.
#[derive(Debug, Error)]
pub enum SeccompError {
    /// It cannot be made.
    #[error("cannot make the list of system calls")]
    Make(#[source] seccompiler::BackendError),
    /// The kernel does not say whether there is one.
    #[error("cannot see whether system calls are limited")]
    Mode(#[source] io::Error),
    /// The kernel refuses it.
    #[error("cannot limit the system calls")]
    Install(#[source] seccompiler::Error),
}

/// Kinds of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The loop, and copies of the process.
    Main,
    /// A vCPU.
    Vcpu,
    /// A virtio device.
    Device,
    /// Writes the memory of a machine that is being suspended.
    Writer,
}

/// A call that is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number.
    pub number: i64,
    /// Its name.
    pub name: &'static str,
    /// With which arguments; any, when empty. One of these must hold.
    only: &'static [Argument],
}

/// What an argument must be.
#[derive(Clone, Copy, Debug)]
struct Argument {
    index: u8,
    mask: Option<u64>,
    value: u64,
}

const fn is(index: u8, value: u64) -> Argument {
    Argument { index, mask: None, value }
}

const fn masked(index: u8, mask: u64, value: u64) -> Argument {
    Argument { index, mask: Some(mask), value }
}

/// `ioctl` on descriptors of KVM: the type in the request's second byte (Documentation/userspace-api/ioctl).
const KVM: Argument = masked(1, 0xff00, 0xae00);
/// Kinds of new namespaces, which nobody may make.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

macro_rules! calls {
    ($($name:ident $only:tt $why:literal)*) => {
        &[$(Call { number: libc::$name, name: stringify!($name), only: calls!(@only $only) }),*]
    };
    (@only [$($argument:expr),*]) => { &[$($argument),*] };
    (@only {$arguments:expr}) => { $arguments };
}

/// Memory that is code is neither made nor changed.
const NO_CODE: Argument = masked(2, libc::PROT_EXEC as u64, 0);
/// `fcntl` that copies a descriptor or looks at its flags.
const ABOUT_DESCRIPTORS: &[Argument] = &[
    is(1, libc::F_GETFD as u64),
    is(1, libc::F_SETFD as u64),
    is(1, libc::F_DUPFD_CLOEXEC as u64),
    is(1, libc::F_GETFL as u64),
    is(1, libc::F_SETFL as u64),
];
/// Signals that a thread of the process gets from another: to abort, and to come out of the guest.
const OWN_SIGNALS: &[Argument] = &[is(2, libc::SIGABRT as u64), is(2, KICK)];
/// `SIGRTMIN` as glibc counts, which keeps two for itself.
const KICK: u64 = 34;
/// Sockets on this host alone.
const UNIX_SOCKETS: &[Argument] = &[is(0, libc::AF_UNIX as u64)];

/// Any thread.
const ANY: &[Call] = calls! {
    SYS_brk[] "the allocator's heap"
    SYS_mmap[NO_CODE] "the allocator, stacks, memory files, KVM's pages"
    SYS_munmap[] "gives them back"
    SYS_mremap[] "large buffers that grow"
    SYS_mprotect[NO_CODE] "guards of stacks, the allocator's arenas"
    SYS_madvise[] "ended stacks; guest memory"
    SYS_futex[] "locks, channels, joins"
    SYS_sched_yield[] "locks that spin for a moment"
    SYS_read[] "event counters, streams"
    SYS_write[] "event counters, streams, the log"
    SYS_close[] "each descriptor's end"
    SYS_fcntl{ABOUT_DESCRIPTORS} "copies of descriptors"
    SYS_rt_sigprocmask[] "threads begin and end without signals"
    SYS_rt_sigreturn[] "the end of a signal's handler"
    SYS_sigaltstack[] "where an overflow of a stack is told"
    SYS_gettid[] "an abort signals its own thread"
    SYS_getpid[] "a signal to an own thread"
    SYS_tgkill{OWN_SIGNALS} "an abort; takes a vCPU out of the guest"
    SYS_exit[] "a thread's end"
    SYS_exit_group[] "the process' end"
    SYS_restart_syscall[] "a wait that was frozen goes on"
    SYS_clock_gettime[] "time, where the vDSO has none"
    SYS_getrandom[] "entropy for the guest, names of layers, seeds of hash tables"
};

/// A vCPU: the guest's exits, and its state.
const VCPU: &[Call] = calls! {
    SYS_ioctl[KVM] "runs the vCPU, reads its state"
    SYS_openat[] "a new console log when the old one is full"
    SYS_rename[] "the old console log"
};

/// A device: a thread with an epoll, the disk, the TAP, and the streams of vsock.
const DEVICE: &[Call] = calls! {
    SYS_epoll_wait[] "the device's events"
    SYS_epoll_pwait[] "the same, as the library asks"
    SYS_epoll_pwait2[] "the same, with a time limit"
    SYS_epoll_ctl[] "streams come and go"
    SYS_timerfd_settime[] "when vsock's streams, and the loop, look again"
    SYS_pread64[] "the disk's maps"
    SYS_pwrite64[] "the disk's maps"
    SYS_preadv[] "the disk"
    SYS_pwritev[] "the disk"
    SYS_fdatasync[] "the guest's flush"
    SYS_fsync[] "the same for what has a new size"
    SYS_fallocate[] "discards"
    SYS_ftruncate[] "the disk's maps"
    SYS_readv[] "frames from the TAP"
    SYS_writev[] "frames to the TAP"
    SYS_socket{UNIX_SOCKETS} "a stream to the host, of the guest's asking"
    SYS_connect[] "the same"
    SYS_accept4[] "a stream to the guest, of the host's asking"
    SYS_recvfrom[] "streams"
    SYS_sendto[] "streams"
    SYS_shutdown[] "ends of streams"
    SYS_getsockopt[] "errors of streams"
    SYS_ioctl{ABOUT_STREAMS_AND_TAP} "streams that do not wait, the TAP's offloads"
};

/// Writes memory and state.
const WRITER: &[Call] = calls! {
    SYS_openat[] "the files, the own page map"
    SYS_open[] "the folder, to make names durable"
    SYS_ftruncate[] "the memory file's size"
    SYS_pread64[] "the own page map"
    SYS_pwrite64[] "memory"
    SYS_pwritev[] "memory"
    SYS_fsync[] "makes them durable"
    SYS_fdatasync[] "makes the disk durable"
    SYS_lseek[] "the end of the disk's maps"
};

/// The loop: all that is done with names, sockets and threads.
const MAIN: &[Call] = calls! {
    SYS_ioctl[KVM, is(1, libc::TUNSETVNETHDRSZ)] "makes machines; the form of the TAP's frames"
    SYS_clone[masked(0, NEW_NAMESPACES, 0)] "threads, and copies of the process"
    SYS_clone3[] "is answered as missing, see `enter`"
    SYS_prctl{ABOUT_THREADS} "names of threads; whether and that they take their lists"
    SYS_seccomp[] "threads take their lists"
    SYS_set_robust_list[] "threads begin"
    SYS_rseq[] "threads begin"
    SYS_sched_getaffinity[] "threads look where their stacks end"
    SYS_rt_sigaction[] "the handler that takes a vCPU out of the guest; children are nobody's"
    SYS_pipe2[] "a copy waits until its original goes on"
    SYS_eventfd2[] "notifications and interrupts"
    SYS_epoll_create1[] "the loop, and each device's"
    SYS_timerfd_create[] "the period of the idle watch"
    SYS_bind[] "the control and vsock sockets"
    SYS_listen[] "the same"
    SYS_fchmodat[] "who may connect"
    SYS_recvmsg[] "requests, with what rides with them"
    SYS_sendmsg[] "answers"
    SYS_flock[] "one process for each VM"
    SYS_open[] "folders"
    SYS_statx[] "sizes of files"
    SYS_newfstatat[is(3, libc::AT_EMPTY_PATH as u64)] "whether a descriptor is a folder's, as glibc asks before it reads one"
    SYS_fstat[] "the same, as glibc from 2.39 on asks"
    SYS_getdents64[] "what a folder has"
    SYS_lseek[] "from the beginning: kernel, initramfs, folders"
    SYS_mkdir[] "a suspended state's folder"
    SYS_unlink[] "sockets and logs of an earlier process"
    SYS_unlinkat[] "layers and states that are of no more use"
    SYS_rename[] "a state becomes the suspended one, and is used up"
    SYS_renameat[] "the disk's next manifest"
    SYS_copy_file_range[] "layers that are merged"
    SYS_fchdir[] "a copy works in its own VM's folder"
    SYS_close_range[] "a copy lets the original's descriptors go"
};

/// `ioctl` of a device.
const ABOUT_STREAMS_AND_TAP: &[Argument] = &[is(1, libc::FIONBIO), is(1, libc::TUNSETOFFLOAD)];
/// `prctl`: a name, whether there is a list, no new privileges.
const ABOUT_THREADS: &[Argument] = &[
    is(0, libc::PR_SET_NAME as u64),
    is(0, libc::PR_GET_SECCOMP as u64),
    is(0, libc::PR_SET_NO_NEW_PRIVS as u64),
];

/// What a thread of a role may call, the shared ones first. A call may be there twice, with different arguments.
pub fn calls(role: Role) -> impl Iterator<Item = &'static Call> {
    let lists: &[&[Call]] = match role {
        Role::Main => &[ANY, MAIN, VCPU, DEVICE, WRITER],
        Role::Vcpu => &[ANY, VCPU],
        Role::Device => &[ANY, DEVICE],
        Role::Writer => &[ANY, WRITER],
    };
    lists.iter().flat_map(|list| list.iter())
}

/// Takes the list of all roles for this thread, and for those that it makes. It cannot be taken back.
///
/// # Errors
/// See [`SeccompError`].
pub fn enter() -> Result<(), SeccompError> {
    install(&no_clone3().map_err(SeccompError::Make)?)?;
    install(&program(Role::Main).map_err(SeccompError::Make)?)
}

/// Takes the shorter list of a thread's own role. Outside of a jail, where machines are run by hand, there is none.
///
/// # Errors
/// See [`SeccompError`].
pub fn take(role: Role) -> Result<(), SeccompError> {
    match rustix::thread::secure_computing_mode() {
        Ok(SecureComputingMode::Filter) => install(&program(role).map_err(SeccompError::Make)?),
        Ok(_) => Ok(()),
        Err(error) => Err(SeccompError::Mode(error.into())),
    }
}

/// The filter of a role.
///
/// # Errors
/// When the lists make no sense.
pub fn program(role: Role) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut unconditional = Vec::new();
    for call in calls(role) {
        let entry = rules.entry(call.number).or_default();
        if call.only.is_empty() {
            unconditional.push(call.number);
        }
        for argument in call.only {
            let operation = argument.mask.map_or(SeccompCmpOp::Eq, SeccompCmpOp::MaskedEq);
            // All of them are ints, of whose other half the kernel knows nothing.
            let length = SeccompCmpArgLen::Dword;
            let condition = SeccompCondition::new(argument.index, length, operation, argument.value)?;
            entry.push(SeccompRule::new(vec![condition])?);
        }
    }
    for number in unconditional {
        rules.insert(number, Vec::new());
    }
    let (other, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules, other, listed, TargetArch::x86_64)?.try_into()
}

/// The flags of `clone3` lie in memory, where no filter sees them. Without it glibc takes `clone`.
fn no_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    SeccompFilter::new(rules, SeccompAction::Allow, missing, TargetArch::x86_64)?.try_into()
}

fn install(program: &BpfProgram) -> Result<(), SeccompError> {
    seccompiler::apply_filter(program).map_err(SeccompError::Install)
}
