//! What needs unsafe code: a guest's memory for the KVM probe.

pub mod probe;
