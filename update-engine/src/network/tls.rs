//! Step 5, download, and all else over HTTPS: whose certificates are believed, and which one is shown.

use crate::error::chain;
use reqwest::{Certificate, ClientBuilder, Identity};
use std::path::{Path, PathBuf};

/// The files of a connection to the update server. None set: the authorities of the system, and no certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The authorities that may sign the server's certificate, in PEM.
    pub ca: Option<PathBuf>,
    /// A certificate to show and its private key, in PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It cannot be read.
    #[error("cannot read {}, expected to hold {expected}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It holds something else.
    #[error("{} does not hold {expected}: {found}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// What was found.
        found: String,
    },
}

const AUTHORITIES: &str = "certificates of authorities in PEM";
const CERTIFICATE: &str = "a certificate in PEM";
const SHOWN: &str = "a certificate that can be shown, X.509 version 3 (plain openssl x509 -req makes version 1: give it -extfile)";
const PAIR: &str = "a certificate, or the other file not its private key (PKCS #8, PKCS #1 or SEC 1), in PEM";
const KEY: &str = "its private key in PEM (PKCS #8, PKCS #1 or SEC 1, not encrypted)";

impl Tls {
    /// A client that goes by the files.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn apply(&self, mut builder: ClientBuilder) -> Result<ClientBuilder, TlsError> {
        if let Some(path) = &self.ca {
            let unfit = |found| TlsError::Pem { path: path.clone(), expected: AUTHORITIES, found };
            let found = Certificate::from_pem_bundle(&read(path, AUTHORITIES)?);
            let authorities = found.map_err(|error| unfit(chain(&error)))?;
            if authorities.is_empty() {
                return Err(unfit("there is none in it".to_owned()));
            }
            builder = builder.tls_certs_only(authorities);
        }
        if let Some((certificate, key)) = &self.identity {
            let mut text = read(certificate, CERTIFICATE)?;
            text.push(b'\n');
            text.extend(read(key, KEY)?);
            let identity = Identity::from_pem(&text).map_err(|error| TlsError::Pem {
                path: certificate.clone(),
                expected: PAIR,
                found: chain(&error),
            })?;
            builder = builder.identity(identity);
        }
        Ok(builder)
    }

    /// What of the files keeps a client from being made, where it is one of them: the certificate to show is read only then.
    #[must_use]
    pub fn blamed(&self, error: &reqwest::Error) -> Option<TlsError> {
        let (certificate, _) = self.identity.as_ref()?;
        let found = chain(error);
        // It is ours and no peer's, whatever the library calls it.
        let (_, found) = found.split_once("invalid peer certificate: ")?;
        Some(TlsError::Pem { path: certificate.clone(), expected: SHOWN, found: found.to_owned() })
    }
}

fn read(path: &Path, expected: &'static str) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), expected, source })
}
