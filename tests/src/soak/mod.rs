//! What the soak writes down, and what is made of it: who was answered by whom, what was lost, what grew.

pub mod journal;
pub mod kills;
pub mod memory;
pub mod verdict;
