//! A server on loopback that answers exactly what a test says, byte for byte.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The bytes of the file that the servers hold.
pub(crate) fn content(size: u64) -> Vec<u8> {
    (0..size).map(|i| ((i.wrapping_mul(2_654_435_761)) >> 13).to_le_bytes()[0]).collect()
}

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<Range<u64>>,
    pub(crate) authorization: Option<String>,
    pub(crate) enrolment: Option<String>,
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    head: String,
    body: Vec<u8>,
    chunked: bool,
    /// Send so much of the body, then end the connection.
    cut: Option<usize>,
    /// Send so much of the body, then nothing more.
    hang: Option<usize>,
}

impl Answer {
    fn new(head: String, body: Vec<u8>) -> Self {
        Self { head, body, chunked: false, cut: None, hang: None }
    }

    pub(crate) fn status(status: u16, headers: &[(&str, &str)]) -> Self {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        Self::new(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{headers}"), Vec::new())
    }

    pub(crate) fn json(status: u16, text: &str) -> Self {
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", text.len());
        Self::new(head, text.as_bytes().to_vec())
    }

    /// An honest answer to a range request.
    pub(crate) fn range(request: &Request, size: u64) -> Self {
        let range = request.range.clone().unwrap();
        let head = format!(
            "HTTP/1.1 206 X\r\nContent-Length: {}\r\nContent-Range: bytes {}-{}/{size}\r\n",
            range.end - range.start,
            range.start,
            range.end - 1
        );
        Self::new(head, part(range, size))
    }

    /// The whole file.
    pub(crate) fn whole(size: u64) -> Self {
        Self::new(format!("HTTP/1.1 200 X\r\nContent-Length: {size}\r\n"), content(size))
    }

    /// A body of unknown length; `says` is the range of its header.
    pub(crate) fn chunked(status: u16, says: Option<Range<u64>>, size: u64, sends: Range<u64>) -> Self {
        let says = says.map(|r| format!("Content-Range: bytes {}-{}/{size}\r\n", r.start, r.end - 1));
        let head =
            format!("HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n{}", says.unwrap_or_default());
        Self { chunked: true, ..Self::new(head, part(sends, size)) }
    }

    pub(crate) fn silence() -> Self {
        Self { hang: Some(0), ..Self::new(String::new(), Vec::new()) }
    }

    pub(crate) fn cut_after(self, bytes: usize) -> Self {
        Self { cut: Some(bytes), ..self }
    }

    pub(crate) fn hang_after(self, bytes: usize) -> Self {
        Self { hang: Some(bytes), ..self }
    }

    /// Sends it; whether the connection may go on.
    async fn send(&self, stream: &mut TcpStream) -> std::io::Result<bool> {
        if !self.head.is_empty() {
            stream.write_all(self.head.as_bytes()).await?;
            stream.write_all(b"\r\n").await?;
        }
        let end = self.cut.or(self.hang).unwrap_or(self.body.len()).min(self.body.len());
        if self.chunked {
            for piece in self.body[..end].chunks(7000) {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
                stream.write_all(piece).await?;
                stream.write_all(b"\r\n").await?;
            }
            stream.write_all(b"0\r\n\r\n").await?;
        } else {
            stream.write_all(&self.body[..end]).await?;
        }
        stream.flush().await?;
        if self.hang.is_some() {
            // Until the client ends the connection.
            let _ = stream.read(&mut [0]).await;
        }
        Ok(self.cut.is_none() && self.hang.is_none())
    }
}

fn part(range: Range<u64>, size: u64) -> Vec<u8> {
    let whole = content(size.max(range.end));
    whole[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec()
}

type Handler = dyn Fn(usize, &Request) -> Answer + Send + Sync;

/// A running server; it ends when it is dropped.
pub(crate) struct Server {
    address: std::net::SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    finished: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Starts a server; `handler` is given the number of the request, from 0, and the request.
    pub(crate) async fn start(handler: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let finished = Arc::new(AtomicUsize::new(0));
        let handler: Arc<Handler> = Arc::new(handler);
        let shared = (Arc::clone(&requests), Arc::clone(&finished));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&handler), shared.clone()));
            }
        });
        Self { address, requests, finished, task }
    }

    pub(crate) fn url(&self) -> reqwest::Url {
        format!("http://{}/", self.address).parse().unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// How many answers were sent to their end.
    pub(crate) fn finished_answers(&self) -> usize {
        self.finished.load(Ordering::Relaxed)
    }
}

async fn serve(
    mut stream: TcpStream,
    handler: Arc<Handler>,
    (requests, finished): (Arc<Mutex<Vec<Request>>>, Arc<AtomicUsize>),
) {
    while let Some(request) = read(&mut stream).await {
        let number = {
            let mut requests = requests.lock().unwrap();
            requests.push(request.clone());
            requests.len() - 1
        };
        match handler(number, &request).send(&mut stream).await {
            Ok(goes_on) => {
                finished.fetch_add(1, Ordering::Relaxed);
                if !goes_on {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let header = |name: &str| {
        lines.iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).await.ok()?;
    let range = header("range").map(|text| {
        let (first, last) = text.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        first.parse().unwrap()..last.parse::<u64>().unwrap() + 1
    });
    let mut first = lines.first()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let (authorization, enrolment) = (header("authorization"), header("flipside-enrolment"));
    Some(Request { method, path, range, authorization, enrolment })
}
