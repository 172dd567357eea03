//! End-to-end tests and benches of the whole house: what they share.

pub mod api;
pub mod chance;
pub mod guest;
pub mod house;
pub mod load;
pub mod owned;
pub mod peer;
pub mod small;
pub mod soak;
pub mod traces;
pub mod world;
