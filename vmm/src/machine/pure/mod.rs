#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! What a machine is, as values: addresses, tables, registers and decisions, without a file, clock or KVM.

pub mod acpi;
pub mod boot_params;
pub mod cpuid;
pub mod layout;
pub mod panic_line;
pub mod power;
pub mod registers;
