//! The first process of the guest: finds the root disk, and becomes the system that is on it.

use std::process::ExitCode;

fn main() -> ExitCode {
    let error = guest_agent::init::run();
    eprintln!("gatehouse-init: {}", guest_agent::error_chain(&error));
    // The end of the first process is a kernel panic, which the machine's monitor sees and reports as one.
    ExitCode::FAILURE
}
