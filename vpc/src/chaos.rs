//! Ends the process at a border between two changes of the kernel's state, in test builds only (feature `chaos`):
//! what a `kill -9` at that very moment would leave behind.

use std::sync::atomic::{AtomicU64, Ordering};

static BORDERS: AtomicU64 = AtomicU64::new(0);
static FATAL: AtomicU64 = AtomicU64::new(u64::MAX);

/// From now on, the `n`-th border ends the process; the first is 1.
#[cfg(feature = "chaos")]
pub fn abort_after(n: u64) {
    FATAL.store(n, Ordering::SeqCst);
}

/// A border between two changes. Does nothing unless a test has asked for it.
pub fn border() {
    let passed = BORDERS.fetch_add(1, Ordering::SeqCst) + 1;
    if passed == FATAL.load(Ordering::SeqCst) {
        // No destructor, no flush, no last word: as a SIGKILL would do it.
        std::process::abort();
    }
}

/// Borders passed so far.
#[must_use]
pub fn passed() -> u64 {
    BORDERS.load(Ordering::SeqCst)
}
