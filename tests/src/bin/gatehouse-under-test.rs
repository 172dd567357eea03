//! The command line as it is, for tests that need it beside them: cargo gives a test the programs of its own crate alone.

use std::process::ExitCode;

fn main() -> ExitCode {
    gatehouse::program::run()
}
