//! A server in this process whose connections a test sets up itself.

use jiff::Timestamp;
use std::path::Path;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use update_server::data_dir::{self, DataDir};
use update_server::listen::{Limits, Listener};
use update_server::server::{App, system_clock};
use update_server::tls::Tls;

/// A server with its own limits, and TLS if it is given some.
pub struct Listening {
    /// Its folder.
    pub dir: TempDir,
    /// Its parts.
    pub app: App,
    /// Its host and port.
    pub address: String,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    _data: DataDir,
}

impl Listening {
    /// Starts it.
    pub async fn start(tls: Option<Tls>, limits: Limits) -> Self {
        Self::start_as(|tcp| Listener::from(tcp).with_tls(tls).with_limits(limits)).await
    }

    /// Starts it on a listener of the test's own making.
    pub async fn start_as(listener: impl FnOnce(TcpListener) -> Listener) -> Self {
        let dir = TempDir::new().unwrap();
        let srv = dir.path().join("srv");
        data_dir::init(&srv, None, Timestamp::now()).await.unwrap();
        let data = DataDir::open(&srv, None, None).await.unwrap();
        let app = App::new(&data, system_clock()).await.unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap().to_string();
        let listener = listener(tcp);
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = app.clone();
        let task = tokio::spawn(async move { serving.serve(listener, async { drop(stopped.await) }).await });
        Self { dir, app, address, stop, task, _data: data }
    }

    /// The token that `init` made.
    pub fn token(&self) -> String {
        token(&self.dir.path().join("srv"))
    }

    /// Ends it in good order.
    pub async fn end(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }
}

/// The token that `init` made in a folder.
pub fn token(srv: &Path) -> String {
    std::fs::read_to_string(srv.join("admin-token")).unwrap().trim().to_owned()
}
