//! Logs of both programs: to stderr, `RUST_LOG` or `--log` says what.

use tracing_subscriber::EnvFilter;

/// Starts logging; `filter` wins over `RUST_LOG`, and `default` holds where there is neither.
pub fn start(filter: Option<&str>, default: &str) {
    let filter = match filter {
        Some(filter) => EnvFilter::new(filter),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default)),
    };
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
}
