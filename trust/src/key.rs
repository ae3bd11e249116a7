//! Step 3, metadata: ed25519 keys, as files and as TUF key objects.
//!
//! A private key is a PKCS#8 PEM file that only its owner can read (0600); a public key is a TUF key object, and its
//! id is the SHA-256 of that object's canonical form.

use ed25519_dalek::Signer;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, spki::der::pem::LineEnding};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The schema number of the online keys' public file.
pub const SCHEMA: u32 = 1;

/// A key file or key object that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The operating system gives no randomness.
    #[error("cannot make a key: the operating system gives no randomness")]
    Randomness(#[source] getrandom::Error),
    /// A file cannot be read.
    #[error("cannot read {}: expected a key file there", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A key would be overwritten.
    #[error("{} exists: expected no file there, because a lost key cannot be made again; move it away first", .0.display())]
    Exists(PathBuf),
    /// Not a private key.
    #[error("{what} is not a private key: expected an ed25519 key as PKCS#8 PEM (BEGIN PRIVATE KEY)")]
    Private {
        /// Which file or text.
        what: String,
        /// What the parser found.
        #[source]
        source: ed25519_dalek::pkcs8::Error,
    },
    /// Not the online keys' public file.
    #[error("{} is not a file of online keys: expected what `update-server init` writes (schema {SCHEMA})", .path.display())]
    Online {
        /// Which file.
        path: PathBuf,
        /// What the parser found.
        #[source]
        source: serde_json::Error,
    },
}

/// A private ed25519 key.
#[derive(Clone)]
pub struct SigningKey {
    secret: ed25519_dalek::SigningKey,
    public: PublicKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.public.id).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A new key from the operating system's randomness.
    ///
    /// # Errors
    /// [`KeyError::Randomness`].
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(KeyError::Randomness)?;
        Ok(Self::from_secret(ed25519_dalek::SigningKey::from_bytes(&seed)))
    }

    /// A key that anyone can make again. For tests only.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn from_seed(seed: u8) -> Self {
        Self::from_secret(ed25519_dalek::SigningKey::from_bytes(&[seed; 32]))
    }

    fn from_secret(secret: ed25519_dalek::SigningKey) -> Self {
        let public = PublicKey::ed25519(secret.verifying_key().as_bytes());
        Self { secret, public }
    }

    /// Reads a PKCS#8 PEM text; `what` names it in errors.
    ///
    /// # Errors
    /// [`KeyError::Private`].
    pub fn from_pem(pem: &str, what: &str) -> Result<Self, KeyError> {
        ed25519_dalek::SigningKey::from_pkcs8_pem(pem)
            .map(Self::from_secret)
            .map_err(|source| KeyError::Private { what: what.to_owned(), source })
    }

    /// The key as PKCS#8 PEM.
    ///
    /// # Errors
    /// [`KeyError::Private`] where the encoder refuses.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        match self.secret.to_pkcs8_pem(LineEnding::LF) {
            Ok(pem) => Ok(pem.to_string()),
            Err(source) => Err(KeyError::Private { what: format!("key {}", self.id()), source }),
        }
    }

    /// Reads a key file; warns where others may read it too.
    ///
    /// # Errors
    /// [`KeyError::Read`], [`KeyError::Private`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let read = |source| KeyError::Read { path: path.to_owned(), source };
        let mode = std::fs::metadata(path).map_err(read)?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o777), "key file can be read by others: chmod 600 it");
        }
        let pem = std::fs::read_to_string(path).map_err(read)?;
        Self::from_pem(&pem, &path.display().to_string())
    }

    /// Writes a new key file with mode 0600, durably. Never overwrites.
    ///
    /// # Errors
    /// [`KeyError::Exists`], [`KeyError::Write`].
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        let write = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
            _ => KeyError::Write { path: path.to_owned(), source },
        };
        let pem = self.to_pem()?;
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(write)?;
        file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(write)?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        disk::durable::sync_dir(folder).map_err(write)
    }

    /// The public half.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The key id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.public.id()
    }

    /// The signature over `bytes`, as TUF writes it.
    pub(crate) fn sign_hex(&self, bytes: &[u8]) -> String {
        hex::encode(self.secret.sign(bytes).to_bytes())
    }
}

/// A public key as a TUF key object, with its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    key: KeyObject,
    id: String,
}

/// The three fields that securesystemslib hashes to make a key id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeyObject {
    keytype: String,
    scheme: String,
    keyval: KeyValue,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeyValue {
    public: String,
}

impl KeyObject {
    /// SHA-256 of the canonical form (keys sorted, no white space), as `sigstore_tuf::Key::key_id` computes it.
    fn id(&self) -> String {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let canonical = format!(
            r#"{{"keytype":"{}","keyval":{{"public":"{}"}},"scheme":"{}"}}"#,
            escape(&self.keytype),
            escape(&self.keyval.public),
            escape(&self.scheme)
        );
        protocol::digest::Sha256::of(canonical.as_bytes()).to_string()
    }
}

impl PublicKey {
    fn ed25519(bytes: &[u8; 32]) -> Self {
        let key = KeyObject {
            keytype: "ed25519".to_owned(),
            scheme: "ed25519".to_owned(),
            keyval: KeyValue { public: hex::encode(bytes) },
        };
        Self { id: key.id(), key }
    }

    /// The key id: 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The TUF key object.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "keytype": self.key.keytype,
            "scheme": self.key.scheme,
            "keyval": { "public": self.key.keyval.public },
        })
    }
}

impl From<&sigstore_tuf::Key> for PublicKey {
    fn from(key: &sigstore_tuf::Key) -> Self {
        let key = KeyObject {
            keytype: key.keytype.clone(),
            scheme: key.scheme.clone(),
            keyval: KeyValue { public: key.keyval.public.clone() },
        };
        Self { id: key.id(), key }
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.key.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = KeyObject::deserialize(deserializer)?;
        Ok(Self { id: key.id(), key })
    }
}

/// The keys that a server signs with: all that a captured server can misuse.
#[derive(Clone, Debug)]
pub struct OnlineKeys {
    /// Signs which files belong together.
    pub snapshot: SigningKey,
    /// Signs which snapshot is the newest.
    pub timestamp: SigningKey,
    /// Signs what channels hold, where the operator chose not to keep that key offline.
    pub channels: SigningKey,
}

/// The public halves of [`OnlineKeys`]: `online-keys.pub.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnlinePublicKeys {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Of the snapshot role.
    pub snapshot: PublicKey,
    /// Of the timestamp role.
    pub timestamp: PublicKey,
    /// Of the delegated channels role.
    pub channels: PublicKey,
}

impl OnlineKeys {
    /// Three new keys.
    ///
    /// # Errors
    /// [`KeyError::Randomness`].
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self {
            snapshot: SigningKey::generate()?,
            timestamp: SigningKey::generate()?,
            channels: SigningKey::generate()?,
        })
    }

    /// Reads `snapshot.pem`, `timestamp.pem` and `channels.pem` of a folder.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(folder: &Path) -> Result<Self, KeyError> {
        Ok(Self {
            snapshot: SigningKey::load(&folder.join("snapshot.pem"))?,
            timestamp: SigningKey::load(&folder.join("timestamp.pem"))?,
            channels: SigningKey::load(&folder.join("channels.pem"))?,
        })
    }

    /// Writes the three key files into an existing folder. Never overwrites.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn save(&self, folder: &Path) -> Result<(), KeyError> {
        self.snapshot.save(&folder.join("snapshot.pem"))?;
        self.timestamp.save(&folder.join("timestamp.pem"))?;
        self.channels.save(&folder.join("channels.pem"))
    }

    /// The public halves.
    #[must_use]
    pub fn public(&self) -> OnlinePublicKeys {
        OnlinePublicKeys {
            schema: SCHEMA,
            snapshot: self.snapshot.public().clone(),
            timestamp: self.timestamp.public().clone(),
            channels: self.channels.public().clone(),
        }
    }
}

impl OnlinePublicKeys {
    /// Reads the file that `update-server init` writes.
    ///
    /// # Errors
    /// [`KeyError::Read`], [`KeyError::Online`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let online = |source| KeyError::Online { path: path.to_owned(), source };
        let bytes = std::fs::read(path).map_err(|source| KeyError::Read { path: path.to_owned(), source })?;
        let keys: Self = serde_json::from_slice(&bytes).map_err(online)?;
        if keys.schema != SCHEMA {
            return Err(online(serde::de::Error::custom(format!("schema {}", keys.schema))));
        }
        Ok(keys)
    }

    /// Writes the file, durably.
    ///
    /// # Errors
    /// [`KeyError::Write`], [`KeyError::Online`] where it cannot be encoded.
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|source| KeyError::Online { path: path.to_owned(), source })?;
        bytes.push(b'\n');
        disk::durable::write(path, &bytes).map_err(|source| KeyError::Write { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_ids_are_those_of_the_library() {
        let key = SigningKey::generate().unwrap();
        let theirs: sigstore_tuf::Key = serde_json::from_value(key.public().to_json()).unwrap();
        assert_eq!(key.id(), theirs.key_id().unwrap());
        assert_eq!(&PublicKey::from(&theirs), key.public());
    }

    #[test]
    fn key_files_are_private_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.pem");
        let key = SigningKey::generate().unwrap();
        key.save(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(SigningKey::load(&path).unwrap().id(), key.id());
        let before = std::fs::read(&path).unwrap();
        assert!(matches!(SigningKey::generate().unwrap().save(&path), Err(KeyError::Exists(_))));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.pem");
        assert!(matches!(SigningKey::load(&path), Err(KeyError::Read { .. })));
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
        assert!(matches!(SigningKey::load(&path), Err(KeyError::Private { .. })));
    }

    #[test]
    fn online_keys_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let keys = OnlineKeys::generate().unwrap();
        keys.save(folder.path()).unwrap();
        assert_eq!(OnlineKeys::load(folder.path()).unwrap().public(), keys.public());
        let path = folder.path().join("online-keys.pub.json");
        keys.public().save(&path).unwrap();
        assert_eq!(OnlinePublicKeys::load(&path).unwrap(), keys.public());
        let newer = std::fs::read_to_string(&path).unwrap().replace("\"schema\": 1", "\"schema\": 2");
        std::fs::write(&path, newer).unwrap();
        assert!(matches!(OnlinePublicKeys::load(&path), Err(KeyError::Online { .. })));
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let key = SigningKey::from_seed(7);
        let text = format!("{key:?}");
        assert!(text.contains(key.id()) && !text.contains(&hex::encode([7; 32])));
    }
}
