//! Step 3, metadata: the operator's folder that `image-tools keys` fills and `updatectl root push` uploads.
//!
//! ```text
//! keys/root.pem, root-2.pem, …    private root keys, 0600
//! keys/targets.pem                private targets key, 0600
//! keys/channels.pem               private channels key, only where the operator keeps it offline
//! keys/channels.json              signed with it; its presence says that it is kept offline
//! keys/root.json                  the newest root: what nodes get as [trust] root
//! keys/<n>.root.json              every root ever made, so that servers and old nodes can follow the chain
//! keys/targets.json               the newest targets metadata made here
//! ```

use std::io;
use std::path::{Path, PathBuf};

/// A file of the folder that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: expected a folder made by `image-tools keys init`", .path.display())]
pub struct FolderError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The name of a root of one version.
#[must_use]
pub fn root_name(version: u64) -> String {
    format!("{version}.root.json")
}

/// The file name of the n-th root key, from 1.
#[must_use]
pub fn root_key_name(number: usize) -> String {
    if number == 1 { "root.pem".to_owned() } else { format!("root-{number}.pem") }
}

fn read(path: PathBuf) -> Result<Vec<u8>, FolderError> {
    std::fs::read(&path).map_err(|source| FolderError { path, source })
}

/// Every root of the folder, oldest first; `root.json` alone where no numbered root is kept.
///
/// # Errors
/// [`FolderError`].
pub fn roots(folder: &Path) -> Result<Vec<Vec<u8>>, FolderError> {
    let failed = |source| FolderError { path: folder.to_owned(), source };
    let mut versions = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let version = name.to_str().and_then(|name| name.strip_suffix(".root.json")).map(str::parse::<u64>);
        if let Some(Ok(version)) = version {
            versions.push(version);
        }
    }
    versions.sort_unstable();
    if versions.is_empty() {
        return Ok(vec![read(folder.join("root.json"))?]);
    }
    versions.into_iter().map(|version| read(folder.join(root_name(version)))).collect()
}

/// The targets metadata of the folder.
///
/// # Errors
/// [`FolderError`].
pub fn targets(folder: &Path) -> Result<Vec<u8>, FolderError> {
    read(folder.join("targets.json"))
}
