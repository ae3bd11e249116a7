//! A large payload goes in while 50 nodes download, and the server stays small. No time is measured.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

use crate::common;

use bytes::Bytes;
use common::Client;
use protocol::digest::{Hasher, Sha256};
use reqwest::{Method, StatusCode};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use tempfile::TempDir;
use tests::s3::S3;
use tokio::sync::Barrier;

const MIB: usize = 1 << 20;
const DOWNLOAD: usize = 24 * MIB;
const NODES: usize = 50;
/// PERFORMANCE.md, "server memory streaming a 2 GiB upload with 50 downloads".
const LIMIT_MIB: u64 = 100;
/// The same with a bucket: up to three parts of 8 MiB of an upload, and a piece of 512 KiB of each download, twice where it
/// is on its way.
const BUCKET_LIMIT_MIB: u64 = 150;

/// A process that ends with its owner, also where a test fails.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The most memory that a process ever had, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// `len` bytes of which every megabyte is the same one, and their digest.
fn upload(len: usize) -> (Sha256, reqwest::Body) {
    let piece = Bytes::from((0..MIB).map(|i| u8::try_from(i % 251).unwrap()).collect::<Vec<_>>());
    let mut hasher = Hasher::new();
    (0..len / MIB).for_each(|_| hasher.update(&piece));
    let pieces = (0..len / MIB).map(move |_| Ok::<_, std::io::Error>(piece.clone()));
    (hasher.finish(), reqwest::Body::wrap_stream(futures::stream::iter(pieces)))
}

async fn put(client: &Client, digest: Sha256, body: reqwest::Body) {
    let request = client.request(Method::PUT, &format!("/api/v1/payloads/{digest}")).body(body);
    assert_eq!(request.send().await.unwrap().status(), StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gibibytes_in_and_fifty_downloads_at_once() {
    upload_and_download(2048 * MIB, &[], LIMIT_MIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn into_a_bucket_and_fifty_downloads_at_once() {
    let s3 = S3::start().unwrap();
    let store = ("UPDATE_SERVER_PAYLOAD_STORE".to_owned(), s3.address());
    let variables = [&[store], &s3.variables()[..]].concat();
    upload_and_download(512 * MIB, &variables, BUCKET_LIMIT_MIB).await;
}

async fn upload_and_download(len: usize, variables: &[(String, String)], limit_mib: u64) {
    let dir = TempDir::new().unwrap();
    let srv = dir.path().join("srv");
    let program = env!("CARGO_BIN_EXE_update-server");
    assert!(Command::new(program).args(["init", "--data-dir"]).arg(&srv).output().unwrap().status.success());
    let child = Command::new(program)
        .args(["serve", "--listen", "127.0.0.1:0", "--log", "warn", "--data-dir"])
        .arg(&srv)
        .envs(variables.iter().cloned())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Owned(child);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let token = std::fs::read_to_string(srv.join("admin-token")).unwrap().trim().to_owned();
    let url = line.strip_prefix("listening on ").unwrap().trim().to_owned();
    let client = Client { http: reqwest::Client::new(), url, token: Some(token) };

    let (small, body) = upload(DOWNLOAD);
    put(&client, small, body).await;
    let (large, body) = upload(len);
    // Every download is begun, and waits with full buffers, before any of them goes on.
    let all_begun = Arc::new(Barrier::new(NODES + 1));
    let mut downloads = Vec::new();
    for _ in 0..NODES {
        let (client, all_begun) = (client.clone(), Arc::clone(&all_begun));
        downloads.push(tokio::spawn(async move {
            let mut response = client.get(&format!("/v1/payloads/{small}")).await;
            assert_eq!(response.status(), StatusCode::OK);
            let mut hasher = Hasher::new();
            hasher.update(&response.chunk().await.unwrap().unwrap());
            all_begun.wait().await;
            while let Some(piece) = response.chunk().await.unwrap() {
                hasher.update(&piece);
            }
            assert_eq!(hasher.finish(), small);
        }));
    }
    all_begun.wait().await;
    put(&client, large, body).await;
    for download in downloads {
        download.await.unwrap();
    }
    let head = client.request(Method::HEAD, &format!("/v1/payloads/{large}")).send().await.unwrap();
    assert_eq!(head.headers()[reqwest::header::CONTENT_LENGTH], len.to_string());

    let peak = peak_kib(child.0.id());
    println!("peak memory of the server: {} MiB", peak / 1024);
    assert!(
        peak < limit_mib * 1024,
        "the server had {peak} KiB at its peak: expected less than {limit_mib} MiB"
    );
}
