//! What `serve` is told: where to listen, and how.

use crate::enrolment::Enrolment;
use crate::listen::{Limits, Listener};
use crate::rates::{Gate, Rates};
use crate::tls::{ClientCertificate, Files, Tls};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use ipnet::IpNet;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::Signal;
use tokio::time::MissedTickBehavior;

/// How often the TLS files are looked at.
const LOOK: Duration = Duration::from_secs(60);

/// How to serve.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// The address to listen on; port 0 takes a free one. Printed on stdout once it is bound.
    #[arg(long, default_value = "127.0.0.1:8400")]
    listen: String,
    /// Speak TLS with this certificate: a PEM file that also has the certificates between it and its authority. It is read
    /// anew when it changes, and at SIGHUP.
    #[arg(long, env = "UPDATE_SERVER_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<OsString>,
    /// The certificate's private key: a PEM file, PKCS #8, SEC 1 or PKCS #1, not encrypted.
    #[arg(long, env = "UPDATE_SERVER_TLS_KEY", value_name = "FILE")]
    tls_key: Option<OsString>,
    /// Take certificates of clients by these authorities (PEM). Tokens and nodes' credentials are needed all the same.
    #[arg(long, env = "UPDATE_SERVER_CLIENT_CA", value_name = "FILE")]
    client_ca: Option<OsString>,
    /// Whether clients must show a certificate: optional or required.
    #[arg(long, env = "UPDATE_SERVER_CLIENT_CERT", value_name = "NEED", default_value = "optional")]
    client_cert: ClientCertificate,
    /// How many connections are served at once; others wait.
    #[arg(long, env = "UPDATE_SERVER_MAX_CONNECTIONS", value_name = "N", default_value = "10000")]
    max_connections: NonZeroU32,
    /// How many requests one address may make without a token, on average; ten seconds' worth at once, others get 429. 0 for any
    /// number.
    #[arg(long, env = "UPDATE_SERVER_REQUESTS_PER_SECOND", value_name = "N", default_value = "500")]
    requests_per_second: u32,
    /// How many wrong tokens one address may show, on average; ten may come at once. 0 for any number.
    #[arg(long, env = "UPDATE_SERVER_FAILURES_PER_MINUTE", value_name = "N", default_value = "60")]
    failures_per_minute: u32,
    /// Believe X-Forwarded-For of proxies in this network, as in 10.0.0.0/8; several with commas.
    #[arg(long, env = "UPDATE_SERVER_TRUSTED_PROXY", value_name = "CIDR", value_delimiter = ',')]
    trusted_proxy: Vec<IpNet>,
    /// Which nodes are heard that were never heard before: open takes every one, token those that show a token of updatectl
    /// enrolment create. Nodes whose id is bound go on either way.
    #[arg(long, env = "UPDATE_SERVER_ENROLMENT", value_name = "WHO", default_value = "open")]
    pub(super) enrolment: Enrolment,
    /// Show /metrics at this address too, without TLS and without a token: an address that only Prometheus reaches.
    #[arg(long, env = "UPDATE_SERVER_METRICS_LISTEN", value_name = "ADDRESS")]
    metrics_listen: Option<String>,
}

impl ServeArgs {
    /// The socket for Prometheus, if it is to have one of its own.
    pub(super) async fn metrics_listener(&self) -> Result<Option<Listener>> {
        let Some(address) = self.metrics_listen.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let tcp = bind(address).await?;
        tracing::info!("metrics on http://{}/metrics", tcp.local_addr()?);
        Ok(Some(Listener::from(tcp)))
    }

    /// TLS, if it is asked for.
    pub(super) fn tls(&self) -> Result<Option<Tls>> {
        // An empty variable is none.
        let path = |text: &Option<OsString>| text.clone().filter(|text| !text.is_empty()).map(PathBuf::from);
        let (certificate, key) = match (path(&self.tls_cert), path(&self.tls_key)) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) => {
                ensure!(
                    path(&self.client_ca).is_none(),
                    "--client-ca needs TLS: expected --tls-cert and --tls-key too"
                );
                return Ok(None);
            }
            (Some(_), None) => bail!("TLS needs a certificate and its key: expected --tls-key too"),
            (None, Some(_)) => bail!("TLS needs a certificate and its key: expected --tls-cert too"),
        };
        let clients = path(&self.client_ca).map(|path| (path, self.client_cert));
        ensure!(
            clients.is_some() || self.client_cert == ClientCertificate::Optional,
            "certificates of clients need an authority: expected --client-ca too"
        );
        Ok(Some(Tls::open(Files { certificate, key, clients })?))
    }

    /// The socket, and the address that it is reached at.
    pub(super) async fn listener(&self, tls: Option<Tls>) -> Result<(Listener, String)> {
        let tcp = bind(&self.listen).await?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = format!("{scheme}://{}", tcp.local_addr()?);
        let connections = usize::try_from(self.max_connections.get())?;
        allow_files(u64::from(self.max_connections.get()));
        let limits = Limits { connections, ..Limits::default() };
        let rates = Rates {
            requests: self.requests_per_second,
            failures: self.failures_per_minute,
            proxies: self.trusted_proxy.clone(),
        };
        Ok((Listener::from(tcp).with_tls(tls).with_limits(limits).with_gate(Gate::new(rates)), address))
    }
}

async fn bind(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        // What is no address at all is wrong in another way than one that is taken.
        let form = match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => "",
            _ => ": expected HOST:PORT, as in 127.0.0.1:8400 or [::]:8400",
        };
        format!("cannot listen on {address}{form}")
    })
}

/// Each connection is an open file, and more than 1024 of them need leave. The programs that need the old limit, because they
/// use `select`, are others.
fn allow_files(connections: u64) {
    /// Databases, payloads, sockets that listen.
    const OTHERS: u64 = 1000;
    let needed = connections.saturating_add(OTHERS);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return;
    }
    let allowed = maximum.map_or(needed, |maximum| maximum.min(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum });
    if raised.is_err() || allowed < needed {
        tracing::warn!(
            "the system allows {allowed} open files: expected {needed} for {connections} connections; raise LimitNOFILE= or \
             lower --max-connections"
        );
    }
}

/// Takes up new TLS files, every minute and at each SIGHUP.
pub(super) async fn keep_tls(tls: Option<Tls>, mut hangup: Signal) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = hangup.recv() => {}
        }
        let Some(tls) = tls.clone() else { continue };
        // Reading a file may take its time. It does not panic.
        drop(tokio::task::spawn_blocking(move || tls.reload_logged()).await);
    }
}
