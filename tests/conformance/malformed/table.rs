//! What the standards say must come back, one row for each rule, written from their text and never
//! from what the broker does. Where a standard leaves a choice, the row lists all of it.
//!
//! A broker of 3.x has no way to say why it closes, but for the return codes of CONNACK. One of 5.0
//! may say it, in CONNACK or DISCONNECT [MQTT-4.13.1-1]; this one promises to, so silence is listed
//! only where it cannot know that it speaks to a client of 5.0.

use flotte_tests::Version;

/// One thing that may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// The connection ends without a word.
    Silent,
    /// The connection ends after this code: in CONNACK before it was accepted, else in DISCONNECT.
    Code(u8),
    /// The connection goes on, whatever the packet is answered with.
    On,
    /// The connection goes on, and the answer is one packet of this type with this code.
    Answer(u8, u8),
}

use Allow::{Answer, Code, On, Silent};

#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    /// Where the standards say it: clauses, or a section where no clause is numbered.
    pub source: &'static str,
    pub v31: &'static [Allow],
    pub v311: &'static [Allow],
    pub v5: &'static [Allow],
}

impl Row {
    pub fn allowed(&self, version: Version) -> &'static [Allow] {
        match version {
            Version::V31 => self.v31,
            Version::V311 => self.v311,
            Version::V5 => self.v5,
        }
    }
}

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident $source:literal $v31:expr, $v311:expr, $v5:expr;)*) => {
        $($(#[$doc])* pub static $name: Row = Row {
            name: stringify!($name), source: $source, v31: &$v31, v311: &$v311, v5: &$v5,
        };)*
        pub static TABLE: &[&Row] = &[$(&$name),*];
    };
}

const PUBACK: u8 = 4;
const PUBREL: u8 = 6;
const PUBCOMP: u8 = 7;
const SUBACK: u8 = 9;
const UNSUBACK: u8 = 11;

table! {
    VALID "nothing is wrong with it" [On], [On], [On];
    GOODBYE "[MQTT-3.14.4-1], 5.0 3.14.4: the server closes too" [Silent], [Silent], [Silent];

    // --- what cannot be read ---
    MALFORMED "3.1.1 [MQTT-4.8.0-1], [MQTT-3.1.4-1]; 5.0 [MQTT-4.13.1-1], 1.2 Malformed Packet"
        [Silent], [Silent], [Code(0x81)];
    /// The client has not said yet that it speaks 5.0.
    UNREADABLE "[MQTT-3.1.4-1]: closed; the version is not known" [Silent], [Silent], [Silent, Code(0x81)];
    CUT_IN_VERSION "[MQTT-3.1.4-1], 5.0 3.1.2.2: the version is not readable"
        [Silent], [Silent], [Silent, Code(0x81), Code(0x84)];
    FLAGS "3.1.1 [MQTT-2.2.2-2]; 5.0 2.1.3, [MQTT-3.6.1-1], [MQTT-3.8.1-1], [MQTT-3.10.1-1], [MQTT-3.14.1-1], [MQTT-3.15.1-1]; 3.1 does not use them"
        [Silent, On], [Silent], [Code(0x81)];
    FLAGS_OF_CONNECT "3.1.1 [MQTT-2.2.2-2]; 5.0 2.1.3" [Silent, On], [Silent], [Silent, Code(0x81)];
    TYPE_0 "2.1.2 / 2.2.1: type 0 is forbidden" [Silent], [Silent], [Code(0x81), Code(0x82)];
    TYPE_15 "3.1.1 2.2.1: type 15 is forbidden; 5.0 [MQTT-4.12.0-7]" [Silent], [Silent], [Code(0x82)];
    VARINT_TOO_LONG "3.1.1 2.2.3, 5.0 1.5.5: at most four bytes" [Silent], [Silent], [Code(0x81)];
    VARINT_PADDED "5.0 [MQTT-1.5.5-1]; 3.x does not forbid it" [On, Silent], [On, Silent], [Code(0x81)];
    VARINT_PADDED_DISCONNECT "5.0 [MQTT-1.5.5-1]; in 3.x it is a DISCONNECT" [Silent], [Silent], [Code(0x81)];
    VARINT_PADDED_CONNECT "5.0 [MQTT-1.5.5-1]; 3.x does not forbid it" [On, Silent], [On, Silent], [Silent, Code(0x81)];
    TOO_LARGE "5.0 [MQTT-3.2.2-15], 0x95; 3.x: a limit of ours" [Silent], [Silent], [Code(0x95)];
    TOO_LARGE_CONNECT "5.0 3.2.2.2, 0x95; the version is not known" [Silent], [Silent], [Silent, Code(0x95)];
    NOT_UTF8 "3.1.1 [MQTT-1.5.3-1]; 5.0 [MQTT-1.5.4-1]" [Silent], [Silent], [Code(0x81)];
    NUL "3.1.1 [MQTT-1.5.3-2]; 5.0 [MQTT-1.5.4-2]; 3.1 says nothing" [Silent, On], [Silent], [Code(0x81), Code(0x82)];
    CLIENT_ID_NOT_UTF8 "3.1.1 [MQTT-1.5.3-1], [MQTT-3.1.3-4]; 5.0 [MQTT-1.5.4-1], 0x85" [Silent], [Silent], [Code(0x81), Code(0x85)];
    DISCOURAGED_TEXT "1.5.3 / 1.5.4: control and non-characters SHOULD NOT be sent; closing is allowed"
        [On, Silent], [On, Silent], [On, Code(0x81)];

    // --- CONNECT ---
    /// A level from 6 on is one of a later version, whose client may know either form.
    LEVEL_ABOVE "3.1.1 [MQTT-3.1.2-2]; 5.0 [MQTT-3.1.2-2]"
        [Code(1), Code(0x84), Silent], [Code(1), Code(0x84), Silent], [Code(1), Code(0x84), Silent];
    LEVEL_BELOW "3.1 3.2, 3.1.1 [MQTT-3.1.2-2]: of no client of 5.0" [Code(1)], [Code(1)], [Code(1)];
    WRONG_NAME "3.1.1 [MQTT-3.1.2-1]; 5.0 [MQTT-3.1.2-1]: closed, or handled as another version"
        [Code(1), Code(0x84), Silent], [Code(1), Code(0x84), Silent], [Code(1), Code(0x84), Silent];
    CONNECT_RESERVED_BIT "3.1.1 [MQTT-3.1.2-3]; 5.0 [MQTT-3.1.2-3]; 3.1 does not use it" [On, Silent], [Silent], [Code(0x81)];
    WILL_QOS_3 "3.1.1 [MQTT-3.1.2-14]; 5.0 [MQTT-3.1.2-12]" [Silent], [Silent], [Code(0x81)];
    WILL_FLAGS_ALONE "3.1.1 [MQTT-3.1.2-13], [MQTT-3.1.2-15]; 5.0 [MQTT-3.1.2-11], [MQTT-3.1.2-13]; 3.1 does not use them"
        [On, Silent], [Silent], [Code(0x81), Code(0x82)];
    PASSWORD_ALONE "3.1.1 [MQTT-3.1.2-22]; 5.0 [MQTT-3.1.2-19] allows it" [Silent], [Silent], [On];
    NO_CLIENT_ID "3.1 3.1: 1 to 23 characters; 3.1.1 [MQTT-3.1.3-8]; 5.0 [MQTT-3.1.3-6] assigns one" [Code(2)], [Code(2)], [On];
    EMPTY_CLIENT_ID_CLEAN "3.1 3.1: 1 to 23 characters; 3.1.1 [MQTT-3.1.3-6], 5.0 [MQTT-3.1.3-6]" [Code(2)], [On], [On];
    WILL_TOPIC "3.1.1 [MQTT-4.7.1-1], [MQTT-4.7.3-1]; 5.0 [MQTT-4.7.0-1], [MQTT-4.7.3-1], 0x90"
        [Silent], [Silent], [Code(0x81), Code(0x82), Code(0x90)];
    AUTH_METHOD "5.0 [MQTT-4.12.0-1]" [Silent], [Silent], [Code(0x8c), Code(0x87)];
    AUTH_DATA_ALONE "5.0 3.1.2.11.10" [Silent], [Silent], [Code(0x82)];
    /// In 3.1 the flags give way to the length of the packet.
    NAMES_LEFT_OUT "3.1 3.1, User name and password flags; 3.1.1 [MQTT-3.1.2-19], [MQTT-3.1.2-21]; 5.0 [MQTT-3.1.2-17], [MQTT-3.1.2-19]"
        [On], [Silent], [Code(0x81)];

    // --- states ---
    BEFORE_CONNECT "[MQTT-3.1.0-1]" [Silent], [Silent], [Silent];
    SECOND_CONNECT "3.1.1 [MQTT-3.1.0-2]; 5.0 [MQTT-3.1.0-2]" [Silent], [Silent], [Code(0x82)];
    SERVER_ONLY "2.1.2 / 2.2.1 direction of flow; 5.0 1.2 Protocol Error" [Silent], [Silent], [Code(0x82)];
    AUTH_UNASKED "5.0 [MQTT-4.12.0-7]" [Silent], [Silent], [Code(0x82)];
    AUTH_SPOILED "5.0 [MQTT-4.12.0-7], and whatever else is wrong" [Silent], [Silent], [Code(0x81), Code(0x82)];
    PUBACK_UNKNOWN "5.0 4.3.2: there is no answer to it" [On], [On], [On];
    PUBREC_UNKNOWN "5.0 3.6.2.1, 0x92; 3.x: PUBREL, or nothing" [On], [On], [Answer(PUBREL, 0x92)];
    PUBREL_UNKNOWN "3.1.1 [MQTT-4.3.3-2]; 5.0 [MQTT-4.3.3-11], 0x92" [Answer(PUBCOMP, 0)], [Answer(PUBCOMP, 0)], [Answer(PUBCOMP, 0x92)];
    PUBCOMP_UNKNOWN "5.0 4.3.3: there is no answer to it" [On], [On], [On];

    // --- fields ---
    ID_0 "3.1.1 [MQTT-2.3.1-1]; 5.0 [MQTT-2.2.1-3]" [Silent], [Silent], [Code(0x81), Code(0x82)];
    ID_0_OF_ACK "3.1.1 [MQTT-2.3.1-6]; 5.0 [MQTT-2.2.1-5]: no PUBLISH has it" [On, Silent], [On, Silent], [On, Code(0x81), Code(0x82)];
    QOS_3 "3.1.1 [MQTT-3.3.1-4]; 5.0 [MQTT-3.3.1-4]" [Silent], [Silent], [Code(0x81)];
    DUP_QOS_0 "3.1.1 [MQTT-3.3.1-2]; 5.0 [MQTT-3.3.1-2]; 3.1: DUP has no meaning there" [On, Silent], [Silent], [Code(0x81), Code(0x82)];
    TOPIC_WILDCARD "3.1.1 [MQTT-3.3.2-2]; 5.0 [MQTT-3.3.2-2], 0x90" [Silent], [Silent], [Code(0x81), Code(0x82), Code(0x90), Answer(PUBACK, 0x90)];
    TOPIC_EMPTY "3.1.1 [MQTT-4.7.3-1]; 5.0 3.3.2.1: and no alias" [Silent], [Silent], [Code(0x82)];
    ALIAS_UNSET "5.0 3.3.2.3.4: no mapping" [Silent], [Silent], [Code(0x82), Code(0x94)];
    ALIAS_0 "5.0 [MQTT-3.3.2-8], 0x94" [Silent], [Silent], [Code(0x82), Code(0x94)];
    ALIAS_TOO_HIGH "5.0 [MQTT-3.3.2-9], 0x94" [Silent], [Silent], [Code(0x94)];
    NO_FILTER "3.1.1 [MQTT-3.8.3-3], [MQTT-3.10.3-2]; 5.0 [MQTT-3.8.3-2], [MQTT-3.10.3-2]" [Silent], [Silent], [Code(0x82)];
    OPTIONS_RESERVED "3.1.1 [MQTT-3.8.3-4]; 5.0 [MQTT-3.8.3-5]; 3.1 does not use them" [Silent, On], [Silent], [Code(0x81)];
    OPTIONS_VALUE "3.1.1 [MQTT-3.8.3-4]; 5.0 3.8.3.1: QoS 3, retain handling 3" [Silent], [Silent], [Code(0x82)];
    OPTIONS_BOTH "3.1.1 [MQTT-3.8.3-4]; 5.0 [MQTT-3.8.3-5] and 3.8.3.1" [Silent], [Silent], [Code(0x81), Code(0x82)];
    FILTER "3.1.1 [MQTT-4.7.1-2], [MQTT-4.7.1-3], [MQTT-4.7.3-1]; 5.0 [MQTT-4.7.1-1], [MQTT-4.7.1-2], [MQTT-4.7.3-1], 0x8F"
        [Silent, Answer(SUBACK, 0x80)], [Silent, Answer(SUBACK, 0x80)],
        [Code(0x81), Code(0x82), Code(0x8f), Answer(SUBACK, 0x8f)];
    FILTER_OF_UNSUBSCRIBE "as FILTER; 3.x answers, as there is no such subscription [MQTT-3.10.4-5]"
        [Silent, On], [Silent, On], [Code(0x81), Code(0x82), Code(0x8f), Answer(UNSUBACK, 0x8f)];
    SHARE "5.0 [MQTT-4.8.2-1], [MQTT-4.8.2-2], 0x8F; 3.x knows no shares"
        [Silent, On], [Silent, On], [Code(0x81), Code(0x82), Code(0x8f), Answer(SUBACK, 0x8f)];
    SHARE_NO_LOCAL "5.0 [MQTT-3.8.3-4]" [Silent], [Silent], [Code(0x82)];
    REASON_CODE "5.0 [MQTT-3.4.2-1], [MQTT-3.5.2-1], [MQTT-3.6.2-1], [MQTT-3.7.2-1], [MQTT-3.14.2-1]" [], [], [Code(0x81), Code(0x82)];
    REASON_OF_SERVER "5.0 3.14.2.1: only a server sends it; the connection ends in any case" [], [], [Silent, Code(0x81), Code(0x82)];

    // --- properties ---
    PROPERTY_UNKNOWN "5.0 2.2.2.2: an identifier that is not valid for its packet type" [], [], [Code(0x81)];
    PROPERTY_MISPLACED "5.0 2.2.2.2: an identifier that is not valid for its packet type" [], [], [Code(0x81)];
    PROPERTY_CUT "5.0 2.2.2, 1.2 Malformed Packet" [], [], [Code(0x81)];
    PROPERTY_TWICE "5.0 3.1.2.11, 3.1.3.2, 3.3.2.3, 3.4.2.2, 3.8.2.1, 3.14.2.2: a Protocol Error" [], [], [Code(0x82)];
    PROPERTY_VALUE "5.0 3.1.2.11, 3.8.2.1.2: a Protocol Error" [], [], [Code(0x82)];
    PAYLOAD_FORMAT "5.0 3.3.2.3.2: 0 or 1" [], [], [Code(0x81), Code(0x82), Code(0x99)];
    RESPONSE_TOPIC "5.0 [MQTT-3.3.2-14]" [], [], [Code(0x81), Code(0x82), Code(0x90)];
    RESPONSE_TOPIC_EMPTY "5.0 [MQTT-4.7.3-1], where it is taken for a topic name" [], [], [On, Code(0x81), Code(0x82), Code(0x90)];
    SUBSCRIPTION_ID_FROM_CLIENT "5.0 [MQTT-3.3.4-6]" [], [], [Code(0x82)];
    EXPIRY_RAISED "5.0 3.14.2.2.2: zero in CONNECT, not zero in DISCONNECT" [], [], [Code(0x82)];
    SERVER_REFERENCE_FROM_CLIENT "5.0 3.14.2.2.5: only a server sends it; the connection ends in any case" [], [], [Silent, Code(0x81), Code(0x82)];
}
