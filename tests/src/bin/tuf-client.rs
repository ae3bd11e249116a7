//! Step 5, download: the engine's TUF client behind the command line of the public `tuf-conformance` suite.
//!
//! ```text
//! tuf-client --metadata-dir D init ROOT
//! tuf-client --metadata-dir D --metadata-url U refresh
//! tuf-client --metadata-dir D --metadata-url U --target-name T… --target-base-url B --target-dir X download
//! ```
//!
//! Everything that judges is `trust::Client`, as in the engine; this file only carries bytes. As the suite asks, the
//! anchor is `D/root.json`, which the client keeps at the newest trusted root.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use jiff::Timestamp;
use reqwest::{StatusCode, Url};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use trust::{Client, Repository, RepositoryError, oversize};

/// A TUF client for the conformance suite
#[derive(Debug, Parser)]
#[command(name = "tuf-client")]
struct Cli {
    /// Folder of trusted metadata
    #[arg(long, global = true)]
    metadata_dir: Option<PathBuf>,
    /// Where metadata is served
    #[arg(long, global = true)]
    metadata_url: Option<Url>,
    /// Target paths to download, in order
    #[arg(long, global = true)]
    target_name: Vec<String>,
    /// Where targets are served
    #[arg(long, global = true)]
    target_base_url: Option<Url>,
    /// Folder for downloaded targets
    #[arg(long, global = true)]
    target_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trust this root
    Init {
        /// The root metadata to trust
        root: PathBuf,
    },
    /// Bring the trusted metadata up to date
    Refresh,
    /// Refresh, then download targets
    Download,
}

type FetchFuture<'a> = Pin<Box<dyn Future<Output = Result<Option<Vec<u8>>, RepositoryError>> + Send + 'a>>;

/// A repository behind HTTP.
#[derive(Debug)]
struct Http {
    client: reqwest::Client,
    metadata: Url,
    targets: Option<Url>,
}

impl Http {
    fn new(metadata: &Url, targets: Option<&Url>) -> Result<Self> {
        // The last part of a base without a slash would be replaced by `join`.
        let folder = |url: &Url| {
            let mut url = url.clone();
            if !url.path().ends_with('/') {
                url.set_path(&format!("{}/", url.path()));
            }
            url
        };
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(30))
            .build()?;
        Ok(Self { client, metadata: folder(metadata), targets: targets.map(folder) })
    }

    async fn get(&self, base: &Url, name: &str, limit: u64) -> Result<Option<Vec<u8>>, RepositoryError> {
        let failed = |error: reqwest::Error| RepositoryError::transport_with_source("no answer", error);
        let url = base.join(&format!("./{name}")).map_err(|error| {
            RepositoryError::transport_with_source(format!("{name:?} is no address"), error)
        })?;
        let mut answer = self.client.get(url.clone()).send().await.map_err(failed)?;
        match answer.status() {
            status if status.is_success() => {}
            // Object stores answer 403 for what is not there.
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => return Ok(None),
            status => return Err(RepositoryError::transport(format!("{url}: expected 200, found {status}"))),
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(oversize(name, limit));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(bytes))
    }
}

impl Repository for Http {
    fn fetch_metadata<'a>(&'a self, name: &'a str, max_length: u64) -> FetchFuture<'a> {
        Box::pin(self.get(&self.metadata, name, max_length))
    }

    fn fetch_target<'a>(&'a self, path: &'a str, max_length: u64) -> FetchFuture<'a> {
        Box::pin(async move {
            let base =
                self.targets.as_ref().ok_or_else(|| RepositoryError::transport("no --target-base-url"))?;
            self.get(base, path, max_length).await
        })
    }
}

fn open(folder: &Path, anchor: &Path) -> Result<Client> {
    let bytes = std::fs::read(anchor)
        .with_context(|| format!("cannot read the trusted root {}; run init first", anchor.display()))?;
    Ok(Client::open(folder, bytes, &anchor.display().to_string())?)
}

/// One file name for any target path: everything but letters, digits and `_.-~` is percent-encoded.
fn file_name(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte);
    let name: String = path
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    // `.` and `..` name folders.
    if name.bytes().all(|byte| byte == b'.') { name.replace('.', "%2E") } else { name }
}

async fn download(client: &mut Client, names: &[String], folder: &Path) -> Result<()> {
    for name in names {
        let target = client.find(name).await?;
        let path = folder.join(file_name(name));
        // A file that is already there and right is not fetched again.
        if std::fs::read(&path).is_ok_and(|bytes| target.matches(&bytes)) {
            continue;
        }
        let bytes = client.fetch(&target).await?;
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&path, &*bytes))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

async fn run(cli: &Cli) -> Result<()> {
    let folder = cli.metadata_dir.as_deref().context("--metadata-dir is needed")?;
    let anchor = folder.join("root.json");
    if let Command::Init { root } = &cli.command {
        open(folder, root)?;
        std::fs::copy(root, &anchor).with_context(|| format!("cannot write {}", anchor.display()))?;
        return Ok(());
    }
    let url = cli.metadata_url.as_ref().context("--metadata-url is needed")?;
    let repository = Arc::new(Http::new(url, cli.target_base_url.as_ref())?);
    let mut client = open(folder, &anchor)?;
    client.refresh(repository, Timestamp::now()).await?;
    if matches!(cli.command, Command::Download) {
        let to = cli.target_dir.as_deref().context("--target-dir is needed")?;
        if cli.target_name.is_empty() {
            bail!("--target-name is needed");
        }
        download(&mut client, &cli.target_name, to).await?;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tuf-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}
