//! The whole edge-proxy in this process, with real sockets, TLS, curl, h2 and WebSocket clients. Only the border to
//! vpc is a double: it speaks vpc's protocol and hands out connections to servers of the test.

mod basics;
mod hostile;
mod process;
mod sleep;
mod streams;
mod world;
