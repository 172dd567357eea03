//! gRPC through the door: HTTP/2 over TLS on the client's side, HTTP/2 by prior knowledge on the VM's, and the four kinds
//! of calls with their trailers. Both ends frame their messages as gRPC does, by hand.

use crate::world::{Behind, PATIENCE, World, http_server, text};
use bytes::{BufMut, Bytes, BytesMut};
use edge_proxy::metrics::Count;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Messages of a long answer, of [`MESSAGE_BYTES`] each: more than all windows on the way hold.
const MESSAGES: usize = 400;
const MESSAGE_BYTES: usize = 16 << 10;

/// A message with its prefix: not compressed, and its length.
fn message(bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(bytes.len()).expect("short"));
    framed.put_slice(bytes);
    framed.freeze()
}

fn status(code: &str, text: Option<&str>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().expect("value"));
    if let Some(text) = text {
        trailers.insert("grpc-message", text.parse().expect("value"));
    }
    trailers
}

/// A server of gRPC in a VM; its calls are named by their paths. With `once`, it says goodbye on each connection as soon
/// as it has taken a call.
async fn server(once: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.expect("prior knowledge");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(call(request, respond));
                    if once {
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    address
}

async fn call(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(request.headers()["content-type"], "application/grpc+proto");
    let head = Response::builder().header("content-type", "application/grpc+proto").body(()).expect("head");
    let path = request.uri().path().to_owned();
    let mut hear = request.into_body();
    match path.as_str() {
        "/t.T/Unary" => {
            let asked = whole(&mut hear).await;
            let mut say = respond.send_response(head, false).expect("head");
            say.send_data(asked, false).expect("data");
            say.send_trailers(status("0", None)).expect("trailers");
        }
        "/t.T/Many" => {
            let mut say = respond.send_response(head, false).expect("head");
            for number in 0..MESSAGES {
                let byte = u8::try_from(number % 251).expect("small");
                send(&mut say, message(&[byte; MESSAGE_BYTES])).await;
            }
            say.send_trailers(status("0", None)).expect("trailers");
        }
        "/t.T/Both" => {
            let mut say = respond.send_response(head, false).expect("head");
            while let Some(Ok(piece)) = hear.data().await {
                hear.flow_control().release_capacity(piece.len()).expect("capacity");
                say.send_data(piece, false).expect("data");
            }
            say.send_trailers(status("0", None)).expect("trailers");
        }
        "/t.T/Late" => {
            let mut say = respond.send_response(head, false).expect("head");
            say.send_data(message(b"some"), false).expect("data");
            say.send_trailers(status("13", Some("broke%20off"))).expect("trailers");
        }
        "/t.T/Reset" => respond.send_reset(Reason::CANCEL),
        _ => {
            let mut only = head;
            only.headers_mut().extend(status("12", Some("no%20such%20call")));
            respond.send_response(only, true).expect("trailers only");
        }
    }
}

/// Sends all of it, as fast as the windows allow.
async fn send(say: &mut SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        say.reserve_capacity(bytes.len());
        let room = std::future::poll_fn(|cx| say.poll_capacity(cx)).await.expect("open").expect("capacity");
        say.send_data(bytes.split_to(room.min(bytes.len())), false).expect("data");
    }
}

/// All data of a stream.
async fn whole(hear: &mut RecvStream) -> Bytes {
    let mut all = BytesMut::new();
    while let Some(piece) = timeout(PATIENCE, hear.data()).await.expect("in time") {
        let piece = piece.expect("data");
        hear.flow_control().release_capacity(piece.len()).expect("capacity");
        all.extend_from_slice(&piece);
    }
    all.freeze()
}

struct Client {
    sender: SendRequest<Bytes>,
    driving: JoinHandle<Result<(), h2::Error>>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driving.abort();
    }
}

/// How a call has ended.
struct Ended {
    answer: StatusCode,
    data: Bytes,
    status: Option<String>,
}

impl Client {
    async fn new(world: &World) -> Self {
        let tls = world.tls("a.style.dev", &["h2"]).await.expect("tls");
        let (sender, connection) = h2::client::handshake(tls).await.expect("handshake");
        Self { sender, driving: tokio::spawn(connection) }
    }

    /// Begins a call: its answer, and what says more.
    async fn begin(&mut self, path: &str) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        let mut sender = self.sender.clone().ready().await.expect("ready");
        let request = Request::post(format!("https://a.style.dev{path}"))
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .body(())
            .expect("request");
        sender.send_request(request, false).expect("send")
    }

    /// A whole call with one message.
    async fn call(&mut self, path: &str) -> Ended {
        let (answer, mut say) = self.begin(path).await;
        // The call may have been ended before it has said anything; a good one's answer shows what was sent.
        let _or_ended = say.send_data(message(b"hello"), true);
        let answer = timeout(PATIENCE, answer).await.expect("in time").expect("answer");
        let (head, mut hear) = answer.into_parts();
        let data = whole(&mut hear).await;
        let trailers = timeout(PATIENCE, hear.trailers()).await.expect("in time").expect("well-formed");
        let status = trailers.as_ref().unwrap_or(&head.headers).get("grpc-status");
        let status = status.map(|status| status.to_str().expect("text").to_owned());
        Ended { answer: head.status, data, status }
    }
}

async fn world(once: bool) -> World {
    let world = World::new().await;
    world.behind(3000, Behind::Server(server(once).await));
    world.map("a.style.dev", 3000).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_all_kinds_pass_over_one_connection_to_the_vm() {
    let world = world(false).await;
    let mut client = Client::new(&world).await;
    let unary = client.call("/t.T/Unary").await;
    assert_eq!(
        (unary.answer, unary.data, unary.status.as_deref()),
        (StatusCode::OK, message(b"hello"), Some("0"))
    );
    let many = client.call("/t.T/Many").await;
    assert_eq!((many.data.len(), many.status.as_deref()), (MESSAGES * (MESSAGE_BYTES + 5), Some("0")));
    let last = &many.data[many.data.len() - MESSAGE_BYTES - 5..];
    assert_eq!(last, message(&[u8::try_from((MESSAGES - 1) % 251).expect("small"); MESSAGE_BYTES]));
    let late = client.call("/t.T/Late").await;
    assert_eq!((late.data, late.status.as_deref()), (message(b"some"), Some("13")));
    let only = client.call("/t.T/Nothing").await;
    assert_eq!((only.answer, only.data.len(), only.status.as_deref()), (StatusCode::OK, 0, Some("12")));
    assert_eq!((world.count(Count::Dials), world.count(Count::Retries)), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_talk_at_once() {
    let world = world(false).await;
    let mut client = Client::new(&world).await;
    let (answer, mut say) = client.begin("/t.T/Both").await;
    say.send_data(message(b"0"), false).expect("data");
    let answer = timeout(PATIENCE, answer).await.expect("in time").expect("answer");
    let mut hear = answer.into_body();
    for number in 0..50u8 {
        // Each is said only when the one before has come back.
        let mut heard = BytesMut::new();
        while heard.len() < 6 {
            let piece = timeout(PATIENCE, hear.data()).await.expect("in time").expect("open").expect("data");
            hear.flow_control().release_capacity(piece.len()).expect("capacity");
            heard.extend_from_slice(&piece);
        }
        assert_eq!(heard, message(&[b'0' + number]));
        say.send_data(message(&[b'1' + number]), number == 49).expect("data");
    }
    assert_eq!(whole(&mut hear).await, message(b"b"));
    let trailers = timeout(PATIENCE, hear.trailers()).await.expect("in time").expect("well-formed");
    assert_eq!(trailers.expect("there are some")["grpc-status"], "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_vm_gives_up_is_left_and_no_call_is_made_twice() {
    let world = world(true).await;
    let mut client = Client::new(&world).await;
    for _ in 0..10 {
        let ended = client.call("/t.T/Unary").await;
        assert_eq!((ended.data, ended.status.as_deref()), (message(b"hello"), Some("0")));
    }
    assert_eq!(world.count(Count::Retries), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_without_http2_is_told_of_and_one_that_breaks_a_call_too() {
    let world = world(false).await;
    let mut client = Client::new(&world).await;
    // gRPC's clients make UNAVAILABLE of 502.
    assert_eq!(client.call("/t.T/Reset").await.answer, StatusCode::BAD_GATEWAY);
    world.behind(3001, Behind::Server(old_server().await));
    world.map("a.style.dev", 3001).await;
    let ended = client.call("/t.T/Unary").await;
    assert_eq!(ended.answer, StatusCode::BAD_GATEWAY);
    assert!(String::from_utf8_lossy(&ended.data).contains("VM_ANSWER_BROKEN"));
    assert_eq!(world.count(Count::Retries), 0);
}

/// What is no gRPC goes by HTTP/1.1, also gRPC-Web, whose trailers are in its body.
#[tokio::test(flavor = "multi_thread")]
async fn only_grpc_goes_by_http2() {
    let world = World::new().await;
    let seen = http_server(|request| async move { text(format!("{:?}", request.version())) }).await;
    world.behind(3000, Behind::Server(seen));
    world.map("a.style.dev", 3000).await;
    for (kind, version) in [
        ("application/grpc", "HTTP/2.0"),
        ("application/grpc+json", "HTTP/2.0"),
        ("application/grpc-web+proto", "HTTP/1.1"),
        ("application/json", "HTTP/1.1"),
        ("application/grpcx", "HTTP/1.1"),
    ] {
        let kind_field = format!("Content-Type: {kind}");
        let asked = world.curl("https://a.style.dev/", &["--http2", "-H", &kind_field, "-d", "x"]).await;
        assert_eq!((asked.code, asked.out.as_str()), (0, version), "{kind}");
    }
}

/// A server that knows HTTP/1 alone.
async fn old_server() -> SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut bytes = [0; 4096];
            let _preface = tcp.read(&mut bytes).await.expect("read");
            let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            tcp.write_all(answer).await.expect("write");
        }
    });
    address
}
