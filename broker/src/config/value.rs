//! Values as they were given (TOML, environment or flag) and how a typed setting is read from them. Nothing here knows any
//! key; nothing here decides whether values fit together.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use flotte_mqtt::{QoS, Version};

/// A value before it has a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Raw {
    Bool(bool),
    Integer(i64),
    Text(String),
    List(Vec<Raw>),
    /// A table without keys.
    Table,
    /// A table or anything else that no setting is read from, as it shall be shown.
    Other(String),
    /// From the environment or a flag: text that may stand for a number, a switch or a list.
    Word(String),
}

impl fmt::Display for Raw {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(out, "{value}"),
            Self::Integer(value) => write!(out, "{value}"),
            Self::Text(text) | Self::Word(text) => out.write_str(&quoted(text)),
            Self::List(items) => {
                let shown: Vec<String> = items.iter().map(Raw::to_string).collect();
                write!(out, "[{}]", shown.join(", "))
            }
            Self::Table => out.write_str("{}"),
            Self::Other(shown) => out.write_str(shown),
        }
    }
}

impl Raw {
    /// The text of a string, wherever it comes from.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Word(text) => Some(text),
            _ => None,
        }
    }

    fn number(&self) -> Option<u64> {
        match self {
            Self::Integer(value) => u64::try_from(*value).ok(),
            Self::Word(text) => text.trim().replace('_', "").parse().ok(),
            _ => None,
        }
    }
}

/// `text` as a TOML basic string.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            control if control.is_control() => {
                out.push_str(&format!("\\u{:04X}", u32::from(control)))
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// Why a value was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not what [`Setting::allowed`] says.
    Bad,
    /// A known value of a feature that this version does not have.
    NotYet,
}

/// A type that a key can have.
pub trait Setting: Sized + PartialEq {
    /// What is allowed, as the end of "allowed is ...".
    fn allowed() -> Cow<'static, str>;

    /// Reads the value.
    fn parse(raw: &Raw) -> Result<Self, Refusal>;

    /// The value as TOML; `None` for what is not set.
    fn to_toml(&self) -> Option<String>;

    /// What a range applies to.
    fn magnitude(&self) -> Option<u64> {
        None
    }

    /// How an end of a range is shown.
    fn show_magnitude(magnitude: u64) -> String {
        magnitude.to_string()
    }
}

impl<T: Setting> Setting for Option<T> {
    fn allowed() -> Cow<'static, str> {
        T::allowed()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        T::parse(raw).map(Some)
    }
    fn to_toml(&self) -> Option<String> {
        self.as_ref().and_then(T::to_toml)
    }
    fn magnitude(&self) -> Option<u64> {
        self.as_ref().and_then(T::magnitude)
    }
    fn show_magnitude(magnitude: u64) -> String {
        T::show_magnitude(magnitude)
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn allowed() -> Cow<'static, str> {
        format!("a list, each item {}", T::allowed()).into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw {
            Raw::List(items) => items.iter().map(T::parse).collect(),
            // The environment and flags give lists separated by commas.
            Raw::Word(text) => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| T::parse(&Raw::Word(item.to_owned())))
                .collect(),
            _ => Err(Refusal::Bad),
        }
    }
    fn to_toml(&self) -> Option<String> {
        let items: Vec<String> = self.iter().filter_map(T::to_toml).collect();
        Some(format!("[{}]", items.join(", ")))
    }
}

impl Setting for bool {
    fn allowed() -> Cow<'static, str> {
        "true or false".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw {
            Raw::Bool(value) => Ok(*value),
            Raw::Word(text) => match text.as_str() {
                "true" | "1" | "yes" | "on" => Ok(true),
                "false" | "0" | "no" | "off" => Ok(false),
                _ => Err(Refusal::Bad),
            },
            _ => Err(Refusal::Bad),
        }
    }
    fn to_toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

macro_rules! number_setting {
    ($($type:ty),+) => {$(
        impl Setting for $type {
            fn allowed() -> Cow<'static, str> {
                "a whole number".into()
            }
            fn parse(raw: &Raw) -> Result<Self, Refusal> {
                raw.number().and_then(|number| number.try_into().ok()).ok_or(Refusal::Bad)
            }
            fn to_toml(&self) -> Option<String> {
                Some(self.to_string())
            }
            fn magnitude(&self) -> Option<u64> {
                Some(u64::from(*self))
            }
        }
    )+};
}
number_setting!(u8, u16, u32, u64);

impl Setting for String {
    fn allowed() -> Cow<'static, str> {
        "a text".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        raw.text().map(str::to_owned).ok_or(Refusal::Bad)
    }
    fn to_toml(&self) -> Option<String> {
        Some(quoted(self))
    }
}

impl Setting for PathBuf {
    fn allowed() -> Cow<'static, str> {
        "a path".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw.text() {
            Some(text) if !text.is_empty() && !text.contains('\0') => Ok(Self::from(text)),
            _ => Err(Refusal::Bad),
        }
    }
    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string_lossy()))
    }
}

impl Setting for SocketAddr {
    fn allowed() -> Cow<'static, str> {
        "an IP address and a port, as 127.0.0.1:1883 or [::1]:1883".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        raw.text()
            .and_then(|text| text.trim().parse().ok())
            .ok_or(Refusal::Bad)
    }
    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

impl Setting for QoS {
    fn allowed() -> Cow<'static, str> {
        "0, 1 or 2".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        let number = raw.number().and_then(|number| u8::try_from(number).ok());
        number
            .and_then(|number| Self::try_from(number).ok())
            .ok_or(Refusal::Bad)
    }
    fn to_toml(&self) -> Option<String> {
        Some((*self as u8).to_string())
    }
}

impl Setting for Version {
    fn allowed() -> Cow<'static, str> {
        "3 (MQTT 3.1), 4 (3.1.1) or 5 (5.0)".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw.number() {
            Some(3) => Ok(Self::V3),
            Some(4) => Ok(Self::V4),
            Some(5) => Ok(Self::V5),
            _ => Err(Refusal::Bad),
        }
    }
    fn to_toml(&self) -> Option<String> {
        Some(self.level().to_string())
    }
}

/// Makes an enum of words; words of features that are not there yet stand under `later`.
macro_rules! choice {
    (
        $(#[$meta:meta])*
        $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal),+ $(,)? }
        $(later { $($later:literal),+ $(,)? })?
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant),+
        }

        impl $name {
            /// The word that stands in the configuration.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl $crate::config::value::Setting for $name {
            fn allowed() -> std::borrow::Cow<'static, str> {
                [$(concat!("\"", $word, "\"")),+].join(" or ").into()
            }
            fn parse(raw: &$crate::config::value::Raw) -> Result<Self, $crate::config::value::Refusal> {
                match raw.text() {
                    $(Some($word) => Ok(Self::$variant),)+
                    $($(Some($later) => Err($crate::config::value::Refusal::NotYet),)+)?
                    _ => Err($crate::config::value::Refusal::Bad),
                }
            }
            fn to_toml(&self) -> Option<String> {
                Some($crate::config::value::quoted(self.as_str()))
            }
        }
    };
}
pub(crate) use choice;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn word<T: Setting>(text: &str) -> Result<T, Refusal> {
        T::parse(&Raw::Word(text.to_owned()))
    }

    #[test]
    fn a_word_stands_for_any_type() {
        assert_eq!(word::<u16>("10_000"), Ok(10_000));
        assert_eq!(word::<bool>("true"), Ok(true));
        assert_eq!(word::<Vec<u16>>("1, 2,3"), Ok(vec![1, 2, 3]));
        assert_eq!(word::<QoS>("2"), Ok(QoS::ExactlyOnce));
        assert_eq!(
            word::<SocketAddr>("[::1]:1883"),
            Ok("[::1]:1883".parse().unwrap())
        );
    }

    #[test]
    fn a_toml_string_is_no_number() {
        assert_eq!(u16::parse(&Raw::Text("5".into())), Err(Refusal::Bad));
        assert_eq!(bool::parse(&Raw::Text("true".into())), Err(Refusal::Bad));
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert_eq!(u16::parse(&Raw::Integer(70_000)), Err(Refusal::Bad));
        assert_eq!(u16::parse(&Raw::Integer(-1)), Err(Refusal::Bad));
        assert_eq!(QoS::parse(&Raw::Integer(3)), Err(Refusal::Bad));
        assert_eq!(Version::parse(&Raw::Integer(6)), Err(Refusal::Bad));
    }

    #[test]
    fn quoting_survives_toml() {
        for text in [
            "plain",
            "with \"quotes\"",
            "back\\slash",
            "tab\tnew\nline",
            "\u{1}",
        ] {
            let parsed: toml::Table = format!("key = {}", quoted(text)).parse().unwrap();
            assert_eq!(parsed["key"].as_str(), Some(text));
        }
    }
}
