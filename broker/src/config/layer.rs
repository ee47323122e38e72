//! Gathers what was given by file, environment and flags into one map of raw values, the stronger over the weaker. It knows
//! names of keys, but no types.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin};
use super::section::Given;
use super::value::{Raw, quoted};
use super::{known_keys, listener, nearest};

/// Prefix of the environment variables of the configuration.
const ENV_PREFIX: &str = "FLOTTE_";

/// A flag of the command line that stands for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// The flag with its dashes.
    pub flag: &'static str,
    /// The key; `listener.NAME.KEY` for a listener's.
    pub key: &'static str,
    pub value: Raw,
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file that was asked for.
    pub file: Option<PathBuf>,
    /// Name and value of environment variables; only those of the configuration are looked at.
    pub environment: Vec<(String, String)>,
    pub flags: Vec<Flag>,
}

impl Sources {
    /// The environment of this process, without file and flags.
    pub fn of_process() -> Self {
        let environment = std::env::vars_os()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into_owned(),
                    value.to_string_lossy().into_owned(),
                )
            })
            .collect();
        Self {
            environment,
            ..Self::default()
        }
    }
}

/// The values given, before any has a type.
#[derive(Debug, Default)]
pub struct Layers {
    /// By full key.
    pub keys: BTreeMap<String, Given>,
    pub listeners: Vec<GivenListener>,
    pub errors: Vec<ConfigError>,
    /// Sections that have nothing below them.
    empty_tables: Vec<(String, Origin)>,
}

/// One `[[listener]]`.
#[derive(Debug)]
pub struct GivenListener {
    /// The name, as far as it can be told before it is checked.
    pub name: String,
    /// By `listener.KEY`.
    pub keys: BTreeMap<String, Given>,
}

impl Layers {
    /// Reads all sources, weakest first.
    pub fn gather(sources: &Sources) -> Self {
        let mut layers = Self::default();
        if let Some(path) = &sources.file {
            match std::fs::read_to_string(path) {
                Ok(text) => layers.add_file(path, &text),
                Err(error) => {
                    layers.errors.push(ConfigError::Unreadable {
                        path: path.clone(),
                        reason: error.to_string(),
                    });
                }
            }
        }
        layers.add_environment(&sources.environment);
        for flag in &sources.flags {
            let given = Given {
                raw: flag.value.clone(),
                origin: Origin::Flag(flag.flag),
            };
            layers.insert(flag.key, given);
        }
        layers.refuse_unknown_tables();
        layers
    }

    fn add_file(&mut self, path: &Path, text: &str) {
        let line_of = |at: usize| {
            text.as_bytes()[..at.min(text.len())]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
                + 1
        };
        let (document, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            // What follows a syntax error is guesswork: say what is wrong with the syntax and nothing else.
            self.errors
                .extend(errors.iter().map(|error| ConfigError::Syntax {
                    path: path.to_owned(),
                    line: line_of(error.span().map_or(0, |span| span.start)),
                    message: error.message().to_owned(),
                }));
            return;
        }
        let origin = |at: usize| Origin::File {
            path: path.to_owned(),
            line: line_of(at),
        };
        for (key, value) in document.get_ref() {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("listener", DeValue::Array(items)) => {
                    for item in items.iter() {
                        self.add_listener(item.get_ref(), &origin, origin(item.span().start));
                    }
                }
                (name, value) => {
                    let given = |at| origin(at);
                    flatten(
                        name,
                        value,
                        key.span().start,
                        &given,
                        &mut self.keys,
                        &mut self.empty_tables,
                    );
                }
            }
        }
    }

    fn add_listener(
        &mut self,
        item: &DeValue<'_>,
        origin_of: &dyn Fn(usize) -> Origin,
        origin: Origin,
    ) {
        let DeValue::Table(table) = item else {
            let allowed = "allowed are tables, written [[listener]]".to_owned();
            self.errors.push(ConfigError::BadValue {
                origin,
                key: "listener".into(),
                value: raw(item).to_string(),
                allowed,
            });
            return;
        };
        let mut keys = BTreeMap::new();
        for (key, value) in table {
            let path = format!("listener.{}", key.get_ref());
            flatten(
                &path,
                value.get_ref(),
                key.span().start,
                origin_of,
                &mut keys,
                &mut self.empty_tables,
            );
        }
        let name = keys
            .get("listener.name")
            .or_else(|| keys.get("listener.protocol"))
            .and_then(|given| given.raw.text())
            .unwrap_or("mqtt")
            .to_owned();
        // One that has no name is called after what it speaks.
        keys.entry("listener.name".to_owned()).or_insert(Given {
            raw: Raw::Text(name.clone()),
            origin: Origin::Default,
        });
        self.listeners.push(GivenListener { name, keys });
    }

    fn add_environment(&mut self, environment: &[(String, String)]) {
        let mut variables: Vec<_> = environment
            .iter()
            // A container runtime adds variables of its own (FLOTTE_PORT, FLOTTE_SERVICE_HOST): ours have two underscores.
            .filter_map(|(name, value)| Some((name, name.strip_prefix(ENV_PREFIX)?, value)))
            .filter(|(_, path, value)| path.contains("__") && !value.is_empty())
            .collect();
        variables.sort();
        for (name, path, value) in variables {
            let origin = Origin::Environment(name.clone());
            match key_of_variable(path) {
                Some(key) => self.insert(
                    &key,
                    Given {
                        raw: Raw::Word(value.clone()),
                        origin,
                    },
                ),
                None => {
                    let nearest = nearest(&path.to_ascii_lowercase().replace("__", "."))
                        .map(|key| variable_of_key(&key));
                    self.errors.push(ConfigError::UnknownKey {
                        origin,
                        key: name.clone(),
                        nearest,
                    });
                }
            }
        }
    }

    /// Takes a value over what was there; a listener that is not there yet is made.
    fn insert(&mut self, key: &str, given: Given) {
        let Some((name, rest)) = key
            .strip_prefix("listener.")
            .and_then(|rest| rest.split_once('.'))
        else {
            self.keys.insert(key.to_owned(), given);
            return;
        };
        let at = self
            .listeners
            .iter()
            .position(|listener| same_word(&listener.name, name))
            .unwrap_or_else(|| {
                self.listeners.push(made_listener(name, &given.origin));
                self.listeners.len() - 1
            });
        self.listeners[at]
            .keys
            .insert(format!("listener.{rest}"), given);
    }

    fn refuse_unknown_tables(&mut self) {
        for (key, origin) in std::mem::take(&mut self.empty_tables) {
            if known_keys().contains(&key) {
                let raw = Raw::Table;
                self.keys.insert(key, Given { raw, origin });
                continue;
            }
            let below = format!("{key}.");
            let known = known_keys().iter().any(|known| known.starts_with(&below));
            if !known && !super::SECTIONS.contains(&key.as_str()) {
                let nearest = nearest(&key);
                self.errors.push(ConfigError::UnknownKey {
                    origin,
                    key,
                    nearest,
                });
            }
        }
    }
}

/// A listener that an environment variable or a flag names and the file does not; it speaks what its name says.
fn made_listener(name: &str, origin: &Origin) -> GivenListener {
    let word = |text: &str| Given {
        raw: Raw::Word(text.to_owned()),
        origin: origin.clone(),
    };
    let name = name.to_ascii_lowercase();
    let mut keys = BTreeMap::from([("listener.name".to_owned(), word(&name))]);
    if ["mqtts", "ws", "wss", "unix"].contains(&name.as_str()) {
        keys.insert("listener.protocol".to_owned(), word(&name));
    }
    GivenListener { name, keys }
}

/// The key that `CLUSTER__BIND` stands for.
fn key_of_variable(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split("__").collect();
    if let ["LISTENER", name, rest @ ..] = parts.as_slice()
        && !name.is_empty()
        && !rest.is_empty()
    {
        let key = format!("listener.{}", rest.join("."));
        let known = known_keys().iter().find(|known| same_word(known, &key))?;
        return Some(format!(
            "listener.{}.{}",
            name.to_ascii_lowercase(),
            known.strip_prefix("listener.")?
        ));
    }
    let key = parts.join(".");
    known_keys()
        .iter()
        .find(|known| !known.starts_with("listener.") && same_word(known, &key))
        .cloned()
}

/// The environment variable of a key.
pub fn variable_of_key(key: &str) -> String {
    let path = match key.strip_prefix("listener.") {
        Some(rest) => format!("listener.name.{rest}"),
        None => key.to_owned(),
    };
    format!(
        "{ENV_PREFIX}{}",
        path.replace('.', "__")
            .replace('-', "_")
            .to_ascii_uppercase()
    )
}

/// Whether two names are the same where case and `-` cannot be told.
fn same_word(left: &str, right: &str) -> bool {
    let fold = |byte: u8| {
        if byte == b'-' {
            b'_'
        } else {
            byte.to_ascii_lowercase()
        }
    };
    left.len() == right.len() && left.bytes().map(fold).eq(right.bytes().map(fold))
}

/// Puts every value below `value` into `keys` under its dotted path.
fn flatten(
    path: &str,
    value: &DeValue<'_>,
    at: usize,
    origin: &dyn Fn(usize) -> Origin,
    keys: &mut BTreeMap<String, Given>,
    empty_tables: &mut Vec<(String, Origin)>,
) {
    match value {
        DeValue::Table(table) if table.is_empty() => {
            empty_tables.push((path.to_owned(), origin(at)))
        }
        DeValue::Table(table) => {
            for (key, value) in table {
                let path = format!("{path}.{}", key.get_ref());
                flatten(
                    &path,
                    value.get_ref(),
                    key.span().start,
                    origin,
                    keys,
                    empty_tables,
                );
            }
        }
        value => {
            keys.insert(
                path.to_owned(),
                Given {
                    raw: raw(value),
                    origin: origin(at),
                },
            );
        }
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::Boolean(value) => Raw::Bool(*value),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) => Raw::Integer(value),
            Err(_) => Raw::Other(integer.to_string()),
        },
        DeValue::String(text) => Raw::Text(text.clone().into_owned()),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Float(float) => Raw::Other(float.to_string()),
        DeValue::Datetime(datetime) => Raw::Other(datetime.to_string()),
        DeValue::Table(table) => {
            let keys: Vec<String> = table.keys().map(|key| quoted(key.get_ref())).collect();
            Raw::Other(format!("{{ {} }}", keys.join(", ")))
        }
    }
}

/// The listener that is there when none was given.
pub fn default_listener() -> GivenListener {
    GivenListener {
        name: listener::Config::default().name.to_string(),
        keys: BTreeMap::new(),
    }
}
