//! Random bytes of the operating system's generator.

use rand::TryRngCore;

/// As many as the caller's array holds.
///
/// # Panics
/// When the kernel gives no random bytes: no id or key may be made without them.
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).expect("getrandom(2) does not fail once the system is up");
    bytes
}
