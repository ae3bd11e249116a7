//! Step 5: what payloads are like over HTTP, wherever the server keeps them.

use super::{Server, error};
use protocol::digest::Sha256;
use reqwest::{Method, StatusCode, header};
use std::io::{Read as _, Write as _};

/// A megabyte and a bit, in which every place looks different.
pub fn payload() -> Vec<u8> {
    (0..300_000u32).flat_map(u32::to_le_bytes).collect()
}

/// Uploads it, and says where it is then.
pub async fn upload(server: &Server, bytes: &[u8]) -> String {
    assert_eq!(server.admin().upload(bytes).await.status(), StatusCode::NO_CONTENT);
    format!("/v1/payloads/{}", Sha256::of(bytes))
}

/// Ranges, and everything else that a node or a cache may ask.
pub async fn by_range(server: &Server) {
    let bytes = payload();
    let path = upload(server, &bytes).await;
    let node = server.anybody();
    let len = bytes.len();

    let whole = node.get(&path).await;
    assert_eq!(whole.status(), StatusCode::OK);
    assert_eq!(whole.headers()[header::CONTENT_LENGTH], len.to_string());
    assert_eq!(whole.headers()[header::ACCEPT_RANGES], "bytes");
    assert!(whole.headers()[header::CACHE_CONTROL].to_str().unwrap().contains("immutable"));
    let etag = whole.headers()[header::ETAG].to_str().unwrap().to_owned();
    assert_eq!(etag, format!("\"{}\"", Sha256::of(&bytes)));
    assert_eq!(whole.bytes().await.unwrap(), bytes);

    let head = node.request(Method::HEAD, &path).send().await.unwrap();
    assert_eq!(head.headers()[header::CONTENT_LENGTH], len.to_string());
    assert_eq!(head.bytes().await.unwrap().len(), 0);

    let range =
        async |text: &str| node.request(Method::GET, &path).header(header::RANGE, text).send().await.unwrap();
    for (text, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=0-", 0..len),
        ("bytes=400000-799999", 400_000..800_000),
        ("bytes=-5", len - 5..len),
        ("bytes=1199999-9999999", 1_199_999..len),
    ] {
        let part = range(text).await;
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT, "{text}");
        let content_range = format!("bytes {}-{}/{len}", expected.start, expected.end - 1);
        assert_eq!(part.headers()[header::CONTENT_RANGE], content_range, "{text}");
        assert_eq!(part.headers()[header::CONTENT_LENGTH], expected.len().to_string(), "{text}");
        assert_eq!(part.headers()[header::ETAG], etag, "{text}");
        assert_eq!(part.bytes().await.unwrap(), bytes[expected], "{text}");
    }
    for text in ["bytes=1200000-", "bytes=-0", "bytes=5000000-6000000"] {
        let refused = range(text).await;
        assert_eq!(refused.headers()[header::CONTENT_RANGE], format!("bytes */{len}"), "{text}");
        error(refused, StatusCode::RANGE_NOT_SATISFIABLE).await;
    }
    for text in ["bytes=0-1,5-6", "bytes=9-1", "rows=0-1"] {
        assert_eq!(range(text).await.status(), StatusCode::OK, "{text}: ignored, as RFC 9110 allows");
    }

    let cached = node.request(Method::GET, &path).header(header::IF_NONE_MATCH, &etag).send().await.unwrap();
    assert_eq!(cached.status(), StatusCode::NOT_MODIFIED);
    let of = |tag: &str| {
        node.request(Method::GET, &path).header(header::RANGE, "bytes=1-2").header(header::IF_RANGE, tag)
    };
    assert_eq!(of(&etag).send().await.unwrap().status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(of("\"another\"").send().await.unwrap().status(), StatusCode::OK, "another file's range");

    error(node.get("/v1/payloads/../../srv/admin-token").await, StatusCode::NOT_FOUND).await;
    error(node.get("/v1/payloads/..%2Fadmin-token").await, StatusCode::BAD_REQUEST).await;
    error(node.get(&format!("/v1/payloads/{}", Sha256::of(b""))).await, StatusCode::NOT_FOUND).await;
}

/// Uploads that are wrong or break off leave nothing; `held` counts what the store holds, halves included.
pub async fn whole_and_right(server: &Server, held: impl Fn() -> usize) {
    let admin = server.admin();
    let bytes = payload();
    let path = format!("/v1/payloads/{}", Sha256::of(&bytes));
    let api = format!("/api{path}");

    let mut wrong = bytes.clone();
    wrong[600_000] ^= 1;
    let refused = admin.request(Method::PUT, &api).body(wrong).send().await.unwrap();
    let body = error(refused, StatusCode::BAD_REQUEST).await;
    assert!(
        body.message.contains("expected") && body.message.contains("nothing was stored"),
        "{}",
        body.message
    );
    assert_eq!((admin.get(&path).await.status(), held()), (StatusCode::NOT_FOUND, 0));

    // Half of what the header announces, then the line goes dead. The server has answered or given up when it has
    // closed the connection in turn.
    let (url, token) = (admin.url.clone(), admin.token.clone().unwrap());
    let (half, request) = (bytes[..500_000].to_vec(), api.clone());
    tokio::task::spawn_blocking(move || {
        let mut line = std::net::TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
        write!(line, "PUT {request} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 1200000\r\n\r\n")
            .unwrap();
        line.write_all(&half).unwrap();
        line.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        line.read_to_end(&mut rest).unwrap();
    })
    .await
    .unwrap();
    assert_eq!((admin.get(&path).await.status(), held()), (StatusCode::NOT_FOUND, 0));

    assert_eq!(admin.upload(&bytes).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(admin.upload(&bytes).await.status(), StatusCode::NO_CONTENT, "again is fine");
    assert_eq!((admin.get(&path).await.bytes().await.unwrap().to_vec() == bytes, held()), (true, 1));
    let name = admin.request(Method::PUT, "/api/v1/payloads/admin-token").body("x").send().await.unwrap();
    error(name, StatusCode::BAD_REQUEST).await;
}
