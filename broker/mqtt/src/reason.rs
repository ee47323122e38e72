//! The reason codes of MQTT 5.0, used inside for every version; the codec maps them to what 3.x can
//! say. One table holds each code, its name and the packets that may carry it.

use std::fmt;

use crate::packet::QoS;
use crate::property::Context;

macro_rules! reason_codes {
    ($($code:literal $variant:ident $name:literal in $($packet:ident)|+;)*) => {
        /// Why a request was granted or refused, or a connection closed (5.0, section 2.4).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum ReasonCode {
            $(#[doc = concat!("`", stringify!($code), "`: ", $name, ".")] $variant = $code,)*
        }

        impl ReasonCode {
            /// Every code, in rising order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// What the standard calls it, in lower case.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Whether the tables of the standard let this packet carry this code.
            pub const fn is_allowed_in(self, context: Context) -> bool {
                let contexts = match self {
                    $(Self::$variant => $(Context::$packet.bit())|+,)*
                };
                contexts & context.bit() != 0
            }
        }

        impl TryFrom<u8> for ReasonCode {
            type Error = UnknownReasonCode;

            fn try_from(code: u8) -> Result<Self, UnknownReasonCode> {
                match code {
                    $($code => Ok(Self::$variant),)*
                    _ => Err(UnknownReasonCode(code)),
                }
            }
        }
    };
}

reason_codes! {
    0x00 Success "success" in ConnAck | PubAck | PubRec | PubRel | PubComp | SubAck | UnsubAck | Disconnect | Auth;
    0x01 GrantedQoS1 "granted QoS 1" in SubAck;
    0x02 GrantedQoS2 "granted QoS 2" in SubAck;
    0x04 DisconnectWithWill "disconnect with will message" in Disconnect;
    0x10 NoMatchingSubscribers "no matching subscribers" in PubAck | PubRec;
    0x11 NoSubscriptionExisted "no subscription existed" in UnsubAck;
    0x18 ContinueAuthentication "continue authentication" in Auth;
    0x19 ReAuthenticate "re-authenticate" in Auth;
    0x80 UnspecifiedError "unspecified error" in ConnAck | PubAck | PubRec | SubAck | UnsubAck | Disconnect;
    0x81 MalformedPacket "malformed packet" in ConnAck | Disconnect;
    0x82 ProtocolError "protocol error" in ConnAck | Disconnect;
    0x83 ImplementationSpecificError "implementation specific error" in ConnAck | PubAck | PubRec | SubAck | UnsubAck | Disconnect;
    0x84 UnsupportedProtocolVersion "unsupported protocol version" in ConnAck;
    0x85 ClientIdentifierNotValid "client identifier not valid" in ConnAck;
    0x86 BadUserNameOrPassword "bad user name or password" in ConnAck;
    0x87 NotAuthorized "not authorized" in ConnAck | PubAck | PubRec | SubAck | UnsubAck | Disconnect;
    0x88 ServerUnavailable "server unavailable" in ConnAck;
    0x89 ServerBusy "server busy" in ConnAck | Disconnect;
    0x8A Banned "banned" in ConnAck;
    0x8B ServerShuttingDown "server shutting down" in Disconnect;
    0x8C BadAuthenticationMethod "bad authentication method" in ConnAck | Disconnect;
    0x8D KeepAliveTimeout "keep alive timeout" in Disconnect;
    0x8E SessionTakenOver "session taken over" in Disconnect;
    0x8F TopicFilterInvalid "topic filter invalid" in SubAck | UnsubAck | Disconnect;
    0x90 TopicNameInvalid "topic name invalid" in ConnAck | PubAck | PubRec | Disconnect;
    0x91 PacketIdentifierInUse "packet identifier in use" in PubAck | PubRec | SubAck | UnsubAck;
    0x92 PacketIdentifierNotFound "packet identifier not found" in PubRel | PubComp;
    0x93 ReceiveMaximumExceeded "receive maximum exceeded" in Disconnect;
    0x94 TopicAliasInvalid "topic alias invalid" in Disconnect;
    0x95 PacketTooLarge "packet too large" in ConnAck | Disconnect;
    0x96 MessageRateTooHigh "message rate too high" in Disconnect;
    0x97 QuotaExceeded "quota exceeded" in ConnAck | PubAck | PubRec | SubAck | Disconnect;
    0x98 AdministrativeAction "administrative action" in Disconnect;
    0x99 PayloadFormatInvalid "payload format invalid" in ConnAck | PubAck | PubRec | Disconnect;
    0x9A RetainNotSupported "retain not supported" in ConnAck | Disconnect;
    0x9B QoSNotSupported "QoS not supported" in ConnAck | Disconnect;
    0x9C UseAnotherServer "use another server" in ConnAck | Disconnect;
    0x9D ServerMoved "server moved" in ConnAck | Disconnect;
    0x9E SharedSubscriptionsNotSupported "shared subscriptions not supported" in SubAck | Disconnect;
    0x9F ConnectionRateExceeded "connection rate exceeded" in ConnAck | Disconnect;
    0xA0 MaximumConnectTime "maximum connect time" in Disconnect;
    0xA1 SubscriptionIdentifiersNotSupported "subscription identifiers not supported" in SubAck | Disconnect;
    0xA2 WildcardSubscriptionsNotSupported "wildcard subscriptions not supported" in SubAck | Disconnect;
}

/// A byte that is no reason code of 5.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0:#04x} is no reason code")]
pub struct UnknownReasonCode(pub u8);

impl ReasonCode {
    /// What DISCONNECT calls 0x00.
    pub const NORMAL_DISCONNECTION: Self = Self::Success;
    /// What SUBACK calls 0x00.
    pub const GRANTED_QOS_0: Self = Self::Success;

    /// The SUBACK code that grants this QoS.
    pub const fn granted(qos: QoS) -> Self {
        match qos {
            QoS::AtMostOnce => Self::GRANTED_QOS_0,
            QoS::AtLeastOnce => Self::GrantedQoS1,
            QoS::ExactlyOnce => Self::GrantedQoS2,
        }
    }

    /// The code as it stands in packets.
    pub const fn value(self) -> u8 {
        self as u8
    }

    /// Whether the code says that the request failed.
    pub const fn is_error(self) -> bool {
        self.value() >= 0x80
    }

    /// The CONNACK return code of 3.1 and 3.1.1 that says the same, 0 to 5. `None` when there is
    /// none: then the server closes the connection without a CONNACK
    /// ([MQTT-3.2.2-6] of 3.1.1).
    pub const fn connack_return_code(self) -> Option<u8> {
        match self {
            Self::Success => Some(0),
            Self::UnsupportedProtocolVersion => Some(1),
            Self::ClientIdentifierNotValid => Some(2),
            Self::UnspecifiedError
            | Self::ImplementationSpecificError
            | Self::ServerUnavailable
            | Self::ServerBusy
            | Self::QuotaExceeded
            | Self::UseAnotherServer
            | Self::ServerMoved
            | Self::ConnectionRateExceeded => Some(3),
            Self::BadUserNameOrPassword => Some(4),
            Self::NotAuthorized | Self::Banned | Self::BadAuthenticationMethod => Some(5),
            _ => None,
        }
    }

    /// The code for a CONNACK return code of 3.1 or 3.1.1; `None` for a reserved one.
    pub const fn from_connack_return_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Success),
            1 => Some(Self::UnsupportedProtocolVersion),
            2 => Some(Self::ClientIdentifierNotValid),
            3 => Some(Self::ServerUnavailable),
            4 => Some(Self::BadUserNameOrPassword),
            5 => Some(Self::NotAuthorized),
            _ => None,
        }
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#04x})", self.name(), self.value())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_read_back_from_its_byte() {
        assert_eq!(ReasonCode::ALL.len(), 43);
        for code in ReasonCode::ALL {
            assert_eq!(ReasonCode::try_from(code.value()).unwrap(), *code);
        }
        assert_eq!(ReasonCode::try_from(0x03), Err(UnknownReasonCode(0x03)));
        assert_eq!(ReasonCode::try_from(0xA3), Err(UnknownReasonCode(0xA3)));
    }

    #[test]
    fn return_codes_of_3x_are_read_back() {
        for code in 0..=5 {
            let reason = ReasonCode::from_connack_return_code(code).unwrap();
            assert_eq!(reason.connack_return_code(), Some(code));
        }
        assert_eq!(ReasonCode::from_connack_return_code(6), None);
    }

    #[test]
    fn a_code_without_counterpart_in_3x_has_no_return_code() {
        assert_eq!(ReasonCode::PacketTooLarge.connack_return_code(), None);
        assert_eq!(ReasonCode::MalformedPacket.connack_return_code(), None);
        assert_eq!(ReasonCode::Banned.connack_return_code(), Some(5));
    }

    #[test]
    fn packets_carry_only_the_codes_of_their_tables() {
        let count = |context| {
            let allowed = ReasonCode::ALL.iter().filter(|c| c.is_allowed_in(context));
            allowed.count()
        };
        assert_eq!(count(Context::ConnAck), 22);
        assert_eq!(count(Context::PubAck), 9);
        assert_eq!(count(Context::PubRec), 9);
        assert_eq!(count(Context::PubRel), 2);
        assert_eq!(count(Context::PubComp), 2);
        assert_eq!(count(Context::SubAck), 12);
        assert_eq!(count(Context::UnsubAck), 7);
        // The table of DISCONNECT and 0x8C, which section 2.4 names for it.
        assert_eq!(count(Context::Disconnect), 30);
        assert_eq!(count(Context::Auth), 3);
    }

    #[test]
    fn errors_start_at_0x80() {
        assert!(!ReasonCode::ReAuthenticate.is_error());
        assert!(ReasonCode::UnspecifiedError.is_error());
        assert_eq!(
            ReasonCode::SessionTakenOver.to_string(),
            "session taken over (0x8e)"
        );
    }
}
