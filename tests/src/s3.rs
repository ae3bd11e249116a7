//! Step 5, download: an S3 server of its own for a test, with one bucket that is empty at first.
//!
//! It is `s3s-fs`, which knows nothing of our code, on threads of this process: signatures are checked, ranges, heads
//! and multipart uploads are answered, objects are files of a temporary folder. What it lacks of Amazon's is added: a
//! key that may do nothing, and an answer that tells a missing bucket from a missing object.

use anyhow::{Context as _, Result};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::dto::CompleteMultipartUploadInput;
use s3s::path::S3Path;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Request, S3Result, s3_error};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The bucket.
pub const BUCKET: &str = "payloads";
/// Where in it a server keeps its payloads.
pub const PREFIX: &str = "fleet/a";
/// The key's name.
pub const KEY: &str = "AKIAFLIPSIDE";
/// The key: no log and no error may show it.
pub const SECRET: &str = "Pa55-w0rd/secret+access=key";

/// How long requests that run may go on at the end.
const GRACE: Duration = Duration::from_secs(5);

/// A running S3 server; it ends with its owner.
#[derive(Debug)]
pub struct S3 {
    folder: TempDir,
    port: u16,
    runtime: Option<Runtime>,
    denies: Arc<AtomicBool>,
    completes_nothing: Arc<AtomicBool>,
}

/// Who may do what.
struct Access {
    folder: PathBuf,
    denies: Arc<AtomicBool>,
    completes_nothing: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        if cx.credentials().is_none() || self.denies.load(Ordering::SeqCst) {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        match cx.s3_path() {
            S3Path::Bucket { bucket } | S3Path::Object { bucket, .. }
                if !self.folder.join(&**bucket).is_dir() =>
            {
                Err(s3_error!(NoSuchBucket, "The specified bucket does not exist"))
            }
            _ => Ok(()),
        }
    }

    async fn complete_multipart_upload(
        &self,
        _: &mut S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<()> {
        if self.completes_nothing.load(Ordering::SeqCst) {
            return Err(s3_error!(NoSuchUpload, "The specified upload does not exist"));
        }
        Ok(())
    }
}

impl S3 {
    /// Starts a server on a free port of loopback.
    ///
    /// # Errors
    /// Where there is no folder or no port.
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("flipside-s3-").tempdir()?;
        std::fs::create_dir(folder.path().join(BUCKET))?;
        let mut server = Self {
            folder,
            port: 0,
            runtime: None,
            denies: Arc::default(),
            completes_nothing: Arc::default(),
        };
        server.restart()?;
        Ok(server)
    }

    /// Starts it again after [`Self::stop`], on the same port and the same objects.
    ///
    /// # Errors
    /// Where somebody else has taken the port.
    pub fn restart(&mut self) -> Result<()> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", self.port))?;
        self.port = listener.local_addr()?.port();
        listener.set_nonblocking(true)?;
        let service = self.service()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.spawn(async move {
            // Within the runtime, as tokio asks.
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let http = auto::Builder::new(TokioExecutor::new());
                    // A client that goes away is its own business.
                    let _ = http.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        self.runtime = Some(runtime);
        Ok(())
    }

    fn service(&self) -> Result<S3Service> {
        let objects = s3s_fs::FileSystem::new(self.folder.path());
        let objects = objects.map_err(|error| anyhow::anyhow!("no S3 server: {error:?}"))?;
        let mut builder = S3ServiceBuilder::new(objects);
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        builder.set_access(Access {
            folder: self.folder.path().to_owned(),
            denies: Arc::clone(&self.denies),
            completes_nothing: Arc::clone(&self.completes_nothing),
        });
        Ok(builder.build())
    }

    /// Ends it: nobody listens on its port any more, and its connections are closed.
    ///
    /// # Errors
    /// Where its threads hang.
    pub fn stop(&mut self) -> Result<()> {
        let Some(runtime) = self.runtime.take() else { return Ok(()) };
        // On another thread, because this one may belong to a runtime, which must not wait.
        let ended = std::thread::spawn(move || runtime.shutdown_timeout(GRACE));
        ended.join().ok().context("the S3 server's threads do not end")
    }

    /// From now on the key may do nothing, or everything again.
    pub fn deny(&self, denies: bool) {
        self.denies.store(denies, Ordering::SeqCst);
    }

    /// From now on no upload comes to its end, as where S3 says of a second request that the first one has done it.
    pub fn complete_nothing(&self) {
        self.completes_nothing.store(true, Ordering::SeqCst);
    }

    /// The server's address.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The payload store's address.
    #[must_use]
    pub fn address(&self) -> String {
        format!("s3://{BUCKET}/{PREFIX}")
    }

    /// The variables that an update server needs to reach it.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        let endpoint = self.endpoint();
        let variables = [
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", &endpoint),
            ("AWS_ALLOW_HTTP", "true"),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// The file that an object is in.
    #[must_use]
    pub fn object(&self, name: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join(PREFIX).join(name)
    }

    /// How many objects there are.
    #[must_use]
    pub fn objects(&self) -> usize {
        entries(&self.object("")).len()
    }

    /// How many files are left of uploads that are neither completed nor aborted.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        entries(self.folder.path()).iter().filter(|name| name.starts_with(".upload")).count()
    }
}

/// The names in a folder; none where it is not there.
fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

impl Drop for S3 {
    fn drop(&mut self) {
        // Its threads have nothing to finish.
        let _ = self.stop();
    }
}
