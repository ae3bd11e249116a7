//! A client and a server that does everything wrong.

mod enrolment;
pub(crate) mod hostile;

use super::payload::{Payload, Piece};
use super::source::{Cancelled, NetworkBytes};
use super::*;
use crate::check::network_failure;
use crate::config::{Merged, Settings, fragment::Fragment};
use crate::install::Installer;
use crate::pause::Pause;
use crate::slots::Slots;
use disk::assemble::{SourceError, StoredBytes as _};
use hostile::{Answer, Request, Server, content};
use protocol::digest::Sha256;
use protocol::id::NodeId;
use protocol::manifest::{Manifest, PayloadFile};
use protocol::slot::Slot;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// The length of the payload that the servers hold, in bytes.
const SIZE: u64 = 1 << 20;
/// A range that the tests fetch.
const WANTED: Range<u64> = 100_000..600_000;

fn limits() -> Download {
    let text = "[server]\nurl = \"http://x\"\n[identity]\nchannel = \"a\"\n\
                [download]\nbackoff_initial_ms = 1\nbackoff_max_ms = 2\nretries = 4\n";
    let merged = Merged::from_fragments([Fragment::parse(Path::new("t.toml"), text).unwrap()]);
    Settings::from_merged(&merged).unwrap().download
}

fn client(server: &Server, limits: Download) -> Client {
    Client::new(&server.url().into(), limits).unwrap()
}

/// A server that takes connections and never answers; it tells when one has come.
async fn silent_server() -> (Url, tokio::sync::oneshot::Receiver<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let (asked, when_asked) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let _connection = listener.accept().await.unwrap();
        asked.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    (url, when_asked)
}

/// Bounds under which silence is a failure of the network some seconds later: one try, and no other.
fn patient() -> Download {
    let stall_timeout = Duration::from_secs(5);
    Download { connect_timeout: stall_timeout, stall_timeout, retries: 0, ..limits() }
}

/// Fetches ranges; what came, the error, and the number of bytes that were downloaded.
async fn fetch(
    server: &Server,
    limits: Download,
    ranges: &[Range<u64>],
) -> (Vec<Piece>, Result<(), NetworkError>, u64) {
    let downloaded = Arc::new(AtomicU64::new(0));
    let (sender, mut pieces) = mpsc::channel::<Piece>(4);
    let mut payload =
        Payload::new(client(server, limits), &Sha256::of(b"payload"), SIZE, Arc::clone(&downloaded)).unwrap();
    let collect = async {
        let mut all = Vec::new();
        while let Some(piece) = pieces.recv().await {
            all.push(piece);
        }
        all
    };
    let deliver = async {
        let done = payload.deliver(ranges, &sender).await;
        drop(sender);
        done
    };
    let (done, all) = tokio::join!(deliver, collect);
    (all, done, downloaded.load(Ordering::Relaxed))
}

/// Whether the pieces are the ranges, each byte once, in order, with the right content.
fn assert_complete(pieces: &[Piece], ranges: &[Range<u64>]) {
    let mut wanted = ranges.iter().cloned().flat_map(|range| range.step_by(1));
    let content = content(SIZE);
    for (offset, bytes) in pieces {
        for (i, byte) in bytes.iter().enumerate() {
            let at = offset + i as u64;
            assert_eq!(wanted.next(), Some(at));
            assert_eq!(*byte, content[usize::try_from(at).unwrap()], "at {at}");
        }
    }
    assert_eq!(wanted.next(), None);
}

fn line(error: &NetworkError) -> String {
    crate::error::chain(error)
}

#[tokio::test]
async fn many_ranges_come_in_order_and_nothing_else_does() {
    let server = Server::start(|_, request: &Request| Answer::range(request, SIZE)).await;
    let ranges: Vec<_> = (0..40).map(|i| i * 20_000..i * 20_000 + 1 + i * 100).collect();
    let (pieces, done, downloaded) = fetch(&server, limits(), &ranges).await;
    done.unwrap();
    assert_complete(&pieces, &ranges);
    assert_eq!(downloaded, ranges.iter().map(|r| r.end - r.start).sum::<u64>());
    assert_eq!(server.requests().len(), ranges.len());
}

#[tokio::test]
async fn a_cut_connection_is_resumed_with_only_the_rest() {
    let server = Server::start(|number, request| match number {
        0 => Answer::range(request, SIZE).cut_after(200_000),
        _ => Answer::range(request, SIZE),
    })
    .await;
    let (pieces, done, downloaded) = fetch(&server, limits(), &[WANTED]).await;
    done.unwrap();
    assert_complete(&pieces, &[WANTED]);
    assert_eq!(downloaded, WANTED.end - WANTED.start, "no byte twice");
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    let at = requests[1].range.as_ref().unwrap().start;
    assert!(at > WANTED.start && at <= WANTED.start + 200_000, "{at}");
}

#[tokio::test]
async fn a_server_that_hangs_up_for_ever_is_given_up() {
    // Each answer brings something, but too little to count as progress.
    let server = Server::start(|_, request| Answer::range(request, SIZE).cut_after(1000)).await;
    let (_, done, _) = fetch(&server, limits(), &[WANTED]).await;
    let error = done.unwrap_err();
    assert!(matches!(error, NetworkError::Broken { .. }), "{}", line(&error));
    assert_eq!(server.requests().len(), 1 + limits().retries as usize);
}

#[tokio::test]
async fn progress_earns_new_retries() {
    // 100,000 bytes an answer: five answers, more than there are retries in a row.
    let server = Server::start(|_, request| Answer::range(request, SIZE).cut_after(100_000)).await;
    let limits = Download { retries: 1, ..limits() };
    let (pieces, done, _) = fetch(&server, limits, &[WANTED]).await;
    done.unwrap();
    assert_complete(&pieces, &[WANTED]);
}

#[tokio::test]
async fn a_server_that_ignores_range_is_read_once_from_the_start() {
    let server = Server::start(|_, _| Answer::whole(SIZE)).await;
    let ranges = [1000..2000, 500_000..500_001, 700_000..900_000];
    let (pieces, done, downloaded) = fetch(&server, limits(), &ranges).await;
    done.unwrap();
    assert_complete(&pieces, &ranges);
    assert!(downloaded >= 900_000, "what is skipped counts as downloaded: {downloaded}");
    assert!(server.finished_answers() <= 1 + limits().parallel_requests, "one pass serves all ranges");
}

#[tokio::test]
async fn skipping_is_bounded() {
    let server = Server::start(|_, _| Answer::whole(SIZE)).await;
    let limits = Download { skip_max: 50_000, ..limits() };
    let (pieces, done, _) = fetch(&server, limits, &[0..10, WANTED]).await;
    let error = done.unwrap_err();
    assert!(line(&error).contains("ignores Range"), "{}", line(&error));
    assert_complete(&pieces, std::slice::from_ref(&(0..10)));
}

#[tokio::test]
async fn too_much_is_dropped() {
    let server = Server::start(|_, request| {
        let range = request.range.clone().unwrap();
        // Without a length: as many bytes as it likes.
        Answer::chunked(206, Some(range.clone()), SIZE, range.start..SIZE)
    })
    .await;
    let ranges = [10..20, WANTED];
    let (pieces, done, _) = fetch(&server, limits(), &ranges).await;
    done.unwrap();
    assert_complete(&pieces, &ranges);
}

#[tokio::test]
async fn too_little_is_asked_for_again() {
    let server = Server::start(|number, request| {
        let range = request.range.clone().unwrap();
        let end = if number == 0 { range.start + 5000 } else { range.end };
        Answer::chunked(206, Some(range.clone()), SIZE, range.start..end)
    })
    .await;
    let (pieces, done, downloaded) = fetch(&server, limits(), &[WANTED]).await;
    done.unwrap();
    assert_complete(&pieces, &[WANTED]);
    assert_eq!(downloaded, WANTED.end - WANTED.start);
    assert_eq!(server.requests()[1].range, Some(WANTED.start + 5000..WANTED.end));
}

#[tokio::test]
async fn a_shorter_range_is_taken_and_the_rest_asked_for() {
    let server = Server::start(|_, request| {
        let range = request.range.clone().unwrap();
        let part = range.start..range.end.min(range.start + 200_000);
        Answer::range(&Request { range: Some(part), ..request.clone() }, SIZE)
    })
    .await;
    let (pieces, done, _) = fetch(&server, limits(), &[WANTED]).await;
    done.unwrap();
    assert_complete(&pieces, &[WANTED]);
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn another_range_than_asked_for_is_never_delivered() {
    for wrong in [0..500_000, WANTED.start + 1..WANTED.end + 1, WANTED.start..WANTED.end + 1] {
        let server = Server::start(move |_, request| {
            Answer::range(&Request { range: Some(wrong.clone()), ..request.clone() }, SIZE)
        })
        .await;
        let (pieces, done, _) = fetch(&server, limits(), &[WANTED]).await;
        let error = done.unwrap_err();
        assert!(line(&error).contains("expected bytes 100000-599999/1048576, found"), "{}", line(&error));
        assert!(pieces.is_empty());
    }
    // A file of another size is another file.
    let server = Server::start(|_, request| Answer::range(request, SIZE + 1)).await;
    let (pieces, done, _) = fetch(&server, limits(), &[WANTED]).await;
    assert!(matches!(done, Err(NetworkError::WrongRange { .. })));
    assert!(pieces.is_empty());
}

#[tokio::test]
async fn redirects_are_told_and_not_followed() {
    let server = Server::start(|_, _| Answer::status(302, &[("Location", "http://evil.example/x")])).await;
    let (_, done, _) = fetch(&server, limits(), &[WANTED]).await;
    let error = done.unwrap_err();
    assert!(line(&error).contains("302 Found to http://evil.example/x"), "{}", line(&error));
    assert_eq!(server.requests().len(), 1, "asking again is of no use");
    let error = client(&server, limits()).get("v1/metadata/timestamp.json", 1000).await.unwrap_err();
    assert!(matches!(error, NetworkError::Redirect { .. }));
}

#[tokio::test]
async fn a_sick_server_is_asked_again() {
    let server = Server::start(|number, request| match number {
        0 => Answer::status(500, &[]),
        1 => Answer::status(503, &[("Retry-After", "0")]),
        2 => Answer::status(429, &[]),
        _ => Answer::range(request, SIZE),
    })
    .await;
    let limits = Download { parallel_requests: 1, ..limits() };
    let (pieces, done, _) = fetch(&server, limits, &[WANTED]).await;
    done.unwrap();
    assert_complete(&pieces, &[WANTED]);
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn what_will_not_change_is_not_asked_again() {
    for status in [400, 401, 403, 404, 410, 416, 501] {
        let server = Server::start(move |_, _| Answer::status(status, &[])).await;
        let (_, done, _) = fetch(&server, limits(), &[WANTED]).await;
        assert!(line(&done.unwrap_err()).contains(&status.to_string()));
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn retry_after_is_honoured_within_bounds_and_handed_on() {
    let server = Server::start(|_, _| Answer::status(503, &[("Retry-After", "3600")])).await;
    let limits = Download { retries: 0, retry_after_max: Duration::from_secs(120), ..limits() };
    let (_, done, _) = fetch(&server, limits, &[WANTED]).await;
    let error = done.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(120)));
    assert_eq!(network_failure(&error).retry_after_s, Some(120));
}

#[tokio::test]
async fn a_stalled_transfer_is_resumed() {
    let server = Server::start(|number, request| match number {
        0 => Answer::range(request, SIZE).hang_after(150_000),
        _ => Answer::range(request, SIZE),
    })
    .await;
    let limits = Download { stall_timeout: Duration::from_millis(500), ..limits() };
    let (pieces, done, downloaded) = fetch(&server, limits, &[WANTED]).await;
    done.unwrap();
    assert_complete(&pieces, &[WANTED]);
    assert_eq!(downloaded, WANTED.end - WANTED.start);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let server = Server::start(|_, _| Answer::silence()).await;
    let limits = Download {
        stall_timeout: Duration::from_millis(50),
        connect_timeout: Duration::from_millis(50),
        retries: 1,
        ..limits()
    };
    let (_, done, _) = fetch(&server, limits, &[WANTED]).await;
    assert!(matches!(done, Err(NetworkError::Stalled { .. })));
}

#[tokio::test]
async fn nobody_there_is_told_with_the_cause() {
    let server = Server::start(|_, _| Answer::silence()).await;
    let url = server.url();
    drop(server);
    let client = Client::new(&url.clone().into(), limits()).unwrap();
    let error = client.get("v1/metadata/timestamp.json", 10).await.unwrap_err();
    let text = line(&error);
    assert!(text.starts_with(&format!("no answer from {url}v1/metadata/timestamp.json: ")), "{text}");
    assert!(text.contains("refused"), "{text}");
    assert_eq!(text.matches(url.as_str()).count(), 1, "{text}");
}

#[tokio::test]
async fn small_documents_are_bounded_and_missing_ones_are_none() {
    let server = Server::start(|_, request| match request.path.as_str() {
        "/v1/metadata/none.json" => Answer::status(404, &[]),
        "/v1/metadata/endless.json" => Answer::chunked(200, None, SIZE, 0..SIZE),
        _ => Answer::json(200, "{\"kind\":\"forbidden\",\"message\":\"not yours\"}"),
    })
    .await;
    let client = client(&server, limits());
    assert_eq!(client.get("v1/metadata/none.json", 100).await.unwrap(), None);
    assert!(matches!(
        client.get("v1/metadata/endless.json", 1000).await,
        Err(NetworkError::TooLong { limit: 1000, .. })
    ));
    assert!(client.get("v1/metadata/x.json", 100).await.unwrap().unwrap().starts_with(b"{\"kind\""));
    let node: NodeId = "0123456789abcdef0123456789abcdef".parse().unwrap();
    client.send_events(&wire::Events { schema: 1, node, events: Vec::new() }).await.unwrap();
    assert_eq!(server.requests().last().unwrap().method, "POST");
}

#[tokio::test]
async fn the_servers_own_words_are_in_the_error() {
    let server =
        Server::start(|_, _| Answer::json(403, "{\"kind\":\"forbidden\",\"message\":\"not yours\\n\"}"))
            .await;
    let error = client(&server, limits()).get("v1/metadata/1.root.json", 10).await.unwrap_err();
    assert!(line(&error).ends_with("answered 403 Forbidden (not yours)"), "{}", line(&error));
}

/// Caches do not keep answers to requests that show a secret, and metadata and payloads are public.
#[tokio::test]
async fn the_credential_goes_with_what_the_node_says_and_with_nothing_else() {
    let server = Server::start(|_, _| Answer::json(200, "{}")).await;
    let credential = wire::NodeCredential::from_random([7; 32]);
    let client = client(&server, limits()).with_credential(credential.clone());
    let node: NodeId = "0123456789abcdef0123456789abcdef".parse().unwrap();
    let events = wire::Events { schema: 1, node, events: Vec::new() };
    client.send_events(&events).await.unwrap();
    client.get_as_node("v2/lock/default", 10).await.unwrap();
    client.get("v1/metadata/1.root.json", 10).await.unwrap();
    let shown: Vec<_> = server.requests().into_iter().map(|request| request.authorization).collect();
    let bearer = Some(format!("Bearer {}", credential.reveal()));
    assert_eq!(shown, [bearer.clone(), bearer, None]);
    assert!(!format!("{client:?}").contains(&credential.reveal()[20..]), "nor into a log");
}

#[tokio::test]
async fn an_answer_of_another_schema_is_refused() {
    let answer = "{\"schema\":2,\"decision\":\"none\",\"reason\":\"\"}";
    let server = Server::start(move |_, _| Answer::json(200, answer)).await;
    let check = wire::UpdateCheck {
        schema: 1,
        node: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        channel: "alpha".parse().unwrap(),
        group: "default".parse().unwrap(),
        arch: "x86-64".parse().unwrap(),
        version: "1.0.0".parse().unwrap(),
        slot: protocol::slot::Slot::A,
        boot_id: "b".parse().unwrap(),
        state: protocol::status::StateName::Idle,
        interactive: false,
        quarantine: None,
    };
    let error = client(&server, limits()).update_check(&check).await.unwrap_err();
    assert!(matches!(error, NetworkError::Schema { expected: 1, found: 2, .. }), "{}", line(&error));
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let pause = |text: &str| {
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("retry-after", text.parse().unwrap());
        backoff::retry_after(&headers)
    };
    assert_eq!(pause("120"), Some(Duration::from_secs(120)));
    assert_eq!(pause("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
    assert!(pause("Fri, 31 Dec 2100 23:59:59 GMT").unwrap() > Duration::from_secs(1_000_000));
    assert_eq!(pause("soon"), None);
}

#[tokio::test]
async fn a_transfer_stops_while_the_network_is_silent() {
    let (url, asked) = silent_server().await;
    let payload = Payload::new(
        Client::new(&url.into(), patient()).unwrap(),
        &Sha256::of(b"payload"),
        SIZE,
        Arc::default(),
    );
    let abort = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Handle::current();
    let mut source = NetworkBytes::new(payload.unwrap(), runtime, Arc::clone(&abort), |_| {});
    let reading = tokio::task::spawn_blocking(move || source.read(&[WANTED], &mut |_, _| Ok(())));
    asked.await.unwrap();
    abort.store(true, Ordering::Relaxed);
    let error = reading.await.unwrap().unwrap_err();
    assert!(matches!(&error, SourceError::Failed(source) if source.is::<Cancelled>()), "{error:?}");
}

#[tokio::test]
async fn an_install_stops_while_the_network_is_silent() {
    let (url, asked) = silent_server().await;
    let folder = tempfile::tempdir().unwrap();
    let abort = Arc::new(AtomicBool::new(false));
    let disk = folder.path().join("disk.img");
    let installer = Installer {
        client: Client::new(&url.into(), patient()).unwrap(),
        slots: Arc::new(Mutex::new(Slots::new(Arc::new(disk), disk::SlotLayout::default()))),
        heads: folder.path().join("heads"),
        meter: Arc::default(),
        abort: Arc::clone(&abort),
        pause: Pause::default(),
    };
    let manifest = Manifest {
        schema: 1,
        os: "debian".to_owned(),
        version: "1.1.0".parse().unwrap(),
        arch: "x86-64".parse().unwrap(),
        partitions: Vec::new(),
        payloads: vec![PayloadFile {
            size: SIZE,
            sha256: Sha256::of(b"payload"),
            head_size: 1000,
            head_sha256: Sha256::of(b"head"),
            source_sha256: None,
        }],
        min_source_version: None,
        notes: String::new(),
    };
    let stop = async {
        asked.await.unwrap();
        abort.store(true, Ordering::Relaxed);
    };
    let (installed, ()) = tokio::join!(installer.install(&manifest, Slot::B, Slot::A), stop);
    assert_eq!(installed.unwrap_err().kind(), machine::FailureKind::Cancelled);
}
