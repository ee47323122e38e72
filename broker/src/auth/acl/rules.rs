//! The rules in force, and what they say: the first rule that fits decides, and where none does the default. Pure; nothing
//! here reads a file or knows a session.

use flotte_mqtt::QoS;
use flotte_mqtt::topic::{TopicFilter, TopicName};
use foldhash::quality::RandomState;
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::pattern::{Pattern, Relation};
use super::subject::{Subject, User, Who};
use crate::config::acl::Effect;

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub effect: Effect,
    pub who: Who,
    pub action: Action,
    /// None = every topic, also the broker's own.
    pub topics: Option<Box<[Pattern]>>,
    pub qos: QosSet,
    /// Means publishes with, or without, RETAIN, and no subscription.
    pub retain: Option<bool>,
}

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Publish,
    Subscribe,
    All,
}

/// A set of levels of QoS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QosSet(u8);

/// What becomes of a subscription to more than what is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wide {
    /// It is refused, unless a rule that allows covers it wholly.
    Refused,
    /// It gives what is allowed of it.
    Narrowed,
}

/// How much of a subscription is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    /// All of it: no delivery needs to be judged.
    Whole,
    /// Some of it: each delivery is judged.
    Partly,
}

/// All rules, in their order. Replaced as a whole.
#[derive(Debug)]
pub struct Rules {
    rules: Box<[Rule]>,
    default: Effect,
    wide: Wide,
    /// Places of the rules for one user name or one client, each in order; there may be very many.
    by_user: Index,
    by_client: Index,
    /// Places of all others.
    others: Vec<u32>,
    /// Which rules of this node these are, from 1.
    generation: u32,
}

type Index = HashMap<Box<str>, Vec<u32>, RandomState>;

impl Rules {
    /// Rules that are not in force yet.
    pub fn new(rules: Vec<Rule>, default: Effect, wide: Wide) -> Self {
        let (mut by_user, mut by_client) = (Index::default(), Index::default());
        let mut others = Vec::new();
        for (at, rule) in (0..).zip(&rules) {
            let user = match &rule.who.user {
                Some(User::Named(glob)) => glob.exact(),
                _ => None,
            };
            let client = rule.who.client.as_ref().and_then(|glob| glob.exact());
            match (user, client) {
                (Some(user), _) => by_user.entry(user.into()).or_default().push(at),
                (None, Some(client)) => by_client.entry(client.into()).or_default().push(at),
                (None, None) => others.push(at),
            }
        }
        Self {
            rules: rules.into(),
            default,
            wide,
            by_user,
            by_client,
            others,
            generation: 0,
        }
    }

    /// The same rules, as those of this number.
    pub(super) fn numbered(self, generation: u32) -> Self {
        Self { generation, ..self }
    }

    /// Which rules of this node these are, from 1.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is only the default.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a client may publish this, also as its will.
    pub fn may_publish(&self, who: &Subject, topic: &TopicName, qos: QoS, retain: bool) -> bool {
        let fits = |rule: &&Rule| {
            rule.action != Action::Subscribe
                && rule.qos.holds(qos)
                && rule.retain.is_none_or(|wanted| wanted == retain)
                && rule.matches(topic, who)
        };
        self.of(who)
            .find(fits)
            .map_or(self.default, |rule| rule.effect)
            == Effect::Allow
    }

    /// Whether a message may be delivered to a client that has subscribed with this QoS.
    pub fn may_receive(&self, who: &Subject, topic: &TopicName, qos: QoS) -> bool {
        let mut rules = self.of_subscriptions(who, qos);
        let decides = rules.find(|rule| rule.matches(topic, who));
        decides.map_or(self.default, |rule| rule.effect) == Effect::Allow
    }

    /// The highest QoS, up to that of the subscription, at which a message may be delivered.
    pub fn received_qos(&self, who: &Subject, topic: &TopicName, max: QoS) -> Option<QoS> {
        [QoS::ExactlyOnce, QoS::AtLeastOnce, QoS::AtMostOnce]
            .into_iter()
            .filter(|qos| *qos <= max)
            .find(|qos| self.may_receive(who, topic, *qos))
    }

    /// Judges a subscription, a shared one by its filter: the first rule one of whose filters covers it wholly decides. None =
    /// it is refused.
    pub fn granted(&self, who: &Subject, filter: &TopicFilter, qos: QoS) -> Option<Granted> {
        // What rules before the one that decides say of a part of it.
        let (mut denied, mut allowed) = (false, false);
        let mut decision = self.default;
        for rule in self.of_subscriptions(who, qos) {
            match (rule.relation(filter, who), rule.effect) {
                (Relation::Covers, effect) => {
                    decision = effect;
                    break;
                }
                (Relation::Overlaps, Effect::Deny) => denied = true,
                (Relation::Overlaps, Effect::Allow) => allowed = true,
                (Relation::Apart, _) => {}
            }
        }
        match decision {
            Effect::Allow if denied => Some(Granted::Partly),
            Effect::Allow => Some(Granted::Whole),
            Effect::Deny => (allowed && self.wide == Wide::Narrowed).then_some(Granted::Partly),
        }
    }

    fn of_subscriptions<'a>(
        &'a self,
        who: &'a Subject,
        qos: QoS,
    ) -> impl Iterator<Item = &'a Rule> {
        self.of(who).filter(move |rule| {
            rule.action != Action::Publish && rule.retain.is_none() && rule.qos.holds(qos)
        })
    }

    /// The rules for a client, in their order.
    fn of<'a>(&'a self, who: &'a Subject) -> impl Iterator<Item = &'a Rule> {
        let places = who.meant_by(self.generation, || self.places_of(who));
        places
            .into_iter()
            .filter_map(|at| self.rules.get(at as usize))
    }

    fn places_of(&self, who: &Subject) -> SmallVec<[u32; 16]> {
        let username = who.username.as_deref();
        let of_user = username.and_then(|name| self.by_user.get(name));
        let of_client = self.by_client.get(who.client.as_str());
        let places = [Some(&self.others), of_user, of_client];
        let places = places.into_iter().flatten().flatten().copied();
        let means = |at: &u32| {
            let rule = self.rules.get(*at as usize);
            rule.is_some_and(|rule| rule.who.includes(who))
        };
        let mut places: SmallVec<[u32; 16]> = places.filter(means).collect();
        places.sort_unstable();
        places
    }
}

impl Rule {
    fn matches(&self, topic: &TopicName, who: &Subject) -> bool {
        self.topics.as_ref().is_none_or(|patterns| {
            let mut filled = patterns.iter().filter_map(|p| p.filled(who, self.effect));
            filled.any(|filled| filled.matches(topic))
        })
    }

    fn relation(&self, filter: &TopicFilter, who: &Subject) -> Relation {
        let Some(patterns) = &self.topics else {
            return Relation::Covers;
        };
        let filled = patterns.iter().filter_map(|p| p.filled(who, self.effect));
        let mut nearest = Relation::Apart;
        for relation in filled.map(|filled| filled.relation(filter)) {
            match relation {
                Relation::Covers => return relation,
                Relation::Overlaps => nearest = relation,
                Relation::Apart => {}
            }
        }
        nearest
    }
}

impl QosSet {
    pub const ALL: Self = Self(0b111);

    pub fn holds(self, qos: QoS) -> bool {
        self.0 & 1 << (qos as u8) != 0
    }
}

impl FromIterator<QoS> for QosSet {
    fn from_iter<T: IntoIterator<Item = QoS>>(levels: T) -> Self {
        Self(
            levels
                .into_iter()
                .fold(0, |set, qos| set | 1 << (qos as u8)),
        )
    }
}

#[cfg(test)]
mod tests;
