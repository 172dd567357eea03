//! The VM's process: one machine in KVM, its devices, and the loop that controls it.
//!
//! - [`pure`]: addresses, tables, registers and decisions as values.
//! - [`load`]: fills guest memory. [`vm`]: makes the machine in KVM. [`vcpu`]: runs it. [`bus`]: what it reaches.
//! - [`jail`]: what is left of the host. [`handed`]: what of it is handed in.
//! - [`console`]: the bounded log. [`control`]: what is said with the supervisor. [`process`]: the loop.
//!
//! No async here: plain threads, and one epoll loop over one closed set of events.

pub mod bus;
pub mod console;
pub mod control;
pub mod handed;
pub mod hello;
pub mod jail;
pub mod load;
pub mod memory;
pub mod parts;
pub mod process;
pub mod pure;
pub mod state;
pub mod sys;
pub mod vcpu;
pub mod vm;
