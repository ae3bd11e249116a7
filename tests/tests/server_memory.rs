//! Steps 2 and 5: a payload of 2 GiB goes up while 50 nodes download, and the server holds less than 100 MiB.

use protocol::digest::{Hasher, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use tests::images::text;
use tests::world::World;

const UPLOAD: u64 = 2 << 30;
const STORED: u64 = 256 << 20;
const NODES: usize = 50;
const LIMIT: u64 = 100 << 20;

/// The same piece again and again, up to `length` bytes.
fn pieces(piece: &[u8], length: u64, mut give: impl FnMut(&[u8])) {
    let mut left = length;
    while left > 0 {
        let part = usize::try_from(left.min(piece.len() as u64)).unwrap();
        give(&piece[..part]);
        left -= part as u64;
    }
}

fn digest(piece: &[u8], length: u64) -> Sha256 {
    let mut hasher = Hasher::new();
    pieces(piece, length, |part| hasher.update(part));
    hasher.finish()
}

/// The status line of the answer.
fn upload(address: &str, token: &str, piece: &[u8], length: u64) -> String {
    let name = digest(piece, length);
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "PUT /api/v1/payloads/{name} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    pieces(piece, length, |part| stream.write_all(part).unwrap());
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

/// How many bytes came.
fn download(address: &str, name: Sha256) -> u64 {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /v1/payloads/{name} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    std::io::copy(&mut reader.by_ref(), &mut std::io::sink()).unwrap()
}

#[test]
fn two_gibibytes_up_and_fifty_downloads_in_less_than_100_mib() {
    let world = World::new().unwrap();
    let token = std::fs::read_to_string(world.server_data().join("admin-token")).unwrap().trim().to_owned();
    let address = world.address().trim_start_matches("http://").to_owned();
    let small = text(1, 1 << 20);
    let large = text(2, 1 << 20);
    let line = upload(&address, &token, &small, STORED);
    assert!(line.starts_with("HTTP/1.1 204"), "{line}");
    let name = digest(&small, STORED);
    std::thread::scope(|scope| {
        let up = scope.spawn(|| upload(&address, &token, &large, UPLOAD));
        let down: Vec<_> = (0..NODES).map(|_| scope.spawn(|| download(&address, name))).collect();
        for node in down {
            assert_eq!(node.join().unwrap(), STORED);
        }
        let line = up.join().unwrap();
        assert!(line.starts_with("HTTP/1.1 204"), "{line}");
    });
    let peak = world.server().unwrap().peak_memory().unwrap();
    println!("peak memory of the server: {} MiB", peak >> 20);
    assert!(peak < LIMIT, "the server held {peak} bytes");
    let stored = world.server_data().join("payloads").join(digest(&large, UPLOAD).to_string());
    assert_eq!(stored.metadata().unwrap().len(), UPLOAD);
}
