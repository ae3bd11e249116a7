//! Step 5, trust: the folder of trusted metadata, written durably.
//!
//! The library treats its store as a cache and only warns when a write fails. Here the folder is also the memory that
//! makes old metadata recognisable, so a failed read or write is kept and fails the refresh.
//!
//! ```text
//! root.json, timestamp.json, snapshot.json, targets.json, channels.json   as last accepted
//! root_history/<n>.root.json                                              the chain from the anchor
//! seen/floor.json, seen/floor.backup.json                                 what must never be gone below
//! <name>.damaged-<n>                                                      set aside: did not verify any more
//! ```

use crate::TrustError;
use sigstore_tuf::MetadataStore;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// No file of the folder is longer, in bytes; the library's own limits are lower.
const FILE_MAX: u64 = 8 << 20;
/// How many damaged copies of one file are kept.
const DAMAGED_MAX: u32 = 9;

/// The folder.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    failure: Mutex<Option<TrustError>>,
}

impl Store {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), failure: Mutex::new(None) }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn failed(&self, name: &str, source: io::Error) -> TrustError {
        TrustError::Store { path: self.path(name), source }
    }

    /// Reads a file; `None` where there is none. One that is absurdly long comes back cut, and will not verify.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, TrustError> {
        let mut bytes = Vec::new();
        match std::fs::File::open(self.path(name)) {
            Ok(file) => file
                .take(FILE_MAX)
                .read_to_end(&mut bytes)
                .map(|_| Some(bytes))
                .map_err(|source| self.failed(name, source)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed(name, source)),
        }
    }

    /// Writes a file durably, unless it already holds these bytes.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrustError> {
        if self.read(name)?.as_deref() == Some(bytes) {
            return Ok(());
        }
        let path = self.path(name);
        let folder = path.parent().unwrap_or(&self.folder);
        make_folder(folder)
            .and_then(|()| disk::durable::write(&path, bytes))
            .map_err(|source| self.failed(name, source))
    }

    /// Moves a file that cannot be trusted out of the way, so that it can be looked at; gives its new name.
    pub(crate) fn set_aside(&self, name: &str) -> Result<PathBuf, TrustError> {
        let to = (1..DAMAGED_MAX)
            .map(|n| self.path(&format!("{name}.damaged-{n}")))
            .find(|path| !path.exists())
            .unwrap_or_else(|| self.path(&format!("{name}.damaged-{DAMAGED_MAX}")));
        let from = self.path(name);
        std::fs::rename(&from, &to)
            .and_then(|()| disk::durable::sync_dir(from.parent().unwrap_or(&self.folder)))
            .map_err(|source| self.failed(name, source))?;
        Ok(to)
    }

    /// The first failure since the last call, if any.
    pub(crate) fn take_failure(&self) -> Result<(), TrustError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    /// Keeps a failure, and gives the library one of its own to log.
    fn keep(&self, error: TrustError) -> sigstore_tuf::Error {
        let text = error.to_string();
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        sigstore_tuf::Error::transport(text)
    }
}

/// Makes a folder and its parents, and makes their names durable.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_folder(parent)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => disk::durable::sync_dir(parent),
    }
}

/// Whether the library offers this file only for caches that we do not keep: targets, and version-prefixed copies.
fn is_only_cache(name: &str) -> bool {
    let prefixed = name.split_once('.').is_some_and(|(version, role)| {
        role == "snapshot.json" && version.bytes().all(|b| b.is_ascii_digit())
    });
    prefixed || name.starts_with("targets/")
}

impl MetadataStore for Store {
    fn load(&self, name: &str) -> sigstore_tuf::Result<Option<Vec<u8>>> {
        if is_only_cache(name) {
            return Ok(None);
        }
        self.read(name).map_err(|error| self.keep(error))
    }

    fn store(&self, name: &str, bytes: &[u8]) -> sigstore_tuf::Result<()> {
        if is_only_cache(name) {
            return Ok(());
        }
        self.write(name, bytes).map_err(|error| self.keep(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_is_kept_until_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("timestamp.json")).unwrap();
        let store = Store::new(folder.path());
        assert!(store.store("timestamp.json", b"{}").is_err());
        assert!(store.store("snapshot.json", b"{}").is_ok());
        let error = store.take_failure().unwrap_err();
        assert!(matches!(error, TrustError::Store { ref path, .. } if path.ends_with("timestamp.json")));
        assert!(store.take_failure().is_ok());
    }

    #[test]
    fn damaged_files_are_kept_but_not_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        for n in 1..=12 {
            store.write("snapshot.json", format!("{n}").as_bytes()).unwrap();
            store.set_aside("snapshot.json").unwrap();
        }
        assert_eq!(store.read("snapshot.json").unwrap(), None);
        assert_eq!(store.read("snapshot.json.damaged-1").unwrap().unwrap(), b"1");
        assert_eq!(store.read("snapshot.json.damaged-9").unwrap().unwrap(), b"12");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 9);
    }

    #[test]
    fn what_is_only_cache_is_not_kept() {
        for name in ["7.snapshot.json", "targets/channels/alpha.json"] {
            assert!(is_only_cache(name), "{name}");
        }
        for name in
            ["snapshot.json", "root_history/2.root.json", "channels.json", "7.json", "x.snapshot.json"]
        {
            assert!(!is_only_cache(name), "{name}");
        }
    }
}
