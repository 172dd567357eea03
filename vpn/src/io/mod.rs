//! Sockets, TUNs, threads: what moves bytes, and who asks whom for what.
//!
//! ```text
//!   feed ─► follow (tokio) ─ orders: view, TUN, report, end ─► server (one thread, one epoll) ◄─► UDP socket, TUNs
//!             ▲    └── asks vpc for the TUNs of a view's networks      │
//!             └───────────────── a TUN that is lost ───────────────────┘
//! ```

pub mod follow;
pub mod front;
pub mod server;
pub mod tunnels;
