//! Vectored reads and writes straight from and to guest memory.
//!
//! No reference to guest memory is made: a vCPU may change it at any time.
#![expect(unsafe_code, reason = "readv and its kin take pointers into guest memory")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use vm_memory::VolatileSlice;

/// Most vectors of one call (`IOV_MAX` of Linux, uio(7)).
pub const MAX_VECTORS: usize = 1024;

/// Reads once into the slices in order, as far as one call reaches; returns the number of bytes.
///
/// # Errors
/// Of readv(2); a signal is retried.
pub fn readv(fd: BorrowedFd<'_>, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let vectors = vectors(slices);
    // SAFETY: `vectors` point into `slices`, which are writable and mapped for as long as they are borrowed;
    // the kernel writes no more than each vector's length.
    retry(|| unsafe { libc::readv(fd.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) })
}

/// Writes `head` and then the slices as one message, as far as one call reaches; returns the number of bytes.
///
/// # Errors
/// Of writev(2); a signal is retried.
pub fn writev(fd: BorrowedFd<'_>, head: &[u8], slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let mut all = Vec::with_capacity(1 + slices.len());
    if !head.is_empty() {
        all.push(libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
    }
    all.extend(vectors(slices));
    // SAFETY: the vectors point into `head` and `slices`, which are mapped for as long as they are borrowed;
    // writev only reads them.
    retry(|| unsafe { libc::writev(fd.as_raw_fd(), all.as_ptr(), all.len() as libc::c_int) })
}

/// Reads once from `offset` of a file; returns the number of bytes, 0 at its end.
///
/// # Errors
/// Of preadv(2); a signal is retried.
pub fn preadv(fd: BorrowedFd<'_>, slices: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let vectors = vectors(slices);
    let at = file_offset(offset)?;
    // SAFETY: as in `readv`.
    retry(|| unsafe { libc::preadv(fd.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, at) })
}

/// Writes once to `offset` of a file; returns the number of bytes.
///
/// # Errors
/// Of pwritev(2); a signal is retried.
pub fn pwritev(fd: BorrowedFd<'_>, slices: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let vectors = vectors(slices);
    let at = file_offset(offset)?;
    // SAFETY: as in `writev`.
    retry(|| unsafe { libc::pwritev(fd.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, at) })
}

fn vectors(slices: &[VolatileSlice<'_>]) -> Vec<libc::iovec> {
    let some = slices.iter().take(MAX_VECTORS);
    some.map(|s| libc::iovec { iov_base: s.ptr_guard_mut().as_ptr().cast(), iov_len: s.len() }).collect()
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn retry(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
