//! Runs inside the VM: exec, files, network, clock, power-off over vsock.
//!
//! The host speaks [`model::agent`] to it. One thread per connection, one operation per connection; a file
//! operation lends its thread the user's file rights, a command runs as a process of the user.

pub mod boot;
mod chores;
mod exec;
mod files;
mod grow;
mod hooks;
mod host_keys;
pub mod init;
mod machine;
mod network;
pub mod place;
pub mod power_button;
mod program;
mod pure;
pub mod server;
mod sys;
pub mod transport;
mod uevents;
mod users;
mod wire;

/// An error with its causes, on one line.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
