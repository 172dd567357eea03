//! Sockets, TUNs, threads: what moves bytes, and who asks whom for what.
//!
//! ```text
//!   desk ─ questions ─┐
//!                     ▼
//!   feed ─► follow (tokio) ─ orders: view, TUN, report, sessions, end ─► server (one thread, one epoll) ◄─► UDP, TUNs
//!             ▲    └── asks vpc for the TUNs of a view's networks                   │
//!             └───────────────── a TUN that is lost ────────────────────────────────┘
//! ```

pub mod desk;
pub mod figures;
pub mod follow;
pub mod front;
pub mod server;
pub mod tunnels;
