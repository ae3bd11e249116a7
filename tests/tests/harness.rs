//! The hostile proxy does what its actions say, so that what the other tests see is the engine's doing.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tests::hostile::{Action, Proxy, fetch};
use tests::images::{Kind, Tree};

/// The whole body that [`upstream`] serves.
const BODY: &[u8] = b"0123456789abcdef";

/// A server that answers each request with [`BODY`], or the part of it that a Range header names.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap());
        }
    });
    address
}

fn answer(mut stream: TcpStream) {
    let mut range = None;
    for line in BufReader::new(&stream).lines() {
        let line = line.unwrap().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("range: bytes=") {
            let (first, last) = value.split_once('-').unwrap();
            range = Some((first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap()));
        }
    }
    let (status, body) = match range {
        Some((first, last)) => ("206 Partial Content", &BODY[first..=last]),
        None => ("200 OK", BODY),
    };
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len()).unwrap();
    stream.write_all(body).unwrap();
}

fn start() -> Proxy {
    Proxy::start(&format!("http://{}", upstream())).unwrap()
}

/// What comes back for a request of bytes 4 to 7, head and body.
fn ranged(proxy: &Proxy) -> String {
    let address = proxy.address();
    let mut stream = TcpStream::connect(address.trim_start_matches("http://")).unwrap();
    write!(stream, "GET /file HTTP/1.1\r\nhost: x\r\nrange: bytes=4-7\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn it_forwards() {
    let proxy = start();
    assert_eq!(fetch(&proxy.address(), "/file").unwrap(), BODY);
    assert!(ranged(&proxy).ends_with("\r\n\r\n4567"));
    let seen = proxy.take_seen();
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[0].status, seen[0].body_bytes, seen[0].request.earlier), (200, 16, 0));
    assert_eq!((seen[1].status, seen[1].body_bytes, seen[1].request.earlier), (206, 4, 1));
    assert_eq!(seen[1].request.range.as_deref(), Some("bytes=4-7"));
}

#[test]
fn it_flips_cuts_appends_and_answers() {
    let proxy = start();
    proxy.set_rule(|_| Action::Flip(3));
    assert_eq!(fetch(&proxy.address(), "/file").unwrap(), b"012s456789abcdef");
    proxy.set_rule(|_| Action::CutAfter(5));
    assert!(fetch(&proxy.address(), "/file").unwrap_err().to_string().contains("ended after 5 of 16"));
    proxy.set_rule(|_| Action::Append(b"more".to_vec()));
    assert_eq!(fetch(&proxy.address(), "/file").unwrap(), b"0123456789abcdefmore");
    proxy.set_rule(|_| Action::status("503 Service Unavailable"));
    assert!(fetch(&proxy.address(), "/file").is_err());
    proxy.set_rule(|_| Action::Drop);
    assert!(fetch(&proxy.address(), "/file").is_err());
}

#[test]
fn it_ignores_and_lies_about_ranges() {
    let proxy = start();
    proxy.set_rule(|_| Action::IgnoreRange);
    let whole = ranged(&proxy);
    assert!(whole.starts_with("HTTP/1.1 200") && whole.ends_with("0123456789abcdef"), "{whole}");
    proxy.set_rule(|_| Action::LieAboutRange);
    let lie = ranged(&proxy);
    assert!(
        lie.starts_with("HTTP/1.1 206") && lie.contains("bytes 4-7/16") && lie.ends_with("cdef"),
        "{lie}"
    );
}

#[test]
fn a_budget_spans_answers_and_then_stalls() {
    let proxy = start();
    let left = Arc::new(AtomicU64::new(20));
    proxy.set_rule(move |_| Action::Budget(Arc::clone(&left)));
    assert_eq!(fetch(&proxy.address(), "/file").unwrap(), BODY);
    let address = proxy.address();
    let hanging = std::thread::spawn(move || fetch(&address, "/file"));
    proxy.wait_for_stall().unwrap();
    assert_eq!(proxy.take_seen().iter().map(|seen| seen.body_bytes).sum::<u64>(), 20);
    drop(proxy);
    assert!(hanging.join().unwrap().is_err());
}

#[test]
fn images_are_the_same_each_time_and_updates_are_small() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let tree = Tree::generate(1, 1 << 20);
    tree.write_image(&path("a"), 4 << 20, Kind::best()).unwrap();
    Tree::generate(1, 1 << 20).write_image(&path("b"), 4 << 20, Kind::best()).unwrap();
    tree.updated(2, 10).write_image(&path("c"), 4 << 20, Kind::Bytes).unwrap();
    tree.write_image(&path("d"), 4 << 20, Kind::Bytes).unwrap();
    let read = |name: &str| std::fs::read(path(name)).unwrap();
    if Kind::best() == Kind::Bytes {
        assert_eq!(read("a"), read("b"));
    }
    assert_ne!(read("c"), read("d"));
    assert_eq!(read("c").len(), 4 << 20);
}
