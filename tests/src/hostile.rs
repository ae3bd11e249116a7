//! Step 5 with everything that can go wrong on the way: a proxy between node and server that does to each answer
//! what a rule says. One request per connection, so that nothing hides in a connection that is kept.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

/// A request, as the rule sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `POST`.
    pub method: String,
    /// With the leading slash.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// How many requests for the same path came before it.
    pub earlier: usize,
}

impl Request {
    /// Whether it asks for payload bytes.
    #[must_use]
    pub fn is_payload(&self) -> bool {
        self.path.starts_with("/v1/payloads/")
    }

    /// Whether it asks for signed metadata.
    #[must_use]
    pub fn is_metadata(&self) -> bool {
        self.path.starts_with("/v1/metadata/")
    }
}

/// What happens to an answer.
#[derive(Clone, Debug)]
pub enum Action {
    /// Nothing.
    Forward,
    /// The server never sees the `Range` header, and sends everything.
    IgnoreRange,
    /// The server never sees the `Range` header, and the answer claims to be the range that was asked for.
    LieAboutRange,
    /// The connection ends after so many bytes of the body.
    CutAfter(u64),
    /// After so many bytes of the body nothing more comes, for as long as the proxy lives.
    StallAfter(u64),
    /// Bytes of bodies are taken from what is left, over all answers with the same budget; where none are left,
    /// nothing more comes, for as long as the proxy lives.
    Budget(Arc<AtomicU64>),
    /// The byte at this place of the body is another one.
    Flip(u64),
    /// More comes after the body, and its length is declared.
    Append(Vec<u8>),
    /// The server is not asked; this is the answer.
    Answer {
        /// The status and its reason: `503 Service Unavailable`.
        status: &'static str,
        /// Header lines.
        headers: Vec<String>,
        /// The body.
        body: Vec<u8>,
    },
    /// The connection ends without an answer.
    Drop,
}

impl Action {
    /// An answer without a body.
    #[must_use]
    pub fn status(status: &'static str) -> Self {
        Self::Answer { status, headers: Vec::new(), body: Vec::new() }
    }
}

/// What passed through.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What was asked.
    pub request: Request,
    /// The status code that the node got; 0 where it got none.
    pub status: u16,
    /// The bytes of the body that the node got.
    pub body_bytes: u64,
}

type Rule = Arc<dyn Fn(&Request) -> Action + Send + Sync>;

struct Shared {
    upstream: Mutex<SocketAddr>,
    rule: Mutex<Rule>,
    seen: Mutex<Vec<Seen>>,
    counts: Mutex<std::collections::HashMap<String, usize>>,
    stalled: mpsc::Sender<()>,
    held: Mutex<Vec<TcpStream>>,
    ends: AtomicBool,
}

/// The proxy.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stalls: mpsc::Receiver<()>,
    accepting: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Stands in front of the server at `upstream` (`http://127.0.0.1:1234`) and forwards everything.
    ///
    /// # Errors
    /// Where the address is none, or no port is free.
    pub fn start(upstream: &str) -> Result<Self> {
        let upstream = upstream.trim_start_matches("http://").parse().context("not an address")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (stalled, stalls) = mpsc::channel();
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            rule: Mutex::new(Arc::new(|_| Action::Forward)),
            seen: Mutex::default(),
            counts: Mutex::default(),
            stalled,
            held: Mutex::default(),
            ends: AtomicBool::new(false),
        });
        let accepting = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self { address, shared, stalls, accepting: Some(accepting) })
    }

    /// Its own address, for the node's configuration.
    #[must_use]
    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What to do from now on.
    pub fn set_rule(&self, rule: impl Fn(&Request) -> Action + Send + Sync + 'static) {
        *lock(&self.shared.rule) = Arc::new(rule);
        lock(&self.shared.counts).clear();
    }

    /// Forwards everything from now on.
    pub fn behave(&self) {
        self.set_rule(|_| Action::Forward);
    }

    /// What passed since the last call.
    #[must_use]
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *lock(&self.shared.seen))
    }

    /// Bytes of payload that reached the node since the last [`Self::take_seen`].
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        lock(&self.shared.seen)
            .iter()
            .filter(|seen| seen.request.is_payload())
            .map(|seen| seen.body_bytes)
            .sum()
    }

    /// Waits until an answer has stalled ([`Action::StallAfter`]).
    ///
    /// # Errors
    /// Where none does within two minutes.
    pub fn wait_for_stall(&self) -> Result<()> {
        self.stalls.recv_timeout(std::time::Duration::from_secs(120)).context("nothing stalled")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        for held in lock(&self.shared.held).drain(..) {
            let _ = held.shutdown(Shutdown::Both);
        }
        // Wakes the accepting thread, which then sees the flag.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.ends.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A node that hangs up in the middle is a normal thing here.
            let _ = serve(&client, &shared);
            let _ = client.shutdown(Shutdown::Both);
        });
    }
}

/// A request or answer up to its body.
struct Head {
    first: String,
    headers: Vec<String>,
}

impl Head {
    fn read(reader: &mut impl BufRead) -> Result<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                bail!("the connection ended inside a head");
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            lines.push(line.to_owned());
        }
        if lines.is_empty() {
            bail!("an empty head");
        }
        Ok(Self { first: lines.remove(0), headers: lines })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn remove(&mut self, name: &str) {
        self.headers
            .retain(|line| line.split_once(':').is_none_or(|(key, _)| !key.eq_ignore_ascii_case(name)));
    }

    fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push(format!("{name}: {value}"));
    }

    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let mut text = format!("{}\r\n", self.first);
        for line in &self.headers {
            text.push_str(line);
            text.push_str("\r\n");
        }
        text.push_str("\r\n");
        out.write_all(text.as_bytes())
    }
}

fn serve(client: &TcpStream, shared: &Shared) -> Result<()> {
    let mut reader = BufReader::new(client);
    let mut head = Head::read(&mut reader)?;
    let mut words = head.first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().to_owned();
    let length: u64 = head.get("content-length").unwrap_or("0").parse()?;
    let mut body = Vec::new();
    reader.by_ref().take(length).read_to_end(&mut body)?;
    let earlier = {
        let mut counts = lock(&shared.counts);
        let count = counts.entry(path.clone()).or_default();
        *count += 1;
        *count - 1
    };
    let request = Request { method, path, range: head.get("range").map(str::to_owned), earlier };
    let rule = Arc::clone(&lock(&shared.rule));
    let action = rule(&request);
    let place = {
        let mut seen = lock(&shared.seen);
        seen.push(Seen { request: request.clone(), status: 0, body_bytes: 0 });
        seen.len() - 1
    };
    let note = |status: u16, bytes: u64| {
        // The list may have been taken in between; then nobody asks for this any more.
        if let Some(seen) = lock(&shared.seen).get_mut(place) {
            seen.status = status;
            seen.body_bytes += bytes;
        }
    };
    match &action {
        Action::Drop => return Ok(()),
        Action::Answer { status, headers, body } => {
            let mut answer = Head { first: format!("HTTP/1.1 {status}"), headers: headers.clone() };
            answer.set("content-length", &body.len().to_string());
            answer.set("connection", "close");
            note(status[..3].parse()?, body.len() as u64);
            let mut client = client;
            answer.write(&mut client)?;
            return Ok(client.write_all(body)?);
        }
        Action::IgnoreRange | Action::LieAboutRange => head.remove("range"),
        _ => {}
    }
    head.set("connection", "close");
    let upstream = *lock(&shared.upstream);
    let mut server = TcpStream::connect(upstream)?;
    head.write(&mut server)?;
    server.write_all(&body)?;
    let mut server = BufReader::new(server);
    let mut answer = Head::read(&mut server)?;
    answer.set("connection", "close");
    let length: Option<u64> = answer.get("content-length").and_then(|value| value.parse().ok());
    change_head(&mut answer, &action, &request, length);
    let status = answer.first.split(' ').nth(1).unwrap_or_default().parse().unwrap_or(0);
    note(status, 0);
    let mut out = client;
    answer.write(&mut out)?;
    if request.method == "HEAD" {
        return Ok(());
    }
    pass_body(&mut server, client, &action, shared, &mut |bytes| note(status, bytes))
}

fn change_head(answer: &mut Head, action: &Action, request: &Request, length: Option<u64>) {
    match (action, length) {
        (Action::Append(more), Some(length)) => {
            answer.set("content-length", &(length + more.len() as u64).to_string());
        }
        (Action::LieAboutRange, Some(length)) => {
            "HTTP/1.1 206 Partial Content".clone_into(&mut answer.first);
            let range = request.range.as_deref().unwrap_or("bytes=0-").trim_start_matches("bytes=");
            answer.set("content-range", &format!("bytes {range}/{length}"));
        }
        _ => {}
    }
}

/// Takes up to `wish` from a budget.
fn take(left: &AtomicU64, wish: u64) -> u64 {
    let update = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left - left.min(wish)));
    update.unwrap_or_default().min(wish)
}

/// Passes an answer's body on, with what the action does to it.
fn pass_body(
    server: &mut impl Read,
    client: &TcpStream,
    action: &Action,
    shared: &Shared,
    passed: &mut dyn FnMut(u64),
) -> Result<()> {
    let limit = match action {
        Action::CutAfter(limit) | Action::StallAfter(limit) => *limit,
        _ => u64::MAX,
    };
    let mut out = client;
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    let mut stalls = matches!(action, Action::StallAfter(0));
    while at < limit {
        let mut room = (limit - at).min(buffer.len() as u64);
        if let Action::Budget(left) = action {
            room = take(left, room);
            if room == 0 {
                stalls = true;
                break;
            }
        }
        let room = usize::try_from(room)?;
        let length = server.read(&mut buffer[..room])?;
        if let Action::Budget(left) = action {
            // Before the bytes go out: whoever gets them may ask again at once.
            left.fetch_add((room - length) as u64, Ordering::SeqCst);
        }
        if length == 0 {
            break;
        }
        let part = &mut buffer[..length];
        if let Action::Flip(place) = action
            && (at..at + length as u64).contains(place)
        {
            part[usize::try_from(place - at)?] ^= 0x40;
        }
        out.write_all(part)?;
        passed(length as u64);
        at += length as u64;
        stalls = matches!(action, Action::StallAfter(_)) && at == limit;
    }
    if let Action::Append(more) = action {
        out.write_all(more)?;
        passed(more.len() as u64);
    }
    if stalls {
        let held = client.try_clone()?;
        lock(&shared.held).push(client.try_clone()?);
        // Whoever waited may be gone.
        let _ = shared.stalled.send(());
        // Held open until the node hangs up or the proxy ends.
        let mut rest = Vec::new();
        let mut held = held;
        held.read_to_end(&mut rest)?;
    }
    Ok(())
}

/// Fetches a file from a server, as `curl` would.
///
/// # Errors
/// Where there is no answer, or another one than 200.
pub fn fetch(server: &str, path: &str) -> Result<Vec<u8>> {
    let address: SocketAddr = server.trim_start_matches("http://").parse().context("not an address")?;
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let head = Head::read(&mut reader)?;
    if head.first.split(' ').nth(1) != Some("200") {
        bail!("{path} was answered with {:?}", head.first);
    }
    let length: u64 = head.get("content-length").context("an answer without a length")?.parse()?;
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    if body.len() as u64 != length {
        bail!("{path} ended after {} of {length} bytes", body.len());
    }
    Ok(body)
}
