//! A service beside sshd, to which connections are forwarded.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

/// Starts one that speaks first, and then says what it hears; its port.
pub fn service() -> u16 {
    let service = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = service.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for stream in service.incoming() {
            let mut stream = stream.expect("accepted");
            std::thread::spawn(move || {
                // Who only looks whether the port is there goes away before the greeting.
                if stream.write_all(b"hello\n").is_err() {
                    return;
                }
                let mut back = stream.try_clone().expect("same");
                std::io::copy(&mut stream, &mut back).ok();
                back.shutdown(Shutdown::Write).ok();
            });
        }
    });
    port
}

/// Talks to it: greeting, 300 kB there and back, a half-close.
pub fn talk(stream: &mut TcpStream) {
    let mut greeting = [0; 6];
    stream.read_exact(&mut greeting).expect("the service speaks first");
    assert_eq!(&greeting, b"hello\n");
    let sent = vec![7; 300_000];
    let (mut writer, whole) = (stream.try_clone().expect("same"), sent.clone());
    let writing = std::thread::spawn(move || {
        writer.write_all(&whole).expect("written");
        writer.shutdown(Shutdown::Write).expect("half closed");
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("read");
    writing.join().expect("written");
    assert!(back == sent, "{} bytes came back", back.len());
}
