//! Steps 4 and 5: TLS by rustls: the server's certificate, and the authority of clients' certificates where there is one.
//! The files may change while the server runs.

use protocol::digest::Sha256;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Where TLS is described.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate and those between it and its authority, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM, not encrypted.
    pub key: PathBuf,
    /// The authorities of clients' certificates, and whether clients need one.
    pub clients: Option<(PathBuf, ClientCertificate)>,
}

/// Whether a client must show a certificate. One that is shown must always be valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificate {
    /// It may.
    #[default]
    Optional,
    /// It must.
    Required,
}

/// Text that says neither.
#[derive(Clone, Debug, thiserror::Error)]
#[error("expected optional or required, found {0:?}")]
pub struct InvalidClientCertificate(String);

impl FromStr for ClientCertificate {
    type Err = InvalidClientCertificate;

    fn from_str(text: &str) -> Result<Self, InvalidClientCertificate> {
        match text {
            "optional" => Ok(Self::Optional),
            "required" => Ok(Self::Required),
            _ => Err(InvalidClientCertificate(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Optional => "optional",
            Self::Required => "required",
        })
    }
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}, the {what}", .path.display())]
    Read {
        /// What it should hold.
        what: &'static str,
        /// Its name.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} does not hold the {what}: expected {expected} in PEM, found {found}", .path.display())]
    Pem {
        /// What it should hold.
        what: &'static str,
        /// Its name.
        path: PathBuf,
        /// As what.
        expected: &'static str,
        /// What is there instead.
        found: String,
    },
    /// The parts do not go together, or rustls cannot use them.
    #[error("the TLS certificate in {} and the key in {} cannot be used", .certificate.display(), .key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
}

/// The bytes of all files: certificate, key, authorities.
type Bytes = Vec<Vec<u8>>;

impl Files {
    fn read(&self) -> Result<Bytes, TlsError> {
        let one = |what, path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Read { what, path: path.to_owned(), source })
        };
        let mut bytes = vec![one(CERTIFICATE, &self.certificate)?, one(KEY, &self.key)?];
        if let Some((path, _)) = &self.clients {
            bytes.push(one(AUTHORITIES, path)?);
        }
        Ok(bytes)
    }

    fn configuration(&self, bytes: &Bytes) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let pair = |source| {
            let (certificate, key) = (self.certificate.clone(), self.key.clone());
            TlsError::Pair { certificate, key, source }
        };
        let chain = certificates(CERTIFICATE, &self.certificate, &bytes[0])?;
        let key = PrivateKeyDer::from_pem_slice(&bytes[1]).map_err(|error| TlsError::Pem {
            what: KEY,
            path: self.key.clone(),
            expected: "a private key (PKCS #8, SEC 1 or PKCS #1, not encrypted)",
            found: error.to_string(),
        })?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(pair)?;
        let builder = match &self.clients {
            None => builder.with_no_client_auth(),
            Some((path, need)) => {
                let unfit = |found: String| TlsError::Pem {
                    what: AUTHORITIES,
                    path: path.clone(),
                    expected: "certificates of authorities",
                    found,
                };
                let mut roots = rustls::RootCertStore::empty();
                for root in certificates(AUTHORITIES, path, &bytes[2])? {
                    roots.add(root).map_err(|error| unfit(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = match need {
                    ClientCertificate::Optional => verifier.allow_unauthenticated(),
                    ClientCertificate::Required => verifier,
                };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| unfit(error.to_string()))?)
            }
        };
        let mut made = builder.with_single_cert(chain, key).map_err(pair)?;
        made.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(made)
    }
}

const CERTIFICATE: &str = "TLS certificate";
const KEY: &str = "TLS key";
const AUTHORITIES: &str = "authority of clients' certificates";

fn certificates(
    what: &'static str,
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unfit =
        |found: String| TlsError::Pem { what, path: path.to_owned(), expected: "certificates", found };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let found = found.map_err(|error| unfit(error.to_string()))?;
    if found.is_empty() {
        return Err(unfit("none".to_owned()));
    }
    Ok(found)
}

fn digests(bytes: &Bytes) -> Vec<Sha256> {
    bytes.iter().map(|bytes| Sha256::of(bytes)).collect()
}

/// TLS as the files have it. Clones share it.
#[derive(Clone, Debug)]
pub struct Tls {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    files: Files,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    /// Digests of what was tried last, whether it could be used or not.
    tried: Vec<Sha256>,
}

impl Tls {
    /// TLS from files.
    ///
    /// # Errors
    /// [`TlsError`] where they cannot be used.
    pub fn open(files: Files) -> Result<Self, TlsError> {
        let bytes = files.read()?;
        let (config, tried) = (Arc::new(files.configuration(&bytes)?), digests(&bytes));
        Ok(Self { inner: Arc::new(Inner { files, current: Mutex::new(Current { config, tried }) }) })
    }

    /// Takes up the files if they have changed; true if it did. What cannot be used changes nothing: connections get the
    /// certificate that they got before.
    ///
    /// # Errors
    /// [`TlsError`], once for each content.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let bytes = self.inner.files.read()?;
        let mut current = self.inner.current.lock().unwrap_or_else(PoisonError::into_inner);
        let tried = digests(&bytes);
        if current.tried == tried {
            return Ok(false);
        }
        current.tried = tried;
        current.config = Arc::new(self.inner.files.configuration(&bytes)?);
        Ok(true)
    }

    /// [`Self::reload`], into the log. Blocks for as long as it takes to read some small files.
    pub fn reload_logged(&self) {
        match self.reload() {
            Ok(false) => {}
            Ok(true) => tracing::info!("the TLS certificate was read anew"),
            Err(error) => tracing::error!(
                error = crate::error::chain(&error),
                "the TLS certificate was not read anew: the one from before is used on"
            ),
        }
    }

    /// Takes a connection.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.inner.current.lock().unwrap_or_else(PoisonError::into_inner).config);
        TlsAcceptor::from(config).accept(stream).await
    }
}
