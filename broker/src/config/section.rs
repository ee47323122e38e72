//! How a section of the configuration is declared. One declaration gives the struct, its defaults, the keys that are known, the
//! commented default file and the reader, so that none of them can drift from the others.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::error::{ConfigError, Origin};
use super::value::{Raw, Refusal, Setting};

/// A section: a table of the file, read as a whole.
pub trait Section: Sized {
    /// The name of the table.
    const NAME: &'static str;

    /// What the section is for, line by line.
    const ABOUT: &'static [&'static str];

    /// The keys, in the order in which they shall be read by people.
    fn keys() -> Vec<Key>;

    /// Reads every key; errors go to the reader, and the default takes the place of what is wrong.
    fn read(reader: &mut Reader<'_>) -> Self;
}

/// What is known of a key without reading anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The key inside its section; dotted where a table is nested.
    pub name: &'static str,
    /// What it is for, line by line.
    pub about: &'static [&'static str],
    /// The default as TOML, `None` where the key is unset by default.
    pub default: Option<String>,
    /// What is allowed.
    pub allowed: String,
    /// Whether this version has the feature.
    pub availability: Availability,
}

/// Whether a key can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    Now,
    /// The key is known, and refused with any value but its default.
    Later,
}

/// A value that was given for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    pub raw: Raw,
    pub origin: Origin,
}

/// The value that a key has in the end, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The key with its section.
    pub key: String,
    /// As TOML; `None` where nothing is set.
    pub value: Option<String>,
    pub origin: Origin,
}

/// Takes the given values of one section, key by key; what is left in the end is unknown.
pub struct Reader<'a> {
    /// The full name of the section, to which `.key` is added.
    pub section: String,
    /// What was given, by key with its section.
    pub given: &'a mut BTreeMap<String, Given>,
    pub effective: &'a mut Vec<Effective>,
    pub errors: &'a mut Vec<ConfigError>,
}

impl Reader<'_> {
    /// The value of `key`; the default where none, or a wrong one, was given.
    pub fn take<T: Setting>(
        &mut self,
        key: &str,
        range: Option<RangeInclusive<u64>>,
        default: T,
    ) -> T {
        let key = format!("{}.{key}", self.section);
        let (value, origin) = match self.given.remove(&key) {
            None => (default, Origin::Default),
            Some(given) => match read::<T>(&key, &given, range) {
                Ok(value) => (value, given.origin),
                Err(error) => {
                    self.errors.push(error);
                    (default, given.origin)
                }
            },
        };
        self.effective.push(Effective {
            key,
            value: value.to_toml(),
            origin,
        });
        value
    }

    /// Takes a key of a feature that is not there yet, and all that stands below it where it is a table.
    pub fn take_later<T: Setting>(&mut self, key: &str, default: &T) {
        let key = format!("{}.{key}", self.section);
        if let Some(given) = self.given.remove(&key) {
            match read::<T>(&key, &given, None) {
                Ok(value) if value == *default => {}
                Ok(_) => self.errors.push(not_available(key.clone(), &given)),
                Err(error) => self.errors.push(error),
            }
        }
        let below = format!("{key}.");
        let nested: Vec<String> = self
            .given
            .keys()
            .filter(|given| given.starts_with(&below))
            .cloned()
            .collect();
        for key in nested {
            if let Some(given) = self.given.remove(&key) {
                self.errors.push(not_available(key, &given));
            }
        }
    }
}

fn read<T: Setting>(
    key: &str,
    given: &Given,
    range: Option<RangeInclusive<u64>>,
) -> Result<T, ConfigError> {
    let bad = || ConfigError::BadValue {
        origin: given.origin.clone(),
        key: key.to_owned(),
        value: given.raw.to_string(),
        allowed: allowed::<T>(range.as_ref()),
    };
    match T::parse(&given.raw) {
        Ok(value) => match (&range, value.magnitude()) {
            (Some(range), Some(magnitude)) if !range.contains(&magnitude) => Err(bad()),
            _ => Ok(value),
        },
        Err(Refusal::NotYet) => Err(not_available(key.to_owned(), given)),
        Err(Refusal::Bad) => Err(bad()),
    }
}

fn not_available(key: String, given: &Given) -> ConfigError {
    ConfigError::NotAvailable {
        origin: given.origin.clone(),
        key,
        value: given.raw.to_string(),
    }
}

/// What is allowed for a key of type `T`, for people.
pub fn allowed<T: Setting>(range: Option<&RangeInclusive<u64>>) -> String {
    match range {
        None => format!("allowed is {}", T::allowed()),
        Some(range) => format!(
            "allowed is {}, from {} to {}",
            T::allowed(),
            T::show_magnitude(*range.start()),
            T::show_magnitude(*range.end())
        ),
    }
}

/// The range of a key, where it has one.
macro_rules! range {
    () => {
        None
    };
    ($range:expr) => {
        Some($range)
    };
}

/// The name of a key: its literal name, or else the name of the field.
macro_rules! key_name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $key:literal) => {
        $key
    };
}

/// Declares a section; see the module's own words. `later` holds keys of features that are not there yet.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:literal {
            $(
                $(#[doc = $doc:literal])+
                $field:ident $([$key:literal])? : $type:ty = $default:expr $(, in $range:expr)?;
            )*
        }
        $(later {
            $(
                $(#[doc = $later_doc:literal])+
                $later_key:literal : $later_type:ty = $later_default:expr;
            )*
        })?
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq)]
        pub struct Config {
            $(
                $(#[doc = $doc])+
                pub $field: $type,
            )*
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $($field: $default),* }
            }
        }

        impl $crate::config::section::Section for Config {
            const NAME: &'static str = $name;
            const ABOUT: &'static [&'static str] = &[$($about),+];

            fn keys() -> Vec<$crate::config::section::Key> {
                #[allow(unused_imports, reason = "a section may have no keys")]
                use $crate::config::{
                    section::{Availability, Key, allowed},
                    value::Setting,
                };
                vec![
                    $(Key {
                        name: $crate::config::section::key_name!($field $($key)?),
                        about: &[$($doc),+],
                        default: <$type as Setting>::to_toml(&$default),
                        allowed: allowed::<$type>($crate::config::section::range!($($range)?).as_ref()),
                        availability: Availability::Now,
                    },)*
                    $($(Key {
                        name: $later_key,
                        about: &[$($later_doc),+],
                        default: <$later_type as Setting>::to_toml(&$later_default),
                        allowed: allowed::<$later_type>(None),
                        availability: Availability::Later,
                    },)*)?
                ]
            }

            #[allow(unused_variables, reason = "a section may have no keys")]
            fn read(reader: &mut $crate::config::section::Reader<'_>) -> Self {
                $($(reader.take_later::<$later_type>($later_key, &$later_default);)*)?
                Self {
                    $($field: reader.take::<$type>(
                        $crate::config::section::key_name!($field $($key)?),
                        $crate::config::section::range!($($range)?),
                        $default,
                    )),*
                }
            }
        }
    };
}
pub(crate) use {key_name, range, section};
