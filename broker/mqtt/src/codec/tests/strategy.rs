//! Arbitrary packets that are valid in a version.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::packet::*;
use crate::property::{Context, Properties, Property};
use crate::reason::ReasonCode;
use crate::text::ByteStr;

fn text() -> impl Strategy<Value = ByteStr> {
    "[a-z+#$/ \u{1}\u{FEFF}é€😀]{0,12}".prop_map(|text| ByteStr::try_from(text).unwrap())
}

fn some_text() -> impl Strategy<Value = ByteStr> {
    "[a-zé/]{1,20}".prop_map(|text| ByteStr::try_from(text).unwrap())
}

fn binary() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn packet_id() -> impl Strategy<Value = PacketId> {
    (1..=u16::MAX).prop_map(|value| PacketId::new(value).unwrap())
}

fn qos() -> impl Strategy<Value = QoS> {
    select(vec![QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
}

fn property() -> impl Strategy<Value = Property> {
    let numbers = prop_oneof![
        (0..=1_u8).prop_map(Property::PayloadFormat),
        any::<u32>().prop_map(Property::MessageExpiry),
        (1..=268_435_455_u32).prop_map(Property::SubscriptionId),
        any::<u32>().prop_map(Property::SessionExpiry),
        any::<u16>().prop_map(Property::ServerKeepAlive),
        any::<u32>().prop_map(Property::WillDelay),
        (1..=u16::MAX).prop_map(Property::ReceiveMaximum),
        any::<u16>().prop_map(Property::TopicAliasMaximum),
        (1..=u16::MAX).prop_map(Property::TopicAlias),
        (1..=u32::MAX).prop_map(Property::MaximumPacketSize),
        select(vec![QoS::AtMostOnce, QoS::AtLeastOnce]).prop_map(Property::MaximumQoS),
    ];
    let flags = prop_oneof![
        any::<bool>().prop_map(Property::RequestProblemInfo),
        any::<bool>().prop_map(Property::RequestResponseInfo),
        any::<bool>().prop_map(Property::RetainAvailable),
        any::<bool>().prop_map(Property::WildcardAvailable),
        any::<bool>().prop_map(Property::SubscriptionIdsAvailable),
        any::<bool>().prop_map(Property::SharedAvailable),
    ];
    let texts = prop_oneof![
        text().prop_map(Property::ContentType),
        some_text().prop_map(Property::ResponseTopic),
        binary().prop_map(Property::CorrelationData),
        text().prop_map(Property::AssignedClientId),
        text().prop_map(Property::AuthMethod),
        binary().prop_map(Property::AuthData),
        text().prop_map(Property::ResponseInfo),
        text().prop_map(Property::ServerReference),
        text().prop_map(Property::ReasonString),
        (text(), text()).prop_map(|(name, value)| Property::user(name, value)),
    ];
    prop_oneof![numbers, flags, texts]
}

/// Properties that may stand in this packet together.
pub(super) fn properties(context: Context) -> impl Strategy<Value = Properties> {
    vec(property(), 0..12).prop_map(move |list| {
        let mut properties = Properties::new();
        for property in list {
            let mut longer = properties.clone();
            longer.push(property);
            if longer.check(context).is_ok() {
                properties = longer;
            }
        }
        properties
    })
}

fn properties_in(version: Version, context: Context) -> BoxedStrategy<Properties> {
    match version {
        Version::V5 => properties(context).boxed(),
        Version::V3 | Version::V4 => Just(Properties::new()).boxed(),
    }
}

fn reason(context: Context) -> impl Strategy<Value = ReasonCode> {
    let allowed = ReasonCode::ALL.iter().copied();
    select(
        allowed
            .filter(|reason| reason.is_allowed_in(context))
            .collect::<Vec<_>>(),
    )
}

fn reason_in(version: Version, context: Context) -> BoxedStrategy<ReasonCode> {
    match version {
        Version::V5 => reason(context).boxed(),
        Version::V3 | Version::V4 => Just(ReasonCode::Success).boxed(),
    }
}

fn connect(version: Version) -> impl Strategy<Value = Packet> {
    let will = (
        (text(), binary(), qos(), any::<bool>()),
        properties_in(version, Context::Will),
    );
    let will = will.prop_map(|((topic, payload, qos, retain), properties)| Will {
        topic,
        payload,
        qos,
        retain,
        properties,
    });
    let who = (text(), option::of(text()), option::of(binary()));
    let how = (any::<bool>(), any::<u16>(), option::of(will));
    let properties = properties_in(version, Context::Connect);
    (who, how, properties).prop_map(move |(who, how, mut properties)| {
        let (client_id, username, password) = who;
        let (clean_start, keep_alive_s, will) = how;
        if properties.auth_method().is_none() {
            properties.remove(crate::property::PropertyId::AuthData);
        }
        let allowed = version == Version::V5 || username.is_some();
        let packet = Connect {
            version,
            client_id,
            clean_start,
            keep_alive_s,
            will,
            username,
            password: password.filter(|_| allowed),
            properties,
        };
        packet.into()
    })
}

fn connack(version: Version) -> impl Strategy<Value = Packet> {
    let reasons = match version {
        Version::V5 => reason(Context::ConnAck).boxed(),
        Version::V3 | Version::V4 => (0..=5_u8)
            .prop_map(|code| ReasonCode::from_connack_return_code(code).unwrap())
            .boxed(),
    };
    let properties = properties_in(version, Context::ConnAck);
    (any::<bool>(), reasons, properties).prop_map(move |(present, reason, properties)| {
        let may = version > Version::V3 && reason == ReasonCode::Success;
        let packet = ConnAck {
            session_present: present && may,
            reason,
            properties,
        };
        packet.into()
    })
}

fn publish(version: Version) -> impl Strategy<Value = Packet> {
    let flags = (any::<bool>(), qos(), any::<bool>(), packet_id());
    let content = (some_text(), any::<bool>(), binary());
    let properties = properties_in(version, Context::Publish);
    (flags, content, properties).prop_map(|(flags, content, properties)| {
        let (dup, qos, retain, packet_id) = flags;
        let (topic, by_alias, payload) = content;
        let by_alias = by_alias && properties.topic_alias().is_some();
        let packet = Publish {
            dup: dup && qos > QoS::AtMostOnce,
            qos,
            retain,
            topic: if by_alias { ByteStr::new() } else { topic },
            packet_id: (qos > QoS::AtMostOnce).then_some(packet_id),
            properties,
            payload,
        };
        packet.into()
    })
}

macro_rules! acknowledgement {
    ($function:ident $packet:ident) => {
        fn $function(version: Version) -> impl Strategy<Value = Packet> {
            let reason = reason_in(version, Context::$packet);
            let properties = properties_in(version, Context::$packet);
            (packet_id(), reason, properties).prop_map(|(packet_id, reason, properties)| {
                let packet = $packet {
                    packet_id,
                    reason,
                    properties,
                };
                packet.into()
            })
        }
    };
}

acknowledgement!(puback PubAck);
acknowledgement!(pubrec PubRec);
acknowledgement!(pubrel PubRel);
acknowledgement!(pubcomp PubComp);

fn options(version: Version) -> BoxedStrategy<SubscribeOptions> {
    let handling = select(vec![
        RetainHandling::SendAlways,
        RetainHandling::SendIfNew,
        RetainHandling::Never,
    ]);
    let options = (qos(), any::<bool>(), any::<bool>(), handling);
    options
        .prop_map(
            move |(qos, no_local, retain_as_published, retain_handling)| {
                if version < Version::V5 {
                    return SubscribeOptions::with_qos(qos);
                }
                SubscribeOptions {
                    qos,
                    no_local,
                    retain_as_published,
                    retain_handling,
                }
            },
        )
        .boxed()
}

fn subscribe(version: Version) -> impl Strategy<Value = Packet> {
    let filters = vec((text(), options(version)), 1..5);
    let properties = properties_in(version, Context::Subscribe);
    (packet_id(), properties, filters).prop_map(|(packet_id, properties, filters)| {
        let packet = Subscribe {
            packet_id,
            properties,
            filters,
        };
        packet.into()
    })
}

fn suback(version: Version) -> impl Strategy<Value = Packet> {
    let reasons = match version {
        Version::V5 => reason(Context::SubAck).boxed(),
        Version::V3 | Version::V4 => select(vec![
            ReasonCode::GRANTED_QOS_0,
            ReasonCode::GrantedQoS1,
            ReasonCode::GrantedQoS2,
            ReasonCode::UnspecifiedError,
        ])
        .boxed(),
    };
    let properties = properties_in(version, Context::SubAck);
    (packet_id(), vec(reasons, 1..5), properties).prop_map(|(packet_id, reasons, properties)| {
        let packet = SubAck {
            packet_id,
            reasons,
            properties,
        };
        packet.into()
    })
}

fn unsubscribe(version: Version) -> impl Strategy<Value = Packet> {
    let properties = properties_in(version, Context::Unsubscribe);
    (packet_id(), vec(text(), 1..5), properties).prop_map(|(packet_id, filters, properties)| {
        let packet = Unsubscribe {
            packet_id,
            filters,
            properties,
        };
        packet.into()
    })
}

fn unsuback(version: Version) -> impl Strategy<Value = Packet> {
    let reasons = match version {
        Version::V5 => vec(reason(Context::UnsubAck), 1..5).boxed(),
        Version::V3 | Version::V4 => Just(Vec::new()).boxed(),
    };
    let properties = properties_in(version, Context::UnsubAck);
    (packet_id(), reasons, properties).prop_map(|(packet_id, reasons, properties)| {
        let packet = UnsubAck {
            packet_id,
            reasons,
            properties,
        };
        packet.into()
    })
}

fn disconnect(version: Version) -> impl Strategy<Value = Packet> {
    let reason = reason_in(version, Context::Disconnect);
    let properties = properties_in(version, Context::Disconnect);
    (reason, properties).prop_map(|(reason, properties)| Disconnect { reason, properties }.into())
}

fn auth() -> impl Strategy<Value = Packet> {
    let properties = properties(Context::Auth);
    (reason(Context::Auth), text(), properties).prop_map(|(reason, method, mut properties)| {
        if properties.auth_method().is_none() {
            properties.push(Property::AuthMethod(method));
        }
        Auth { reason, properties }.into()
    })
}

/// Any packet of the version.
pub(super) fn packet(version: Version) -> BoxedStrategy<Packet> {
    let acknowledgements = prop_oneof![
        puback(version),
        pubrec(version),
        pubrel(version),
        pubcomp(version),
    ];
    let subscriptions = prop_oneof![
        subscribe(version),
        suback(version),
        unsubscribe(version),
        unsuback(version),
    ];
    let bare = prop_oneof![Just(Packet::PingReq), Just(Packet::PingResp)];
    let of_all = prop_oneof![
        connect(version),
        connack(version),
        publish(version),
        acknowledgements,
        subscriptions,
        disconnect(version),
        bare,
    ];
    match version {
        Version::V5 => prop_oneof![8 => of_all, 1 => auth()].boxed(),
        Version::V3 | Version::V4 => of_all.boxed(),
    }
}
