//! Steps 4 and 9: how a node enrols at a server that asks for a token.
//!
//! A request goes without the token first. Where the server answers that it needs one (401, `not-enrolled`), the same request goes
//! again with it. Nothing is remembered: once the server has bound the node's id it asks no more, and where its answer was lost,
//! the same credential is simply taken. So the token is sent once, and only to a server that asks.

use super::{Client, NetworkError};
use protocol::wire::{ENROLMENT_HEADER, EnrolmentToken};
use reqwest::header::HeaderValue;
use reqwest::{RequestBuilder, Url};
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;

/// The longest token file that is read, in bytes.
const FILE_MAX: usize = 1024;

/// What a request shows beside the node's credential.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown(Option<HeaderValue>);

impl Shown {
    /// The request with it.
    pub(super) fn shown_in(self, request: RequestBuilder) -> RequestBuilder {
        match self.0 {
            Some(token) => request.header(ENROLMENT_HEADER, token),
            None => request,
        }
    }
}

impl Client {
    /// Sends a small request, and where the server asks for an enrolment token, again with it.
    pub(super) async fn enrolling<F>(
        &self,
        url: &Url,
        request: impl Fn(Shown) -> F,
    ) -> Result<Vec<u8>, NetworkError>
    where
        F: Future<Output = Result<Vec<u8>, NetworkError>>,
    {
        match self.small(|| request(Shown::default())).await {
            Err(NetworkError::NotEnrolled { .. }) => {}
            answer => return answer,
        }
        if !is_private(url) {
            let problem = "it is not sent in the clear, as whoever reads it on the way could enrol with it: expected an address \
                           that begins with https (server.url)";
            return Err(NetworkError::NotEnrolled {
                url: url.to_string(),
                problem: problem.to_owned(),
                source: None,
            });
        }
        let token = read(url, self.enrolment_token_file.as_deref())?;
        tracing::info!("the server asks for an enrolment token: it is shown");
        match self.small(|| request(token.clone())).await {
            Err(NetworkError::NotEnrolled { url, .. }) => {
                let problem = "it was sent, and did not arrive: a proxy in between must pass the header Flipside-Enrolment on";
                Err(NetworkError::NotEnrolled { url, problem: problem.to_owned(), source: None })
            }
            answer => answer,
        }
    }
}

/// Whether nobody on the way reads what is sent there.
fn is_private(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    url.scheme() == "https" || host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The token, read anew each time: it may have been put there just now.
fn read(url: &Url, path: Option<&Path>) -> Result<Shown, NetworkError> {
    let failed =
        |problem: String, source| NetworkError::NotEnrolled { url: url.to_string(), problem, source };
    let Some(path) = path else {
        let problem = "this node has none; an operator makes one with updatectl enrolment create, and \
                       server.enrolment_token_file names the file with it";
        return Err(failed(problem.to_owned(), None));
    };
    let named = format!("{} (server.enrolment_token_file)", path.display());
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_MAX as u64 + 1).read_to_end(&mut text))
        .map_err(|source| failed(format!("cannot read {named}"), Some(source)))?;
    let wrong = |why: String| failed(format!("{named} is wrong: {why}"), None);
    if text.len() > FILE_MAX {
        return Err(wrong(format!("expected one token, found more than {FILE_MAX} bytes")));
    }
    let text = String::from_utf8_lossy(&text);
    let token: EnrolmentToken = text
        .trim()
        .parse()
        .map_err(|error: protocol::wire::InvalidEnrolmentToken| wrong(error.to_string()))?;
    let mut value = HeaderValue::from_str(token.reveal()).map_err(|error| wrong(error.to_string()))?;
    value.set_sensitive(true);
    Ok(Shown(Some(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_only_where_nobody_reads_it_on_the_way() {
        let private = |url: &str| is_private(&url.parse().unwrap());
        for url in
            ["https://updates.example.org/", "http://127.0.0.1:8404/", "http://[::1]/", "http://localhost:1/"]
        {
            assert!(private(url), "{url}");
        }
        for url in [
            "http://updates.example.org/",
            "http://10.0.0.1/",
            "http://localhost.example.org/",
            "http://[fe80::1]/",
        ] {
            assert!(!private(url), "{url}");
        }
    }
}
