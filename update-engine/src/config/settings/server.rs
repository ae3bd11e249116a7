//! `[server]`: where the update server is, and how it is known.

use super::{ConfigError, Reader, Server};
use crate::network::tls::Tls;
use std::path::PathBuf;

impl From<reqwest::Url> for Server {
    /// A server whose certificate, if it has one, an authority of the system has signed.
    fn from(url: reqwest::Url) -> Self {
        Self { url, tls: Tls::default(), enrolment_token_file: None }
    }
}

impl Reader<'_> {
    pub(super) fn server(&self) -> Result<Server, ConfigError> {
        let tls =
            Tls { ca: self.optional_path("server.ca")?, identity: self.pair("server.cert", "server.key")? };
        let enrolment_token_file = self.optional_path("server.enrolment_token_file")?;
        Ok(Server { url: self.url("server.url")?, tls, enrolment_token_file })
    }

    /// A certificate and its private key: both or neither.
    pub(super) fn pair(
        &self,
        cert: &'static str,
        key: &'static str,
    ) -> Result<Option<(PathBuf, PathBuf)>, ConfigError> {
        match (self.optional_path(cert)?, self.optional_path(key)?) {
            (Some(cert), Some(key)) => Ok(Some((cert, key))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(self.bad(key, format!("{cert} needs it, found nothing"))),
            (None, Some(_)) => Err(self.bad(cert, format!("{key} needs it, found nothing"))),
        }
    }
}
