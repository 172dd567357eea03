//! The command line: up, doctor, vm, snapshots, domains, api-key.

use std::process::ExitCode;

fn main() -> ExitCode {
    gatehouse::program::run()
}
