//! Steps 4 and 5: how often one address may ask. Nodes' requests need no token, so one bucket for each address bounds them; a
//! second one, smaller, bounds tokens that were wrong. An address may be a whole site: the defaults are for that.

use crate::error::{ApiError, NothingShown};
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many seconds' worth may be asked at once.
const BURST_S: f64 = 10.0;
/// How many wrong tokens may come at once, however few a minute are taken.
const FAILURES_AT_ONCE: f64 = 10.0;
/// How many addresses are remembered; it bounds the memory.
const KNOWN_MAX: usize = 100_000;

/// What addresses may do.
#[derive(Clone, Debug)]
pub struct Rates {
    /// Requests without a token, a second; 0 for any number.
    pub requests: u32,
    /// Wrong tokens, a minute; 0 for any number.
    pub failures: u32,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub proxies: Vec<IpNet>,
}

impl Default for Rates {
    fn default() -> Self {
        Self { requests: 500, failures: 60, proxies: Vec::new() }
    }
}

/// Keeps to [`Rates`].
#[derive(Debug)]
pub struct Gate {
    proxies: Vec<IpNet>,
    requests: Buckets,
    failures: Buckets,
}

/// A bucket for each address, of tokens that come back with time.
#[derive(Debug)]
struct Buckets {
    /// Tokens a second; 0 for no bound.
    rate: f64,
    /// How many may be taken at once.
    burst: f64,
    /// Tokens that were taken, and when that was so.
    taken: Mutex<HashMap<IpAddr, (f64, Instant)>>,
}

impl Buckets {
    fn new(rate: f64, burst: f64) -> Self {
        // Below one nobody would ever get through.
        Self { rate, burst: burst.max(1.0), taken: Mutex::default() }
    }

    /// Takes `tokens` if there is one at least; how long until there is, if not.
    fn take(&self, address: IpAddr, tokens: f64, now: Instant) -> Result<(), Duration> {
        if self.rate <= 0.0 {
            return Ok(());
        }
        let left_of = |(taken, at): &(f64, Instant)| {
            (taken - now.saturating_duration_since(*at).as_secs_f64() * self.rate).max(0.0)
        };
        let mut all = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KNOWN_MAX && !all.contains_key(&address) {
            all.retain(|_, taken| left_of(taken) > 0.0);
            if all.len() >= KNOWN_MAX {
                all.clear();
            }
        }
        let taken = all.get(&address).map_or(0.0, left_of);
        let over = taken + 1.0 - self.burst;
        if over > 0.0 {
            return Err(Duration::from_secs_f64(over / self.rate));
        }
        if tokens > 0.0 {
            all.insert(address, (taken + tokens, now));
        }
        Ok(())
    }
}

impl Gate {
    /// A gate through which nobody has gone yet.
    #[must_use]
    pub fn new(rates: Rates) -> Self {
        Self {
            proxies: rates.proxies,
            requests: Buckets::new(rates.requests.into(), f64::from(rates.requests) * BURST_S),
            failures: Buckets::new(f64::from(rates.failures) / 60.0, FAILURES_AT_ONCE),
        }
    }

    /// Whose request it is: the peer's, or what trusted proxies say of it, read from the nearest one on. Of an IPv6 address its
    /// network, because whoever has one has them all.
    fn address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let trusted = |address: &IpAddr| self.proxies.iter().any(|proxy| proxy.contains(address));
        let mut address = peer.to_canonical();
        let values = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
        let said: Vec<&str> = values.flat_map(|value| value.split(',')).collect();
        for said in said.iter().rev() {
            // What is no address was not written by a proxy that can be trusted.
            let Some(said) = said.trim().parse::<IpAddr>().ok().filter(|_| trusted(&address)) else { break };
            address = said.to_canonical();
        }
        match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
        }
    }
}

/// Whether a path is for operators, who show a token, or for what looks after the server.
fn is_watched_otherwise(path: &str) -> bool {
    ["/api/", "/metrics", "/healthz", "/readyz"].iter().any(|start| path.starts_with(start))
}

/// Lets a request pass, or answers 429.
pub(crate) async fn gate(request: Request, next: Next) -> Response {
    let parts = request.extensions();
    let (Some(gate), Some(ConnectInfo(peer))) =
        (parts.get::<Arc<Gate>>().cloned(), parts.get::<ConnectInfo<SocketAddr>>().copied())
    else {
        return next.run(request).await;
    };
    let address = gate.address(peer.ip(), request.headers());
    let now = Instant::now();
    let passes = if is_watched_otherwise(request.uri().path()) {
        gate.failures.take(address, 0.0, now)
    } else {
        gate.requests.take(address, 1.0, now)
    };
    if let Err(wait) = passes {
        let seconds = wait.as_secs() + 1;
        return ApiError::TooMany { address, seconds }.into_response();
    }
    let response = next.run(request).await;
    // A fleet that is switched on behind one address asks whether it must enrol: that is no failure.
    let guessed = response.extensions().get::<NothingShown>().is_none();
    if response.status() == StatusCode::UNAUTHORIZED && guessed {
        // Counted afterwards. That this one went through is decided.
        let _ = gate.failures.take(address, 1.0, now);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_bucket_is_emptied_and_fills_again() {
        let (buckets, now) = (Buckets::new(2.0, 20.0), Instant::now());
        let take = |address, after| buckets.take(ip(address), 1.0, now + Duration::from_millis(after));
        for _ in 0..20 {
            take("10.0.0.1", 0).unwrap();
        }
        assert_eq!(take("10.0.0.1", 0).unwrap_err(), Duration::from_millis(500));
        take("10.0.0.2", 0).unwrap();
        take("10.0.0.1", 500).unwrap();
        assert!(take("10.0.0.1", 500).is_err());
        take("10.0.0.1", 60_000).unwrap();
        let unbounded = Buckets::new(0.0, 0.0);
        assert!((0..1000).all(|_| unbounded.take(ip("10.0.0.1"), 1.0, now).is_ok()));
    }

    #[test]
    fn the_memory_is_bounded() {
        let (buckets, now) = (Buckets::new(1.0, 10.0), Instant::now());
        for number in 0..=u32::try_from(KNOWN_MAX).unwrap() {
            buckets.take(IpAddr::from(number.to_be_bytes()), 1.0, now).unwrap();
        }
        assert!(buckets.taken.lock().unwrap().len() <= KNOWN_MAX);
    }

    #[test]
    fn only_trusted_proxies_say_who_asks() {
        let proxies = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let gate = Gate::new(Rates { proxies, ..Rates::default() });
        for (peer, said, expected) in [
            ("192.0.2.1", &["1.1.1.1"][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("::ffff:10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            // The client wrote the first one itself.
            ("10.0.0.1", &["9.9.9.9, 1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["9.9.9.9", "1.1.1.1, 10.0.0.2"], "1.1.1.1"),
            ("10.0.0.1", &["1.1.1.1, nonsense"], "10.0.0.1"),
            ("fd00::1", &["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::"),
        ] {
            let mut headers = HeaderMap::new();
            for said in said {
                headers.append("x-forwarded-for", said.parse().unwrap());
            }
            assert_eq!(gate.address(ip(peer), &headers), ip(expected), "{peer} {said:?}");
        }
    }
}
