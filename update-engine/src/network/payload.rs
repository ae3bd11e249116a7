//! Step 5, download: ranges of a payload file, each byte delivered once and in order, whatever the server does.
//!
//! A range is asked for, its answer is read; where the answer breaks off, the rest of the range is asked for again,
//! from where it broke. Requests for the following ranges are sent ahead, so that many small ranges do not cost a
//! round trip each. Bytes are checked by whoever takes them: this module only makes sure they are of the right place.

use super::body::Body;
use super::{Backoff, Client, NetworkError};
use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{StatusCode, Url};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A request that brought at least this many bytes made progress: the count of failures starts anew. A server that
/// sends a byte and hangs up is not followed for ever.
const PROGRESS_BYTES: u64 = 64 << 10;

/// Bytes of a payload file, and where in the file they belong.
pub type Piece = (u64, Bytes);

/// One payload file on the server.
#[derive(Debug)]
pub struct Payload {
    client: Client,
    url: Url,
    size: u64,
    downloaded: Arc<AtomicU64>,
    throttle: Throttle,
    /// The server sends whole files whatever it is asked for.
    ignores_ranges: bool,
    /// The rest of such a file.
    whole: Option<Opened>,
}

impl Payload {
    /// A payload by its digest and its size in bytes. Every byte of it that arrives is counted in `downloaded`,
    /// needed or not.
    ///
    /// # Errors
    /// [`NetworkError::Address`]
    pub fn new(
        client: Client,
        sha256: &protocol::digest::Sha256,
        size: u64,
        downloaded: Arc<AtomicU64>,
    ) -> Result<Self, NetworkError> {
        let url = client.url(&format!("v1/payloads/{sha256}"))?;
        let throttle = Throttle::new(client.limits().rate_limit.map(|limit| limit.get()));
        Ok(Self { client, url, size, downloaded, throttle, ignores_ranges: false, whole: None })
    }

    /// Fetches one range into memory.
    ///
    /// # Errors
    /// [`NetworkError`] once the retries are spent.
    pub async fn fetch(&mut self, range: Range<u64>) -> Result<Vec<u8>, NetworkError> {
        let (sender, mut pieces) = mpsc::channel::<Piece>(16);
        let ranges = [range];
        let collect = async {
            let mut all = Vec::new();
            while let Some((_, bytes)) = pieces.recv().await {
                all.extend_from_slice(&bytes);
            }
            all
        };
        let deliver = async {
            let done = self.deliver(&ranges, &sender).await;
            drop(sender);
            done
        };
        let (done, all) = tokio::join!(deliver, collect);
        done.map(|()| all)
    }

    /// Sends all bytes of the ranges, in order, to `sink`. Ends early, without an error, when nobody takes them.
    ///
    /// # Errors
    /// [`NetworkError`] once the retries of one range are spent, or at once where repeating is of no use.
    pub async fn deliver(
        &mut self,
        ranges: &[Range<u64>],
        sink: &mpsc::Sender<Piece>,
    ) -> Result<(), NetworkError> {
        let mut ahead = Ahead::default();
        for (i, range) in ranges.iter().enumerate() {
            let mut at = range.start;
            let mut backoff = Backoff::new(self.client.limits());
            while at < range.end {
                let rest = at..range.end;
                let body = match self.take_whole(at) {
                    Some(whole) => Ok(whole),
                    None => {
                        self.ask_ahead(&mut ahead, &rest, &ranges[i + 1..]);
                        ahead.next().await
                    }
                };
                let before = at;
                let result = match body {
                    Ok(opened) => self.read(opened, &mut at, range.end, sink).await,
                    Err(error) => Err(error),
                };
                match result {
                    Ok(Flow::Go) => {}
                    Ok(Flow::NobodyListens) => return Ok(()),
                    Err(error) => {
                        self.whole = None;
                        if at - before >= PROGRESS_BYTES {
                            backoff.reset();
                        }
                        if !error.is_passing() || backoff.failures() >= self.client.limits().retries {
                            return Err(error);
                        }
                        backoff.pause(&error).await;
                    }
                }
            }
        }
        Ok(())
    }

    /// The rest of a file that the server sends as a whole, if it is not past `at`.
    fn take_whole(&mut self, at: u64) -> Option<Opened> {
        self.whole.take().filter(|opened| opened.position <= at)
    }

    /// Makes sure that `now` has been asked for, and what follows up to the bound.
    fn ask_ahead(&self, ahead: &mut Ahead, now: &Range<u64>, later: &[Range<u64>]) {
        if ahead.requests.front().is_some_and(|request| request.range != *now) {
            ahead.requests.clear();
        }
        let bound = if self.ignores_ranges { 1 } else { self.client.limits().parallel_requests };
        let known = ahead.requests.len();
        for range in
            std::iter::once(now).chain(later.iter().filter(|r| !r.is_empty())).take(bound).skip(known)
        {
            let request = open(self.client.clone(), self.url.clone(), range.clone(), self.size);
            ahead.requests.push_back(Request { range: range.clone(), task: tokio::spawn(request) });
        }
    }

    /// Reads an answer up to `end`, dropping what comes before `at`.
    async fn read(
        &mut self,
        mut opened: Opened,
        at: &mut u64,
        end: u64,
        sink: &mpsc::Sender<Piece>,
    ) -> Result<Flow, NetworkError> {
        self.ignores_ranges |= opened.whole;
        let skip = *at - opened.position;
        let limit = self.client.limits().skip_max;
        if skip > limit {
            return Err(NetworkError::RangeIgnored { url: self.url.to_string(), skip, limit });
        }
        while *at < end.min(opened.end) {
            if opened.left.is_empty() {
                opened.left = opened.body.next().await?.ok_or_else(|| opened.body.ended_early())?;
                self.downloaded.fetch_add(opened.left.len() as u64, Ordering::Relaxed);
                self.throttle.took(opened.left.len()).await;
            }
            drop(opened.take(*at - opened.position));
            let piece = opened.take(end.min(opened.end) - *at);
            if piece.is_empty() {
                continue;
            }
            let place = *at;
            *at += piece.len() as u64;
            if sink.send((place, piece)).await.is_err() {
                return Ok(Flow::NobodyListens);
            }
        }
        if opened.whole {
            self.whole = Some(opened);
        } else if !opened.left.is_empty() {
            tracing::warn!("{} sends more than the range it was asked for; the rest is dropped", self.url);
        } else if *at < end {
            return Err(opened.body.ended_early());
        }
        Ok(Flow::Go)
    }
}

enum Flow {
    Go,
    NobodyListens,
}

/// An answer whose headers were checked: `left` and then `body` hold `position..end` of the file.
#[derive(Debug)]
struct Opened {
    position: u64,
    end: u64,
    /// The server sends the file as a whole.
    whole: bool,
    left: Bytes,
    body: Body,
}

impl Opened {
    /// Up to `bytes` bytes of what is left.
    fn take(&mut self, bytes: u64) -> Bytes {
        let count = usize::try_from(bytes).unwrap_or(usize::MAX).min(self.left.len());
        self.position += count as u64;
        self.left.split_to(count)
    }
}

/// Requests that were sent, in the order in which their answers are read.
#[derive(Default)]
struct Ahead {
    requests: VecDeque<Request>,
}

struct Request {
    range: Range<u64>,
    task: JoinHandle<Result<Opened, NetworkError>>,
}

impl Drop for Request {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ahead {
    async fn next(&mut self) -> Result<Opened, NetworkError> {
        let Some(mut request) = self.requests.pop_front() else { return std::future::pending().await };
        match (&mut request.task).await {
            Ok(opened) => opened,
            Err(failure) => std::panic::resume_unwind(failure.into_panic()),
        }
    }
}

/// Asks for a range and checks that the answer is that range, its beginning, or the whole file.
async fn open(client: Client, url: Url, range: Range<u64>, size: u64) -> Result<Opened, NetworkError> {
    let mut request = client.http.get(url.clone());
    let text = format!("bytes={}-{}", range.start, range.end - 1);
    if let Ok(value) = HeaderValue::from_str(&text) {
        request = request.header(RANGE, value);
    }
    let body = client.send(&url, request).await?;
    let wrong = |found: String| NetworkError::WrongRange {
        url: url.to_string(),
        expected: format!("bytes {}-{}/{size}", range.start, range.end - 1),
        found,
    };
    let response = body.response();
    let length = response.content_length();
    if response.status() == StatusCode::OK {
        return match length {
            Some(found) if found != size => Err(wrong(format!("a file of {found} bytes"))),
            _ => Ok(Opened { position: 0, end: size, whole: true, left: Bytes::new(), body }),
        };
    }
    let header =
        response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or("none");
    let found = format!("Content-Range {}", header.chars().take(80).collect::<String>());
    let (start, end) = match content_range(header) {
        Some((start, end, total)) if total.is_none_or(|total| total == size) => (start, end),
        _ => return Err(wrong(found)),
    };
    let fits = start == range.start && end > start && end <= range.end;
    if !fits || response.status() != StatusCode::PARTIAL_CONTENT {
        return Err(wrong(found));
    }
    if length.is_some_and(|length| length != end - start) {
        return Err(wrong(format!("{found} with {} bytes", length.unwrap_or_default())));
    }
    Ok(Opened { position: start, end, whole: false, left: Bytes::new(), body })
}

/// `bytes first-last/total` as first, one past last, and the total unless it is `*`.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    let end = last.parse::<u64>().ok()?.checked_add(1)?;
    Some((first.parse().ok()?, end, total))
}

/// Keeps the average speed below a limit.
#[derive(Debug)]
struct Throttle {
    bytes_per_s: Option<u32>,
    free_at: Option<Instant>,
}

impl Throttle {
    const fn new(bytes_per_s: Option<u32>) -> Self {
        Self { bytes_per_s, free_at: None }
    }

    async fn took(&mut self, bytes: usize) {
        let Some(limit) = self.bytes_per_s else { return };
        let now = Instant::now();
        let cost = Duration::from_secs_f64(bytes as f64 / f64::from(limit));
        let free_at = self.free_at.map_or(now, |at| at.max(now)) + cost;
        self.free_at = Some(free_at);
        tokio::time::sleep_until(free_at).await;
    }
}
