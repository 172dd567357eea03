//! The SSH front: a login by identity token or key, and every channel to a VM's own sshd.

pub mod client;
