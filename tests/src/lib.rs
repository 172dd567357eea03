//! End-to-end tests and benches of the whole house: what they share.

pub mod house;
pub mod load;
pub mod traces;
