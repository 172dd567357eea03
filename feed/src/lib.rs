//! How control's decisions reach the other processes, and how messages with descriptors cross a Unix socket.
//!
//! - [`publish`]: control writes one view per process (write, fsync, rename) and announces its generation.
//! - [`subscribe`]: a process starts from the file, swaps in newer ones, refuses older ones, and needs no control
//!   to start or to go on.
//! - [`blobs`]: what is large and seldom new, in files that views name by their content.
//! - [`shelf`], [`names`]: which of them are there and for how long; the names of a house of many.
//! - [`lines`]: a log of JSON lines in bounded files.
//! - [`figures`]: what each process counts, for control, who gathers it.
//! - [`wire`]: one JSON message per packet, with file descriptors, between two processes of this host.

pub mod blobs;
pub mod figures;
pub mod lines;
pub mod names;
pub mod publish;
pub mod shelf;
pub mod subscribe;
pub mod sys;
pub mod wire;
