//! Logs to stderr, as text or JSON, with a level that can be changed while the node runs. It sets up the subscriber of the
//! process and nothing else.

use std::io::IsTerminal as _;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::log::{Config, Format, Level};

/// Changes the level of the running process.
#[derive(Debug, Clone)]
pub struct Handle {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the log level `{level}` is not understood: {reason}")]
    Level { level: String, reason: String },
    #[error("this process logs already: {0}")]
    AlreadyThere(String),
    #[error("the log is gone: {0}")]
    Gone(String),
}

/// Makes this process log as configured. Once per process.
pub fn init(config: &Config) -> Result<Handle, Error> {
    let (filter, handle) = reload::Layer::new(filter(&config.level)?);
    let lines = match config.format {
        Format::Text => {
            let ansi = std::io::stderr().is_terminal();
            fmt::layer()
                .with_ansi(ansi)
                .with_writer(std::io::stderr)
                .boxed()
        }
        Format::Json => {
            let flat = fmt::layer().json().flatten_event(true);
            flat.with_current_span(true)
                .with_span_list(false)
                .with_writer(std::io::stderr)
                .boxed()
        }
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    subscriber
        .try_init()
        .map_err(|error| Error::AlreadyThere(error.to_string()))?;
    Ok(Handle { filter: handle })
}

impl Handle {
    /// Logs from now on at `level`.
    pub fn set_level(&self, level: &Level) -> Result<(), Error> {
        self.filter
            .reload(filter(level)?)
            .map_err(|error| Error::Gone(error.to_string()))
    }
}

/// Whether a level is understood; changes nothing.
pub fn check(level: &Level) -> Result<(), Error> {
    filter(level).map(|_| ())
}

/// What is logged at `level`: a plain level is that of Flotte's own crates, and libraries only warn; directives stand as
/// they are. The consensus library warns of every request that a dead peer does not answer, many a second: what of that
/// matters this program says itself, so its warnings are for debugging.
fn directives(level: &Level) -> String {
    match level.as_str() {
        plain @ ("off" | "error") => plain.to_owned(),
        plain @ ("warn" | "info") => format!("warn,openraft=error,flotte={plain}"),
        plain @ ("debug" | "trace") => format!("warn,flotte={plain}"),
        directives => directives.to_owned(),
    }
}

fn filter(level: &Level) -> Result<EnvFilter, Error> {
    let wrong = |reason: String| Error::Level {
        level: level.as_str().to_owned(),
        reason,
    };
    EnvFilter::builder()
        .parse(directives(level))
        .map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tracing::subscriber::with_default;

    use super::*;

    fn enabled(level: &str, check: impl Fn() -> bool) -> bool {
        let subscriber =
            tracing_subscriber::registry().with(filter(&level.parse().unwrap()).unwrap());
        with_default(subscriber, check)
    }

    #[test]
    fn a_plain_level_is_of_our_crates_and_libraries_only_warn() {
        assert!(enabled(
            "debug",
            || tracing::enabled!(target: "flotte::connection", tracing::Level::DEBUG)
        ));
        assert!(enabled(
            "debug",
            || tracing::enabled!(target: "flotte_cluster::raft", tracing::Level::DEBUG)
        ));
        assert!(!enabled(
            "debug",
            || tracing::enabled!(target: "openraft", tracing::Level::INFO)
        ));
        assert!(enabled(
            "debug",
            || tracing::enabled!(target: "openraft", tracing::Level::WARN)
        ));
        assert!(!enabled(
            "error",
            || tracing::enabled!(target: "openraft", tracing::Level::WARN)
        ));
    }

    #[test]
    fn warnings_of_the_consensus_library_are_for_debugging() {
        for (level, warns) in [("warn", false), ("info", false), ("debug", true)] {
            let library = |at| {
                enabled(level, || match at {
                    tracing::Level::WARN => {
                        tracing::enabled!(target: "openraft", tracing::Level::WARN)
                    }
                    _ => tracing::enabled!(target: "openraft", tracing::Level::ERROR),
                })
            };
            assert_eq!(library(tracing::Level::WARN), warns, "{level}");
            assert!(library(tracing::Level::ERROR), "{level}");
            assert!(enabled(
                level,
                || tracing::enabled!(target: "flotte_cluster::raft", tracing::Level::WARN)
            ));
        }
    }

    #[test]
    fn directives_stand_as_they_are() {
        assert!(enabled(
            "error,openraft=trace",
            || tracing::enabled!(target: "openraft", tracing::Level::TRACE)
        ));
        assert!(!enabled(
            "error,openraft=trace",
            || tracing::enabled!(target: "flotte", tracing::Level::WARN)
        ));
    }

    #[test]
    fn the_level_changes_while_running() {
        let (layer, filter) = reload::Layer::new(filter(&"info".parse().unwrap()).unwrap());
        let handle = Handle { filter };
        with_default(tracing_subscriber::registry().with(layer), || {
            assert!(!tracing::enabled!(target: "flotte", tracing::Level::DEBUG));
            handle.set_level(&"debug".parse().unwrap()).unwrap();
            assert!(tracing::enabled!(target: "flotte", tracing::Level::DEBUG));
        });
    }
}
