//! Step 5, download: payloads as objects of an S3 bucket, which several servers share.
//!
//! An upload is a multipart upload that is completed only if the digest is right, so an object under a payload's name
//! is whole and right. A download is read in pieces, each by a request of its own that ends soon: a node that takes its
//! time holds no connection to the bucket, and every request has a limit in time.

use super::{PayloadError, UploadError};
use axum::body::{Body, Bytes};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey as Key};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStoreExt as _, RetryConfig, WriteMultipart};
use protocol::digest::{Hasher, Sha256};
use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc, oneshot};

/// Length of a part of an upload, in bytes; S3 takes 5 MiB to 5 GiB.
const PART: usize = 8 << 20;
/// How many parts are on their way at once, while the next one is filled.
const PARTS_AT_ONCE: usize = 2;
/// The longest payload, in bytes: S3 takes 10,000 parts.
const LARGEST: u64 = 10_000 * PART as u64;
/// How much of an object is read for a download at once, in bytes.
const PIECE: u64 = 512 << 10;

/// How long one request of a download may take, with its body, in seconds.
const REQUEST_S: u32 = 20;
/// The same of an upload: S3 takes minutes to put the parts of a large object together.
const UPLOAD_REQUEST_S: u32 = 300;
/// How long it takes at most to connect, in seconds.
const CONNECT_S: u32 = 5;
/// How often a request is tried again that failed on the way or with 5xx.
const RETRIES: usize = 3;
/// How long after the first try another one is begun.
const RETRY_UNTIL: Duration = Duration::from_secs(30);
/// How long the bucket has to say whether it holds a payload, retries included: a change of the database waits for it.
const HOLDS: Duration = Duration::from_secs(5);
/// How long the bucket has to answer when it is looked at.
const CHECK: Duration = Duration::from_secs(5);
/// For how long what was seen then is believed.
const FRESH: Duration = Duration::from_secs(2);
/// The object that is asked for to look at the bucket; it is never made.
const PROBE: &str = ".probe";

/// Where a bucket is, and the keys to it: an address `s3://BUCKET/PREFIX`, and the variables `AWS_*` of the
/// environment. `Display` and `Debug` show the address only.
#[derive(Clone)]
pub struct BucketPlace {
    bucket: String,
    prefix: Path,
    variables: Vec<(Key, String)>,
}

impl BucketPlace {
    /// Reads an address. Of `variables`, those count whose names mean something for S3.
    ///
    /// # Errors
    /// Where it is no address of a bucket.
    pub fn new(
        address: &str,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, AddressError> {
        let refused = || AddressError {
            // Who puts keys into the address puts them before an @.
            found: if address.contains('@') {
                "an address with @".to_owned()
            } else {
                format!("{address:?}")
            },
        };
        let rest = address.strip_prefix("s3://").ok_or_else(refused)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(known) {
            return Err(refused());
        }
        let prefix = Path::parse(prefix).map_err(|_| refused())?;
        let variables = variables
            .filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty())
            .filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value)))
            .collect();
        Ok(Self { bucket: bucket.to_owned(), prefix, variables })
    }

    fn variable(&self, wanted: &[Key]) -> Option<&str> {
        let mut found = wanted.iter().filter_map(|key| self.variables.iter().find(|(name, _)| name == key));
        found.next().map(|(_, value)| value.as_str())
    }

    /// The server, as messages name it.
    fn endpoint(&self) -> String {
        match self.variable(&[Key::S3Endpoint, Key::Endpoint]) {
            Some(endpoint) => endpoint.rsplit('@').next().unwrap_or_default().to_owned(),
            None => {
                let region = self.variable(&[Key::Region, Key::DefaultRegion]).unwrap_or("us-east-1");
                format!("Amazon, region {region}")
            }
        }
    }

    /// Whether the environment has keys, or says where they are. If not, only the machine itself can have some.
    fn has_keys(&self) -> bool {
        let sources = [
            Key::AccessKeyId,
            Key::WebIdentityTokenFile,
            Key::ContainerCredentialsRelativeUri,
            Key::ContainerCredentialsFullUri,
        ];
        self.variable(&sources).is_some()
    }

    /// A client whose requests take at most so many seconds each.
    fn connect(&self, request_s: u32) -> object_store::Result<AmazonS3> {
        let client = [(ClientConfigKey::Timeout, request_s), (ClientConfigKey::ConnectTimeout, CONNECT_S)];
        let mut builder = AmazonS3Builder::new();
        for (key, seconds) in client {
            builder = builder.with_config(Key::Client(key), format!("{seconds}s"));
        }
        for (key, value) in &self.variables {
            builder = builder.with_config(*key, value);
        }
        let backoff = BackoffConfig { max_backoff: Duration::from_secs(2), ..BackoffConfig::default() };
        builder
            .with_bucket_name(&self.bucket)
            .with_retry(RetryConfig { backoff, max_retries: RETRIES, retry_timeout: RETRY_UNTIL })
            .build()
    }
}

impl fmt::Display for BucketPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.is_root() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl fmt::Debug for BucketPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address is none of a bucket.
#[derive(Debug, thiserror::Error)]
#[error(
    "the address of the payload store is not valid: expected s3://BUCKET/PREFIX, with keys in AWS_ACCESS_KEY_ID and \
     AWS_SECRET_ACCESS_KEY, found {found}"
)]
pub struct AddressError {
    found: String,
}

/// What is wrong with a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No answer.
    Unreachable,
    /// No keys, and the machine has none either.
    NoKeys,
    /// The keys are wrong, or may not do this.
    Denied,
    /// The server is there and the bucket is not.
    NoBucket,
    /// The settings make no client.
    Settings,
    /// Anything else that the server says.
    Failed,
}

impl fmt::Display for Problem {
    /// What a client may know, to be read after "the payload store".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "cannot be reached",
            Self::NoKeys => "has no keys",
            Self::Denied => "denies access",
            Self::NoBucket => "has no such bucket",
            Self::Settings => "is set up wrongly",
            Self::Failed => "failed",
        })
    }
}

/// A bucket cannot be used. `Display` is one line, without secrets.
#[derive(Clone, Debug)]
pub struct BucketError {
    place: BucketPlace,
    /// What is wrong.
    pub problem: Problem,
    /// What the server or the system said.
    detail: String,
}

impl Error for BucketError {}

impl fmt::Display for BucketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, detail, .. } = self;
        let (bucket, endpoint) = (&place.bucket, place.endpoint());
        match self.problem {
            Problem::Unreachable => write!(
                f,
                "the payload store {place} cannot be reached ({detail}): expected an S3 server at {endpoint}; start \
                 it, or correct AWS_ENDPOINT_URL or AWS_REGION"
            ),
            Problem::NoKeys => write!(
                f,
                "there are no keys for the payload store {place} ({detail}): expected AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY in the environment, or a role that the machine has"
            ),
            Problem::Denied => write!(
                f,
                "the payload store {place} denies access ({detail}): expected keys of {endpoint} with s3:ListBucket on \
                 the bucket and s3:GetObject, s3:PutObject and s3:AbortMultipartUpload on its objects; correct the \
                 permissions, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ),
            Problem::NoBucket => write!(
                f,
                "there is no bucket {bucket} at {endpoint} ({detail}): make it, or correct the payload store's \
                 address, AWS_ENDPOINT_URL or AWS_REGION"
            ),
            Problem::Settings => write!(
                f,
                "the settings of the payload store {place} make no sense ({detail}): correct the variables AWS_*"
            ),
            Problem::Failed => write!(
                f,
                "the payload store {place} failed ({detail}): expected S3 at {endpoint}; see what its own log says, \
                 and whether AWS_ENDPOINT_URL and AWS_REGION are those of the bucket"
            ),
        }
    }
}

/// What an S3 server says in XML, or the first cause of what went wrong on the way to it; one line.
fn detail(error: &object_store::Error) -> String {
    let all = error.to_string();
    let tag = |name: &str| {
        let (_, rest) = all.split_once(&format!("<{name}>"))?;
        rest.split_once('<').map(|(text, _)| text.to_owned())
    };
    let said = match (tag("Code"), tag("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ => {
            let mut cause: &dyn Error = error;
            while let Some(source) = cause.source() {
                cause = source;
            }
            cause.to_string()
        }
    };
    let line: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    line.trim_end_matches([' ', ':', '.']).to_owned()
}

/// Which of the problems an error is.
fn problem(error: &object_store::Error) -> Problem {
    use object_store::Error as Failure;
    let all = error.to_string();
    match error {
        // The address at which machines get their keys.
        _ if all.contains("//169.254.") => Problem::NoKeys,
        Failure::PermissionDenied { .. } | Failure::Unauthenticated { .. } => Problem::Denied,
        Failure::NotFound { .. } if all.contains("<Code>NoSuchBucket</Code>") => Problem::NoBucket,
        Failure::Generic { .. } if all.contains("Server returned") || all.contains("redirect") => {
            Problem::Failed
        }
        Failure::Generic { .. } => Problem::Unreachable,
        _ => Problem::Failed,
    }
}

/// A bucket with payloads, each an object `PREFIX/<sha256>`.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    inner: Arc<Inner>,
}

struct Inner {
    place: BucketPlace,
    store: AmazonS3,
    /// The same store, for uploads.
    uploads: AmazonS3,
    /// When the bucket was last looked at, and what was seen. Held while it is: one look is enough for all who ask.
    seen: Mutex<Option<(Instant, Result<(), BucketError>)>>,
}

impl fmt::Debug for Inner {
    /// Without the client, which holds the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.place, f)
    }
}

impl Bucket {
    /// Looks whether the bucket can be used.
    pub(super) async fn open(place: &BucketPlace) -> Result<Self, BucketError> {
        let wrong = |detail: String| BucketError { place: place.clone(), problem: Problem::Settings, detail };
        let plain = place.endpoint().starts_with("http://");
        let allowed = place.variable(&[Key::Client(ClientConfigKey::AllowHttp)]);
        if plain && !allowed.is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1") {
            let detail = "AWS_ENDPOINT_URL is http: expected https, or AWS_ALLOW_HTTP=true";
            return Err(wrong(detail.to_owned()));
        }
        if place.variable(&[Key::S3Endpoint, Key::Endpoint]).is_some_and(|endpoint| endpoint.contains('@')) {
            // Addresses are logged.
            let detail = "AWS_ENDPOINT_URL has an @: expected keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY only";
            return Err(wrong(detail.to_owned()));
        }
        let connect = |request_s| place.connect(request_s).map_err(|error| wrong(detail(&error)));
        let (store, uploads) = (connect(REQUEST_S)?, connect(UPLOAD_REQUEST_S)?);
        let inner = Inner { place: place.clone(), store, uploads, seen: Mutex::default() };
        let bucket = Self { inner: Arc::new(inner) };
        bucket.look().await?;
        Ok(bucket)
    }

    fn error(&self, error: &object_store::Error) -> BucketError {
        let place = self.inner.place.clone();
        let problem = match problem(error) {
            // Then it is the machine that was asked for keys.
            Problem::Unreachable if !place.has_keys() => Problem::NoKeys,
            problem => problem,
        };
        BucketError { place, problem, detail: detail(error) }
    }

    fn key(&self, digest: &Sha256) -> Path {
        self.inner.place.prefix.clone().join(digest.to_string())
    }

    /// Limits the time of a request with all its retries.
    async fn within<T>(
        &self,
        limit: Duration,
        request: impl Future<Output = Result<T, BucketError>>,
    ) -> Result<T, BucketError> {
        tokio::time::timeout(limit, request).await.unwrap_or_else(|_| {
            let place = self.inner.place.clone();
            let problem = if place.has_keys() { Problem::Unreachable } else { Problem::NoKeys };
            Err(BucketError { place, problem, detail: format!("no answer for {} s", limit.as_secs()) })
        })
    }

    /// Whether the bucket can be used: a look at it, or what was seen a moment ago.
    pub(super) async fn ready(&self) -> Result<(), BucketError> {
        let mut seen = self.inner.seen.lock().await;
        if let Some((_, result)) = seen.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return result.clone();
        }
        let result = self.look().await;
        if let Err(error) = &result {
            tracing::error!(error = crate::error::chain(error), "payloads cannot be served");
        }
        *seen = Some((Instant::now(), result.clone()));
        result
    }

    /// Asks for an object that is not there, and not for its head: the answer to that has no room for whether it is the
    /// bucket that is missing.
    async fn look(&self) -> Result<(), BucketError> {
        let probe = self.inner.place.prefix.clone().join(PROBE);
        let look = async {
            match self.inner.store.get(&probe).await {
                Ok(_) => Ok(()),
                Err(error @ object_store::Error::NotFound { .. }) => match self.error(&error) {
                    error if error.problem == Problem::NoBucket => Err(error),
                    _ => Ok(()),
                },
                Err(error) => Err(self.error(&error)),
            }
        };
        self.within(CHECK, look).await
    }

    /// The length of a payload, in bytes.
    pub(super) async fn len(&self, digest: &Sha256) -> Result<Option<u64>, BucketError> {
        match self.inner.store.head(&self.key(digest)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error(&error)),
        }
    }

    /// Whether the payload is there with `size` bytes.
    pub(super) async fn holds(&self, digest: &Sha256, size: u64) -> Result<bool, BucketError> {
        Ok(self.within(HOLDS, self.len(digest)).await? == Some(size))
    }

    /// A part of a payload as a body that is read while it is sent.
    pub(super) fn body(self, digest: Sha256, part: Range<u64>) -> Body {
        let pieces = futures::stream::try_unfold(part.start, move |at| {
            let (bucket, end) = (self.clone(), part.end.min(at + PIECE));
            async move {
                if at == end {
                    return Ok(None);
                }
                let piece = bucket.piece(&digest, at..end).await.inspect_err(|error| {
                    tracing::error!(error = crate::error::chain(error), "a download breaks off");
                })?;
                Ok::<_, PayloadError>(Some((piece, end)))
            }
        });
        Body::from_stream(pieces)
    }

    async fn piece(&self, digest: &Sha256, range: Range<u64>) -> Result<Bytes, PayloadError> {
        let expected = range.end - range.start;
        let piece = self.inner.store.get_range(&self.key(digest), range).await;
        let piece = piece.map_err(|error| self.error(&error))?;
        if piece.len() as u64 == expected {
            return Ok(piece);
        }
        let detail = format!("{} bytes of an object came, expected {expected}", piece.len());
        Err(BucketError { place: self.inner.place.clone(), problem: Problem::Failed, detail }.into())
    }

    /// Stores what comes through the queue. `finished` is resolved before the queue ends if the body came whole.
    pub(super) async fn write(
        self,
        expected: Sha256,
        queue: mpsc::Receiver<Bytes>,
        finished: oneshot::Receiver<()>,
    ) -> Result<u64, UploadError> {
        let upload = self.inner.uploads.put_multipart(&self.key(&expected)).await;
        let mut parts = WriteMultipart::new_with_chunk_size(upload.map_err(|e| self.error(&e))?, PART);
        match self.fill(&mut parts, expected, queue, finished).await {
            // A failure here takes the parts away as well.
            Ok(received) => match parts.finish().await {
                Ok(_) => Ok(received),
                // S3 may have done it, and its answer is lost. What is under the name is whole, whoever sent it.
                Err(error) => match self.holds(&expected, received).await {
                    Ok(true) => Ok(received),
                    _ => Err(self.error(&error).into()),
                },
            },
            Err(error) => {
                if let Err(failed) = parts.abort().await {
                    let failed = self.error(&failed);
                    tracing::warn!(
                        error = crate::error::chain(&failed),
                        "parts of an upload stay in the bucket until its lifecycle rule removes them"
                    );
                }
                Err(error)
            }
        }
    }

    /// Sends the parts, and hashes them on the way.
    async fn fill(
        &self,
        parts: &mut WriteMultipart,
        expected: Sha256,
        mut queue: mpsc::Receiver<Bytes>,
        mut finished: oneshot::Receiver<()>,
    ) -> Result<u64, UploadError> {
        let mut hasher = Hasher::new();
        let mut received = 0;
        while let Some(piece) = queue.recv().await {
            received += piece.len() as u64;
            if received > LARGEST {
                return Err(UploadError::TooLarge { limit: LARGEST });
            }
            hasher.update(&piece);
            parts.wait_for_capacity(PARTS_AT_ONCE).await.map_err(|error| self.error(&error))?;
            // Copied: pieces of a slow client may be small parts of large buffers.
            parts.write(&piece);
        }
        if finished.try_recv().is_err() {
            return Err(UploadError::BrokenOff { expected, received });
        }
        let found = hasher.finish();
        if found != expected {
            return Err(UploadError::Mismatch { expected, found });
        }
        Ok(received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(address: &str) -> Result<BucketPlace, AddressError> {
        let variables = [("AWS_SECRET_ACCESS_KEY", "hidden"), ("AWS_REGION", ""), ("HOME", "/root")];
        BucketPlace::new(address, variables.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())))
    }

    #[test]
    #[allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]
    fn addresses() {
        for (address, shown) in [
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://my.bucket-1/a/b c/", "s3://my.bucket-1/a/b c"),
        ] {
            let place = place(address).unwrap();
            assert_eq!(place.to_string(), shown);
            assert!(!format!("{place:?}").contains("hidden"));
            assert_eq!(place.endpoint(), "Amazon, region us-east-1", "an empty variable is none");
        }
        for address in ["", "bucket", "s3:/bucket", "s3://", "s3://UP", "https://bucket/a", "s3://a/.."] {
            let line = place(address).unwrap_err().to_string();
            assert!(line.ends_with(&format!("found {address:?}")), "{line}");
        }
        let line = place("s3://key:hidden@bucket/a").unwrap_err().to_string();
        assert!(!line.contains("hidden"), "{line}");
    }
}
