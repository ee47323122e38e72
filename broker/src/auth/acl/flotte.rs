//! Flotte's own ACL file: TOML, `[[rule]]` tables of which the first that fits decides, and `[groups]` of user names for them.

use std::collections::HashMap;
use std::sync::Arc;

use flotte_mqtt::QoS;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::file::{Problem, Problems};
use super::pattern::Pattern;
use super::rules::{Action, QosSet, Rule};
use super::subject::{Glob, Network, User, Who};
use crate::config::acl::Effect;

const KEYS: [&str; 9] = [
    "effect", "user", "client", "group", "ip", "action", "topics", "qos", "retain",
];

/// Groups by name: globs of user names.
type Groups = HashMap<String, Arc<[Glob]>>;
type Value<'a> = Spanned<DeValue<'a>>;

/// Reads the text of a file.
pub(super) fn parse(text: &str) -> Result<Vec<Rule>, Vec<Problem>> {
    let mut reader = Reader {
        text,
        problems: Problems::default(),
        groups: Groups::default(),
    };
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What follows a syntax error is guesswork.
        for error in &errors {
            let at = error.span().map_or(0, |span| span.start);
            reader.problem(at, error.message());
        }
        return reader.problems.into_result(Vec::new());
    }
    let document = document.get_ref();
    for (key, value) in document {
        let known = ["rule", "groups"].contains(&key.get_ref().as_ref());
        if !known {
            let why = unknown(key.get_ref(), &["rule", "groups"]);
            reader.problem(key.span().start, why);
        } else if key.get_ref() == "groups" {
            reader.read_groups(value);
        }
    }
    let rules = document.get("rule").map(|rules| reader.rules(rules));
    reader.problems.into_result(rules.unwrap_or_default())
}

/// Reads a document, value by value, and gathers what is wrong.
struct Reader<'a> {
    text: &'a str,
    problems: Problems,
    groups: Groups,
}

impl Reader<'_> {
    fn problem(&mut self, at: usize, why: impl Into<String>) {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        self.problems.add(line, why);
    }

    fn bad(&mut self, key: &str, value: &Value<'_>, allowed: &str) {
        let span = value.span();
        let given = self.text.get(span.clone()).unwrap_or_default();
        let given = given.lines().next().unwrap_or_default();
        self.problem(
            span.start,
            format!("`{key} = {given}`: allowed is {allowed}"),
        );
    }

    fn read_groups(&mut self, groups: &Value<'_>) {
        const ALLOWED: &str = "a table of lists of user names, in which `*` and `?` match";
        let DeValue::Table(table) = groups.get_ref() else {
            return self.bad("groups", groups, ALLOWED);
        };
        for (name, users) in table {
            match self.texts(name.get_ref(), users, ALLOWED) {
                Some(users) => {
                    let globs = users.iter().map(|user| Glob::new(user)).collect();
                    self.groups.insert(name.get_ref().to_string(), globs);
                }
                None => continue,
            }
        }
    }

    fn rules(&mut self, rules: &Value<'_>) -> Vec<Rule> {
        let DeValue::Array(items) = rules.get_ref() else {
            self.bad("rule", rules, "tables, written [[rule]]");
            return Vec::new();
        };
        let mut read = Vec::new();
        for item in items.iter() {
            if self.problems.is_full() {
                break;
            }
            match item.get_ref() {
                DeValue::Table(table) => read.extend(self.rule(table, item.span().start)),
                _ => self.bad("rule", item, "tables, written [[rule]]"),
            }
        }
        read
    }

    fn rule(&mut self, table: &DeTable<'_>, at: usize) -> Option<Rule> {
        for key in table.keys() {
            if !KEYS.contains(&key.get_ref().as_ref()) {
                self.problem(key.span().start, unknown(key.get_ref(), &KEYS));
            }
        }
        let Some(effect) = table.get("effect") else {
            self.problem(
                at,
                "the rule has no `effect`: allowed is \"allow\" or \"deny\"",
            );
            return None;
        };
        let effect = match effect.get_ref().as_str() {
            Some("allow") => Effect::Allow,
            Some("deny") => Effect::Deny,
            _ => {
                self.bad("effect", effect, "\"allow\" or \"deny\"");
                return None;
            }
        };
        let rule = Rule {
            effect,
            who: self.who(table),
            action: self.action(table),
            topics: table.get("topics").and_then(|topics| self.topics(topics)),
            qos: table.get("qos").map_or(QosSet::ALL, |qos| self.qos(qos)),
            retain: table.get("retain").and_then(|retain| self.retain(retain)),
        };
        if let (Action::Subscribe, Some(_), Some(value)) =
            (rule.action, rule.retain, table.get("retain"))
        {
            let why = "`retain` is about publishes, and this rule about subscriptions";
            self.problem(value.span().start, why);
        }
        Some(rule)
    }

    fn who(&mut self, table: &DeTable<'_>) -> Who {
        let user = table.get("user").and_then(|value| self.text("user", value));
        let client = table
            .get("client")
            .and_then(|value| self.text("client", value));
        Who {
            user: user.map(|user| match user.as_str() {
                "" => User::Nobody,
                name => User::Named(Glob::new(name)),
            }),
            client: client.map(|client| Glob::new(&client)),
            group: table.get("group").and_then(|value| self.group(value)),
            ip: table.get("ip").and_then(|value| self.ip(value)),
        }
    }

    fn text(&mut self, key: &str, value: &Value<'_>) -> Option<String> {
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.bad(key, value, "a text, in which `*` and `?` match");
        }
        text
    }

    fn group(&mut self, value: &Value<'_>) -> Option<Arc<[Glob]>> {
        let known = value
            .get_ref()
            .as_str()
            .and_then(|name| self.groups.get(name));
        if let Some(group) = known {
            return Some(Arc::clone(group));
        }
        self.bad("group", value, "the name of a list in [groups]");
        None
    }

    fn ip(&mut self, value: &Value<'_>) -> Option<Network> {
        let network = value.get_ref().as_str().and_then(|text| text.parse().ok());
        if network.is_none() {
            self.bad("ip", value, "an IP address, or a network as \"10.0.0.0/8\"");
        }
        network
    }

    fn action(&mut self, table: &DeTable<'_>) -> Action {
        let Some(value) = table.get("action") else {
            return Action::All;
        };
        match value.get_ref().as_str() {
            Some("publish") => Action::Publish,
            Some("subscribe") => Action::Subscribe,
            Some("all") => Action::All,
            _ => {
                self.bad("action", value, "\"publish\", \"subscribe\" or \"all\"");
                Action::All
            }
        }
    }

    fn topics(&mut self, value: &Value<'_>) -> Option<Box<[Pattern]>> {
        let texts = self.texts("topics", value, "a list of topic filters, at least one")?;
        let mut patterns = Vec::with_capacity(texts.len());
        for text in texts {
            match Pattern::parse(&text) {
                Ok(pattern) => patterns.push(pattern),
                Err(error) => {
                    self.problem(
                        value.span().start,
                        format!("topic filter `{text}`: {error}"),
                    );
                }
            }
        }
        Some(patterns.into())
    }

    fn qos(&mut self, value: &Value<'_>) -> QosSet {
        const ALLOWED: &str = "a list of 0, 1 and 2, at least one";
        let level = |item: &Value<'_>| match item.get_ref() {
            DeValue::Integer(level) => {
                let level = u8::from_str_radix(level.as_str(), level.radix()).ok()?;
                QoS::try_from(level).ok()
            }
            _ => None,
        };
        let set: Option<QosSet> = match value.get_ref() {
            DeValue::Array(items) if !items.is_empty() => items.iter().map(level).collect(),
            _ => None,
        };
        set.unwrap_or_else(|| {
            self.bad("qos", value, ALLOWED);
            QosSet::ALL
        })
    }

    fn retain(&mut self, value: &Value<'_>) -> Option<bool> {
        if let DeValue::Boolean(retain) = value.get_ref() {
            return Some(*retain);
        }
        self.bad("retain", value, "true or false");
        None
    }

    fn texts(&mut self, key: &str, value: &Value<'_>, allowed: &str) -> Option<Vec<String>> {
        let text = |item: &Value<'_>| item.get_ref().as_str().map(str::to_owned);
        let texts = match value.get_ref() {
            DeValue::Array(items) if !items.is_empty() => items.iter().map(text).collect(),
            _ => None,
        };
        if texts.is_none() {
            self.bad(key, value, allowed);
        }
        texts
    }
}

fn unknown(key: &str, known: &[&str]) -> String {
    let near = |known: &&&str| strsim::jaro_winkler(known, key);
    let nearest = known.iter().max_by(|a, b| near(a).total_cmp(&near(b)));
    match nearest.filter(|nearest| near(nearest) > 0.8) {
        Some(nearest) => format!("unknown key `{key}`, the nearest known one is `{nearest}`"),
        None => format!("unknown key `{key}`: allowed are `{}`", known.join("`, `")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::rules::{Rules, Wide};
    use super::super::subject::Subject;
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let problems = parse(text).unwrap_err();
        problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn every_key_of_a_rule_is_read() {
        let rules = parse(
            "[groups]\nops = [\"ann\", \"op-*\"]\n\n[[rule]]\neffect = \"deny\"\nuser = \"sensor-*\"\nclient = \"c?\"\n\
             group = \"ops\"\nip = \"10.0.0.0/8\"\naction = \"publish\"\ntopics = [\"secret/#\", \"dev/%c/+\"]\n\
             qos = [0, 1]\nretain = true\n\n[[rule]]\neffect = \"allow\"\n",
        )
        .unwrap();
        let expected = Rule {
            effect: Effect::Deny,
            who: Who {
                user: Some(User::Named(Glob::new("sensor-*"))),
                client: Some(Glob::new("c?")),
                group: Some([Glob::new("ann"), Glob::new("op-*")].into()),
                ip: Some("10.0.0.0/8".parse().unwrap()),
            },
            action: Action::Publish,
            topics: Some(
                ["secret/#", "dev/%c/+"]
                    .map(|text| Pattern::parse(text).unwrap())
                    .into(),
            ),
            qos: [QoS::AtMostOnce, QoS::AtLeastOnce].into_iter().collect(),
            retain: Some(true),
        };
        assert_eq!(rules[0], expected);
        assert_eq!(rules[1].topics, None);
        assert_eq!((rules[1].action, rules[1].qos), (Action::All, QosSet::ALL));
    }

    #[test]
    fn an_empty_user_means_clients_without_one() {
        let rules = parse("[[rule]]\neffect = \"deny\"\nuser = \"\"\n").unwrap();
        let rules = Rules::new(rules, Effect::Allow, Wide::Refused);
        let may = |username: Option<&str>| {
            let who = Subject::new(username.map(Into::into), "c".try_into().unwrap(), None);
            rules.may_publish(&who, &"x".try_into().unwrap(), QoS::AtMostOnce, false)
        };
        assert!(may(Some("ann")) && !may(None));
    }

    #[test]
    fn every_mistake_is_named_with_its_line_and_what_is_allowed() {
        assert_eq!(
            problems(
                "[[rule]]\nuser = \"x\"\n[[rule]]\neffect = \"allow\"\naction = \"write\"\ntopics = []\nqos = [3]\n\
                 retain = 1\nip = \"10.0.0.0/40\"\ngroup = \"ops\"\n[[rule]]\neffect = \"deny\"\ntopic = [\"a\"]\n"
            ),
            [
                "line 1: the rule has no `effect`: allowed is \"allow\" or \"deny\"",
                "line 5: `action = \"write\"`: allowed is \"publish\", \"subscribe\" or \"all\"",
                "line 6: `topics = []`: allowed is a list of topic filters, at least one",
                "line 7: `qos = [3]`: allowed is a list of 0, 1 and 2, at least one",
                "line 8: `retain = 1`: allowed is true or false",
                "line 9: `ip = \"10.0.0.0/40\"`: allowed is an IP address, or a network as \"10.0.0.0/8\"",
                "line 10: `group = \"ops\"`: allowed is the name of a list in [groups]",
                "line 13: unknown key `topic`, the nearest known one is `topics`",
            ]
        );
        assert_eq!(
            problems("[[rule]]\neffect = \"deny\"\ntopics = [\"a/#/b\", \"$share/g/a\"]\n"),
            [
                "line 3: topic filter `a/#/b`: `#` stands alone in the last level",
                "line 3: topic filter `$share/g/a`: a shared subscription is judged by its filter alone: leave `$share/NAME/` out",
            ]
        );
        assert_eq!(
            problems("[[rules]]\neffect = \"deny\"\n"),
            ["line 1: unknown key `rules`, the nearest known one is `rule`"]
        );
        assert_eq!(
            problems("rule = 1\ngroups = 2\n").len(),
            2,
            "neither is what it should be"
        );
        assert_eq!(
            problems("[[rule]]\neffect = \"deny\"\naction = \"subscribe\"\nretain = true\n"),
            ["line 4: `retain` is about publishes, and this rule about subscriptions"]
        );
        assert!(problems("[[rule]\n")[0].starts_with("line 1: "));
    }
}
