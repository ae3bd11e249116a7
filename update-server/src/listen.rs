//! Steps 4 and 5: connections: taken from the socket, through TLS where there is some, and how much patience each one is
//! granted. `axum::serve` has no patience to set: who sends half a request would hold its place for ever.
//!
//! Two clocks run for each connection. Without a request under way it is closed after [`Limits::idle`], whether it is kept
//! alive or its first request comes in letter by letter; with one it is cut off after [`Limits::stall`] without a byte of any
//! body in either direction. Bodies of requests have their own bounds, see `body`.

mod body;

pub use body::TooSlow;
pub(crate) use body::within;

use crate::rates::Gate;
use crate::tls::Tls;
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use body::{Counted, Read};
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long to wait before taking connections again where the system has no more files to give.
const BREATH: Duration = Duration::from_secs(1);

/// What clients are granted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For a connection without a request under way, up to twice as long; what is still to be sent then gets as long again.
    pub idle: Duration,
    /// For a request under way whose bodies do not move. A download that fills the system's buffers does not move until
    /// they are half empty again, so this is the slowest line that is served: some KiB a second.
    pub stall: Duration,
    /// From one piece of a request's body to the next.
    pub read: Duration,
    /// For the whole body of a request, except an upload's.
    pub body: Duration,
    /// Connections at once. More wait to be taken.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            stall: Duration::from_secs(300),
            read: Duration::from_secs(60),
            body: Duration::from_secs(60),
            connections: 10_000,
        }
    }
}

/// A socket, and how connections that come from it are served.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Tls>,
    limits: Limits,
    gate: Option<Arc<Gate>>,
}

impl From<TcpListener> for Listener {
    /// Plain HTTP, with the usual limits.
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, tls: None, limits: Limits::default(), gate: None }
    }
}

impl Listener {
    /// The same with TLS.
    #[must_use]
    pub fn with_tls(mut self, tls: Option<Tls>) -> Self {
        self.tls = tls;
        self
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same, where addresses may not ask as often as they like.
    #[must_use]
    pub fn with_gate(mut self, gate: Gate) -> Self {
        self.gate = Some(Arc::new(gate));
        self
    }

    /// Serves connections until `stopped` is true, and then those that are open until each has answered what it was asked.
    /// Dropped before that, it cuts them off.
    pub(crate) async fn serve(self, router: Router, stopped: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(self.limits.connections));
        let mut connections = JoinSet::new();
        let mut full = false;
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.tcp, &places) => accepted,
                Some(_) = connections.join_next() => continue,
                () = ended(stopped.clone()) => break,
            };
            let Some((stream, peer, place)) = accepted else { continue };
            if places.available_permits() == 0 && !full {
                tracing::warn!("{} connections are open: more have to wait", self.limits.connections);
            }
            full = places.available_permits() == 0;
            let connection = Connection {
                peer,
                tls: self.tls.clone(),
                limits: self.limits,
                gate: self.gate.clone(),
                router: router.clone(),
                stopped: stopped.clone(),
                _place: place,
            };
            connections.spawn(connection.serve(stream));
        }
        // Who asks for a connection now is refused, and may ask another server.
        drop(self.tcp);
        while connections.join_next().await.is_some() {}
    }
}

/// Resolves when the server was told to end.
pub(crate) async fn ended(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is an end as well.
    drop(stopped.wait_for(|stopped| *stopped).await);
}

/// The next connection, once there is a place for it.
async fn accept(
    tcp: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    // Nobody closes it.
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match tcp.accept().await {
        Ok((stream, peer)) => Some((stream, peer, place)),
        Err(error) => {
            use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
            // A client that has changed its mind is no trouble of ours.
            if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
                tracing::error!("a connection cannot be taken: {error}");
                tokio::time::sleep(BREATH).await;
            }
            None
        }
    }
}

struct Connection {
    peer: SocketAddr,
    tls: Option<Tls>,
    limits: Limits,
    gate: Option<Arc<Gate>>,
    router: Router,
    stopped: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        // An answer goes out when it is there. Where that cannot be set, it goes out a little later.
        drop(stream.set_nodelay(true));
        let Some(tls) = &self.tls else { return self.speak(stream).await };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(self.limits.handshake, tls.accept(stream)) => shaken,
            () = ended(self.stopped.clone()) => return,
        };
        match shaken {
            Ok(Ok(stream)) => self.speak(stream).await,
            Ok(Err(error)) => tracing::debug!(peer = %self.peer, "no TLS: {error}"),
            Err(_) => tracing::debug!(peer = %self.peer, "no TLS: the handshake took too long"),
        }
    }

    /// HTTP/1 or HTTP/2, whichever the client begins with.
    async fn speak(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let activity = Activity::new();
        let router = TowerToHyperService::new(self.router.clone());
        let (peer, limits, gate, counted) = (self.peer, self.limits, self.gate.clone(), activity.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let under_way = UnderWay::begin(&counted);
            let mut request = request.map(|body| Body::new(Read::new(body, counted.clone(), limits.read)));
            request.extensions_mut().insert(ConnectInfo(peer));
            request.extensions_mut().insert(limits);
            if let Some(gate) = &gate {
                request.extensions_mut().insert(Arc::clone(gate));
            }
            let answer = router.call(request);
            async move {
                Ok::<_, std::convert::Infallible>(answer.await?.map(|body| Counted::new(body, under_way)))
            }
        });
        let builder = Builder::new(TokioExecutor::new());
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut told = false;
        loop {
            tokio::select! {
                done = connection.as_mut() => {
                    if let Err(error) = done {
                        tracing::debug!(%peer, "the connection ended: {error}");
                    }
                    return;
                }
                () = ended(self.stopped.clone()), if !told => {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                late = activity.late(&limits) => {
                    if late == Late::Stalled || told {
                        tracing::debug!(%peer, ?late, "the connection is cut off");
                        return;
                    }
                    // What is still in its buffers gets as long again.
                    told = true;
                    connection.as_mut().graceful_shutdown();
                    activity.moved();
                }
            }
        }
    }
}

/// What goes on on a connection.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Mutex<Moves>>);

#[derive(Clone, Copy, Debug)]
struct Moves {
    /// Requests that are not answered to the last byte.
    under_way: usize,
    /// When a request or a piece of a body came or went.
    last: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Late {
    Idle,
    Stalled,
}

impl Activity {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Moves { under_way: 0, last: Instant::now() })))
    }

    fn change(&self, change: impl FnOnce(&mut usize)) {
        // Nothing panics while holding the lock.
        let mut moves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut moves.under_way);
        moves.last = Instant::now();
    }

    fn moved(&self) {
        self.change(|_| {});
    }

    /// Resolves when nothing has moved for too long.
    async fn late(&self, limits: &Limits) -> Late {
        loop {
            let Moves { under_way, last } = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (late, due) = match under_way {
                0 => (Late::Idle, last + limits.idle),
                _ => (Late::Stalled, last + limits.stall),
            };
            let now = Instant::now();
            if due <= now {
                return late;
            }
            // A request may begin or end in the meantime: then it may be due earlier.
            tokio::time::sleep_until(due.min(now + limits.idle.min(limits.stall))).await;
        }
    }
}

/// A request from its first line to the last byte of its answer.
#[derive(Debug)]
struct UnderWay(Activity);

impl UnderWay {
    fn begin(activity: &Activity) -> Self {
        activity.change(|under_way| *under_way += 1);
        Self(activity.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.change(|under_way| *under_way -= 1);
    }
}
