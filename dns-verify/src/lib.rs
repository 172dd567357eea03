//! Proof that a domain is somebody's: a TXT record with a code, which only its owner can publish.
//!
//! ```text
//! text ─► pure::name (A-labels, no public suffix) ─► pure::proof (which names may hold the code)
//!                                                     └► pure::walk (root ─► TLD ─► zone: whom to ask what)
//!                                                         └► io (UDP, TCP) ─► pure::message (is it an answer?) ─► walk
//! ```
//! The zone's own name servers are asked, found from the root as RFC 1034 section 5.3.3 has it: no cache tells of
//! yesterday, and nobody between us and the zone needs to be trusted beyond the path itself. Whatever comes back is
//! hostile until it has been checked, and every walk is bounded in queries, depth, bytes and time.

pub mod io;
pub mod pure;

pub use io::{ProveError, Prover, Settings};
pub use pure::name::{NameError, customer_domain, registrable};
pub use pure::proof::{Hint, Labels, Proof};
