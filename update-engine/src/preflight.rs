//! Step 5, download: what can be known before the first byte beside the disk (see [`crate::slots`]): whether the
//! state folder has room for what an update writes there.

use machine::{Failure, FailureKind};
use protocol::manifest::Manifest;
use std::path::Path;

/// Room for the record, the metadata and the status, in bytes.
const SPARE: u64 = 8 << 20;

/// Whether the file system of the state folder has room for the payload's head and the engine's own files.
///
/// # Errors
/// A [`Failure`] of the node.
pub fn state_space(state_dir: &Path, manifest: &Manifest) -> Result<(), Failure> {
    let head = manifest.full_payload().map_or(0, |payload| payload.head_size);
    let needed = SPARE + head;
    let stat = rustix::fs::statvfs(state_dir).map_err(|error| {
        Failure::new(FailureKind::Node, format!("cannot examine {}: {error}", state_dir.display()))
    })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < needed {
        let detail = format!(
            "the state folder {} has {free} bytes free: expected at least {needed}; make room there",
            state_dir.display()
        );
        return Err(Failure::new(FailureKind::Node, detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::digest::Sha256;
    use protocol::id::PartitionRole;
    use protocol::manifest::{PartitionImage, PayloadFile};

    #[test]
    fn too_little_space_is_told_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = |head_size| Manifest {
            schema: 1,
            os: "debian".to_owned(),
            version: "1.1.0".parse().unwrap(),
            arch: "x86-64".parse().unwrap(),
            partitions: vec![PartitionImage {
                role: PartitionRole::root(),
                size: 1,
                sha256: Sha256::of(b"x"),
            }],
            payloads: vec![PayloadFile {
                size: u64::MAX,
                sha256: Sha256::of(b"p"),
                head_size,
                head_sha256: Sha256::of(b"h"),
                source_sha256: None,
            }],
            min_source_version: None,
            notes: String::new(),
        };
        assert_eq!(state_space(dir.path(), &manifest(1000)), Ok(()));
        let failure = state_space(dir.path(), &manifest(1 << 60)).unwrap_err();
        assert!(failure.detail.contains("make room"), "{}", failure.detail);
        assert!(state_space(&dir.path().join("missing"), &manifest(1)).is_err());
    }
}
