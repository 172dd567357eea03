//! End-to-end tests, simulations and benches of the whole house.
