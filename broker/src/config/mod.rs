//! The configuration: every key with its type, default and meaning, read from file, environment and flags, checked as a whole
//! before anything starts. It opens nothing and starts nothing.
//!
//! Each section is a module with its own `Config`, declared with `section!`; this one only nests them. Flag > environment > file
//! > default, and every effective value remembers where it came from.

pub mod acl;
pub mod admin;
pub mod auth;
pub mod cluster;
mod discover;
pub mod durability;
mod error;
mod layer;
pub mod limits;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod mqtt;
pub mod node;
mod print;
pub mod retained;
mod rules;
mod section;
pub mod session;
pub mod shared;
pub mod sys;
mod types;
mod value;

use std::net::SocketAddr;
use std::sync::OnceLock;

pub use discover::DiscoverDns;
pub use error::{ConfigError, Origin};
pub use layer::{Flag, Sources};
pub use print::{default_file, effective_values};
pub use section::Effective;
pub use types::{HostPort, ListenerName, NoHostPort, NoSize, NodeName, Size};
pub use value::Raw;

use layer::{GivenListener, Layers, default_listener};
use section::{Availability, Key, Reader, Section};

macro_rules! config {
    ($($(#[$doc:meta])* $section:ident),+ $(,)?) => {
        /// The whole configuration, checked.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Config {
            /// Where clients connect; at least one, with different names.
            pub listeners: Vec<listener::Config>,
            $($(#[$doc])* pub $section: $section::Config,)+
        }

        impl Default for Config {
            fn default() -> Self {
                Self { listeners: vec![listener::Config::default()], $($section: Default::default()),+ }
            }
        }

        /// The names of all sections but `listener`.
        const SECTIONS: &[&str] = &[$(<$section::Config as Section>::NAME),+];

        /// Every section but `listener`: name, meaning, keys.
        fn sections() -> Vec<SectionKeys> {
            vec![$(SectionKeys::of::<$section::Config>()),+]
        }

        impl Config {
            fn read(layers: &mut Layers, effective: &mut Vec<Effective>) -> Self {
                let given: Vec<GivenListener> = std::mem::take(&mut layers.listeners);
                let mut listeners = Vec::new();
                for mut given in if given.is_empty() { vec![default_listener()] } else { given } {
                    listeners.push(read_listener(&mut given, &mut layers.errors, effective));
                }
                Self {
                    listeners,
                    $($section: read_section(layers, effective)),+
                }
            }
        }
    };
}

config! {
    node,
    mqtt,
    session,
    retained,
    shared,
    durability,
    cluster,
    auth,
    acl,
    limits,
    admin,
    metrics,
    log,
    sys,
}

/// A configuration that is safe to start with.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    /// Every effective value with its origin, listeners first.
    pub effective: Vec<Effective>,
    /// What is allowed but probably not meant.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads and checks everything. All errors are found, not only the first.
    pub fn load(sources: &Sources) -> Result<Loaded, Vec<ConfigError>> {
        let mut layers = Layers::gather(sources);
        let mut effective = Vec::new();
        let config = Self::read(&mut layers, &mut effective);
        let mut errors = layers.errors;
        for (key, given) in layers.keys {
            let nearest = nearest(&key);
            errors.push(ConfigError::UnknownKey {
                origin: given.origin,
                key,
                nearest,
            });
        }
        let mut warnings = Vec::new();
        // Rules over several keys would only repeat, in other words, what is wrong with one of them.
        if errors.is_empty() {
            let mut checked = rules::Checked {
                config: &config,
                effective: &effective,
                errors,
                warnings,
            };
            checked.run();
            errors = checked.errors;
            warnings = checked.warnings;
        }
        if errors.is_empty() {
            return Ok(Loaded {
                config,
                effective,
                warnings,
            });
        }
        errors.sort_by_cached_key(place);
        Err(errors)
    }

    /// The highest QoS on `listener`.
    pub fn max_qos(&self, listener: &listener::Config) -> flotte_mqtt::QoS {
        listener
            .max_qos
            .map_or(self.mqtt.max_qos, |qos| qos.min(self.mqtt.max_qos))
    }

    /// How many topic aliases a client of `listener` may use.
    pub fn topic_alias_maximum(&self, listener: &listener::Config) -> u16 {
        listener
            .topic_alias_maximum
            .unwrap_or(self.mqtt.topic_alias_maximum)
    }
}

/// Whether only this machine reaches `address`.
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// What is known of a section without reading anything.
struct SectionKeys {
    name: &'static str,
    about: &'static [&'static str],
    keys: Vec<Key>,
}

impl SectionKeys {
    fn of<S: Section>() -> Self {
        Self {
            name: S::NAME,
            about: S::ABOUT,
            keys: S::keys(),
        }
    }
}

fn read_section<S: Section>(layers: &mut Layers, effective: &mut Vec<Effective>) -> S {
    let Layers { keys, errors, .. } = layers;
    S::read(&mut Reader {
        section: S::NAME.to_owned(),
        given: keys,
        effective,
        errors,
    })
}

fn read_listener(
    given: &mut GivenListener,
    errors: &mut Vec<ConfigError>,
    effective: &mut Vec<Effective>,
) -> listener::Config {
    let first = effective.len();
    let has_bind = given.keys.contains_key("listener.bind");
    let mut config = listener::Config::read(&mut Reader {
        section: listener::Config::NAME.to_owned(),
        given: &mut given.keys,
        effective,
        errors,
    });
    if !has_bind {
        config.bind = config.default_bind();
    }
    // People tell listeners apart by name.
    for value in &mut effective[first..] {
        if let Some(key) = value.key.strip_prefix("listener.") {
            if key == "bind" {
                value.value = value::Setting::to_toml(&config.bind);
            }
            value.key = format!("listener.{}.{key}", config.name);
        }
    }
    for (key, given) in std::mem::take(&mut given.keys) {
        let nearest = nearest(&key);
        errors.push(ConfigError::UnknownKey {
            origin: given.origin,
            key,
            nearest,
        });
    }
    config
}

/// Every known key with its section; those of listeners as `listener.KEY`.
fn known_keys() -> &'static [String] {
    static KEYS: OnceLock<Vec<String>> = OnceLock::new();
    KEYS.get_or_init(|| {
        let mut sections = sections();
        sections.push(SectionKeys::of::<listener::Config>());
        let full = |section: &SectionKeys| -> Vec<String> {
            section
                .keys
                .iter()
                .map(|key| format!("{}.{}", section.name, key.name))
                .collect()
        };
        sections.iter().flat_map(full).collect()
    })
}

/// The known key or section that was probably meant by `key`.
fn nearest(key: &str) -> Option<String> {
    let key = key.to_ascii_lowercase();
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let sections = SECTIONS
        .iter()
        .map(|section| (*section).to_owned())
        .chain(["listener".to_owned()]);
    let score = |known: &String| {
        let whole = strsim::jaro_winkler(known, &key);
        // The right key in the wrong section is near, too.
        let tail = strsim::normalized_damerau_levenshtein(&last(known), &last(&key));
        let apart = strsim::normalized_damerau_levenshtein(known, &key);
        apart.max(if tail > 0.8 {
            0.5 + tail / 4.0 + whole / 8.0
        } else {
            0.0
        })
    };
    known_keys()
        .iter()
        .cloned()
        .chain(sections)
        .map(|known| (score(&known), known))
        .filter(|(score, _)| *score > 0.6)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, known)| known)
}

/// Where an error stands, so that errors come in the order of the file, then of the environment, then of flags.
fn place(error: &ConfigError) -> (Origin, String) {
    match error {
        ConfigError::Unreadable { path, .. } => (
            Origin::File {
                path: path.clone(),
                line: 0,
            },
            String::new(),
        ),
        ConfigError::Syntax { path, line, .. } => (
            Origin::File {
                path: path.clone(),
                line: *line,
            },
            String::new(),
        ),
        ConfigError::UnknownKey { origin, key, .. }
        | ConfigError::NotAvailable { origin, key, .. }
        | ConfigError::BadValue { origin, key, .. }
        | ConfigError::Refused { origin, key, .. } => (origin.clone(), key.clone()),
    }
}

#[cfg(test)]
mod tests;
