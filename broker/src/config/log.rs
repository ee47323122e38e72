//! `[log]`: what is written to stderr.

use super::section::section;
use super::value::{Raw, Refusal, Setting, choice, quoted};

choice! {
    /// How a log line is written.
    Format {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

/// A level (`info`), or directives as `warn,flotte::connection=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level(String);

impl Level {
    /// The level of normal service.
    pub fn info() -> Self {
        Self("info".to_owned())
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Text that is neither a level nor directives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("neither a level (error, warn, info, debug, trace) nor directives")]
pub struct NoLevel;

impl std::str::FromStr for Level {
    type Err = NoLevel;

    fn from_str(text: &str) -> Result<Self, NoLevel> {
        let level = text.trim();
        let plain = ["off", "error", "warn", "info", "debug", "trace"].contains(&level);
        // A lone word that is no level would be taken for the name of a module, and silence everything else.
        let directives = (level.contains('=') || level.contains(','))
            && level.parse::<tracing_subscriber::filter::Targets>().is_ok();
        if plain || directives {
            Ok(Self(level.to_owned()))
        } else {
            Err(NoLevel)
        }
    }
}

impl Setting for Level {
    fn allowed() -> std::borrow::Cow<'static, str> {
        "\"error\", \"warn\", \"info\", \"debug\", \"trace\", or directives as \"warn,flotte=debug\"".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        raw.text()
            .and_then(|text| text.parse().ok())
            .ok_or(Refusal::Bad)
    }
    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.0))
    }
}

section! {
    /// What is written to stderr.
    "log" {
        /// "text" for people, or "json", one object a line.
        format: Format = Format::Text;
        /// "error", "warn", "info", "debug" or "trace" for Flotte itself, its libraries only where they warn; or
        /// directives as "warn,flotte::connection=debug". Read again by a reload.
        level: Level = Level::info();
    }
}
