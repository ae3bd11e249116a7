//! Logs of both programs: to stderr, `RUST_LOG` or `--log` says what.

use tracing_subscriber::EnvFilter;

/// Starts logging; `filter` wins over `RUST_LOG`, and `default` holds where there is neither, or a wrong one.
///
/// A line that cannot be written is lost, and nothing else: the guard must not fail for it.
pub fn start(filter: Option<&str>, default: &str) {
    let parsed = filter.map(|filter| EnvFilter::builder().parse(filter));
    let (filter, problem) = match parsed {
        Some(Ok(filter)) => (Some(filter), None),
        Some(Err(error)) => (None, Some(error)),
        None => (EnvFilter::try_from_default_env().ok(), None),
    };
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|| EnvFilter::new(default)))
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .log_internal_errors(false)
        .init();
    if let Some(problem) = problem {
        tracing::warn!("--log cannot be used, so it is {default}: {problem}");
    }
}
