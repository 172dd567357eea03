//! Asking systemd, as process 1, to power off.
#![expect(unsafe_code, reason = "real-time signals have no safe wrapper")]

use std::io;

/// Sends `SIGRTMIN+4` to process 1: "start poweroff.target" (systemd(1), section SIGNALS).
///
/// # Errors
/// What kill(2) answers.
pub fn ask_init_to_power_off() -> io::Result<()> {
    // SAFETY: kill(2) takes two integers and touches no memory.
    match unsafe { libc::kill(1, libc::SIGRTMIN() + 4) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
