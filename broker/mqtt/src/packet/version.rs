//! The three versions of the protocol.

use std::fmt;

/// A version of MQTT, by its protocol level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Version {
    /// MQTT 3.1, whose CONNECT names itself `MQIsdp`.
    V3 = 3,
    /// MQTT 3.1.1.
    V4 = 4,
    /// MQTT 5.0.
    V5 = 5,
}

impl Version {
    /// The protocol level in CONNECT.
    pub const fn level(self) -> u8 {
        self as u8
    }

    /// The version with this protocol level.
    pub const fn from_level(level: u8) -> Option<Self> {
        match level {
            3 => Some(Self::V3),
            4 => Some(Self::V4),
            5 => Some(Self::V5),
            _ => None,
        }
    }

    /// The protocol name in CONNECT.
    pub const fn protocol_name(self) -> &'static str {
        match self {
            Self::V3 => "MQIsdp",
            Self::V4 | Self::V5 => "MQTT",
        }
    }
}

/// The protocol level of a CONNECT: a version, and whether the client says that it is a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) version: Version,
    pub(crate) is_bridge: bool,
}

impl Level {
    /// What bridges of 3.x add to their level. No standard knows it; mosquitto's bridges say it, and the brokers that they are
    /// made for understand it.
    const BRIDGE: u8 = 0x80;

    /// None = no version has this level.
    pub(crate) fn parse(level: u8) -> Option<Self> {
        let is_bridge = level & Self::BRIDGE != 0;
        let version = Version::from_level(level & !Self::BRIDGE)?;
        // 5.0 has options of subscriptions for what it means.
        (version < Version::V5 || !is_bridge).then_some(Self { version, is_bridge })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V3 => "3.1",
            Self::V4 => "3.1.1",
            Self::V5 => "5.0",
        })
    }
}
