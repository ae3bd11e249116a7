//! Step 4: a release folder is read, checked against its manifest, and its payloads are streamed to the server.

use super::{Client, OperatorError};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::digest::{Hasher, Sha256};
use protocol::id::Arch;
use protocol::manifest::{DOCUMENT_MAX, Manifest, PayloadFile};
use protocol::version::Version;
use serde::Deserialize;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt as _;

/// How much of a payload is in memory at once, in bytes.
const PIECE: usize = 256 << 10;

/// A release folder, as `image-tools release build` makes it.
#[derive(Debug)]
pub(super) struct ReleaseFolder {
    path: PathBuf,
    /// The manifest, byte for byte.
    pub(super) bytes: Vec<u8>,
    /// What it says.
    pub(super) manifest: Manifest,
}

#[derive(Deserialize)]
struct Identity {
    version: Version,
    arch: Arch,
}

impl ReleaseFolder {
    /// Reads the manifest of a folder.
    pub(super) fn open(path: &Path) -> Result<Self, OperatorError> {
        let file = path.join("manifest.json");
        let length = std::fs::metadata(&file).map_err(OperatorError::file(&file))?.len();
        let wrong = |problem: String| OperatorError::Release { path: file.clone(), problem };
        if length > DOCUMENT_MAX {
            return Err(wrong(format!("it is {length} bytes long: expected at most {DOCUMENT_MAX}")));
        }
        let bytes = std::fs::read(&file).map_err(OperatorError::file(&file))?;
        let identity: Identity = serde_json::from_slice(&bytes)
            .map_err(|error| wrong(format!("expected a manifest with version and arch: {error}")))?;
        let manifest = Manifest::parse(&bytes, &identity.version, &identity.arch)
            .map_err(|source| OperatorError::Manifest { path: file.clone(), source })?;
        Ok(Self { path: path.to_owned(), bytes, manifest })
    }

    fn payload_path(&self, payload: &PayloadFile) -> PathBuf {
        self.path.join(format!("{}.payload", payload.sha256))
    }

    /// Checks length and digests of every payload against the manifest.
    pub(super) fn check_payloads(&self) -> Result<(), OperatorError> {
        let total = self.manifest.payloads.iter().map(|payload| payload.size).sum();
        let bar = progress(total, "checking");
        for payload in &self.manifest.payloads {
            check_payload(&self.payload_path(payload), payload, &bar)?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Uploads what the server does not have; gives the number of bytes sent.
    pub(super) async fn upload(&self, client: &Client) -> Result<u64, OperatorError> {
        let mut missing = Vec::new();
        for payload in &self.manifest.payloads {
            if !client.has_payload(&payload.sha256, payload.size).await? {
                missing.push(payload);
            }
        }
        let total = missing.iter().map(|payload| payload.size).sum();
        let bar = progress(total, "uploading");
        for payload in missing {
            let path = self.payload_path(payload);
            let file = tokio::fs::File::open(&path).await.map_err(OperatorError::file(&path))?;
            client.put_payload(&payload.sha256, payload.size, body(file, bar.clone())).await?;
        }
        bar.finish_and_clear();
        Ok(total)
    }
}

/// A bar on stderr, where that is a terminal.
fn progress(total: u64, what: &'static str) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(total), target).with_message(what);
    match ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn check_payload(path: &Path, payload: &PayloadFile, bar: &ProgressBar) -> Result<(), OperatorError> {
    let wrong = |problem: String| OperatorError::Release { path: path.to_owned(), problem };
    let mut file = std::fs::File::open(path).map_err(OperatorError::file(path))?;
    let length = file.metadata().map_err(OperatorError::file(path))?.len();
    if length != payload.size {
        return Err(wrong(format!(
            "it is {length} bytes long: expected {}, as the manifest says",
            payload.size
        )));
    }
    let mut whole = Hasher::new();
    let mut head = Hasher::new();
    let mut head_left = usize::try_from(payload.head_size).unwrap_or(usize::MAX);
    let mut piece = vec![0; PIECE];
    loop {
        let n = file.read(&mut piece).map_err(OperatorError::file(path))?;
        if n == 0 {
            break;
        }
        whole.update(&piece[..n]);
        head.update(&piece[..n.min(head_left)]);
        head_left -= n.min(head_left);
        bar.inc(n as u64);
    }
    let compare = |what: &str, found: Sha256, expected: Sha256| {
        if found == expected {
            return Ok(());
        }
        Err(wrong(format!(
            "the sha256 of {what} is {found}: expected {expected}, as the manifest says; build it again"
        )))
    };
    compare("the file", whole.finish(), payload.sha256)?;
    compare("its head", head.finish(), payload.head_sha256)
}

/// A file as a body that is read while it is sent.
fn body(file: tokio::fs::File, bar: ProgressBar) -> reqwest::Body {
    reqwest::Body::wrap_stream(futures::stream::try_unfold((file, bar), async |(mut file, bar)| {
        let mut piece = bytes::BytesMut::with_capacity(PIECE);
        let n = file.read_buf(&mut piece).await?;
        bar.inc(n as u64);
        Ok::<_, std::io::Error>((n > 0).then(|| (piece.freeze(), (file, bar))))
    }))
}
