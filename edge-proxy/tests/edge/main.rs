//! The whole edge-proxy in this process, with real sockets, TLS, curl, h2 and WebSocket clients. Only the border to
//! vpc is a double: it speaks vpc's protocol and hands out connections to servers of the test.

mod again;
mod basics;
mod bodies;
mod floods;
mod grpc;
mod handover;
mod hostile;
mod http2;
mod limits;
mod memory;
mod process;
mod python;
mod raw_h2;
mod recorder;
mod scanners;
mod seeing;
mod sleep;
mod slow;
mod smuggling;
mod smuggling_h2;
mod stock;
mod streams;
mod traces;
mod trailers;
mod websockets;
mod world;
