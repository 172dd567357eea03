//! The command line: up, doctor, vm, domains, api-key.

fn main() {}
