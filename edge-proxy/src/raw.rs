//! HTTP/1 answers that the gateway writes by itself, without the engine: refused heads, tunnels, redirects.

use crate::pure::page::Page;
use http::{HeaderMap, HeaderName, StatusCode, header};
use std::io;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Fields for one hop only (RFC 9110 section 7.6.1).
pub const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
];

/// An answer's head with the given lines of this hop. `Upgrade` is kept in an answer of 101, which is about it.
#[must_use]
pub fn head(status: StatusCode, headers: &HeaderMap, own: &[&str]) -> Vec<u8> {
    let mut bytes = line(status).into_bytes();
    let switching = status == StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in headers {
        if HOP_BY_HOP.contains(name) && !(switching && name == header::UPGRADE) {
            continue;
        }
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    for field in own {
        bytes.extend_from_slice(field.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// Writes a page, as the last answer of the connection.
///
/// # Errors
/// When the client does not take it.
pub async fn write_page<W: AsyncWrite + Unpin>(stream: &mut W, page: &Page) -> io::Result<()> {
    let mut text = line(StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    for (name, value) in &page.fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("content-length: {}\r\nconnection: close\r\n\r\n", page.body.len()));
    stream.write_all(text.as_bytes()).await?;
    stream.write_all(&page.body).await?;
    stream.flush().await
}

fn line(status: StatusCode) -> String {
    format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or("Other"))
}
