//! Answers of the admin API as text for people.

use std::time::SystemTime;

use super::model::{Client, Node, Reload, Retained, Routes, Status, Subscription};
use super::table::Table;

/// What was reloaded.
pub fn reload(reload: &Reload) -> String {
    let mut text = String::new();
    for part in &reload.parts {
        let state = match &part.error {
            None => "reloaded".to_owned(),
            Some(error) => format!("not reloaded: {error}"),
        };
        text.push_str(&format!("{}: {state}\n", part.name));
    }
    for key in &reload.restart {
        text.push_str(&format!("{key}: changed; it needs a restart\n"));
    }
    text
}

/// The cluster at one glance.
pub fn status(status: &Status) -> String {
    let node = &status.node;
    let lease = status
        .lease_ms_left
        .map_or_else(|| "none".to_owned(), |left| format!("{left} ms left"));
    let mut facts = Table::new(&["cluster", &status.cluster_id]);
    let mut fact = |name: &str, value: String| facts.push(vec![name.to_owned(), value]);
    fact(
        "node",
        format!(
            "{} (id {}, incarnation {})",
            node.name, node.id, node.incarnation
        ),
    );
    fact("version", node.version.clone());
    fact("uptime", duration(node.uptime_s));
    fact("state", status.state.clone());
    fact("lease", lease);
    fact("clients", status.clients.to_string());
    if status.feature_level > 0 {
        fact("feature level", feature_level(status));
    }
    let mut text = problems(&status.problems);
    text.push_str(&facts.text());
    if status.may_be_old {
        text.push_str("\nwhat this node heard last; the others may have gone on without it:");
    }
    text.push_str(&format!("\n{}", nodes(&status.nodes)));
    let mut groups = Table::new(&[
        "GROUP",
        "ROLE",
        "TERM",
        "LEADER",
        "APPLIED",
        "COMMITTED",
        "VOTERS",
        "NOT REACHED",
    ]);
    for group in &status.groups {
        groups.push(vec![
            if group.id == 0 {
                "meta".to_owned()
            } else {
                group.id.to_string()
            },
            group.role.clone(),
            group.term.to_string(),
            or_dash(group.leader.as_deref()),
            group.applied.to_string(),
            group.committed.to_string(),
            or_dash(list(&group.voters).as_deref()),
            or_dash(list(&group.missing).as_deref()),
        ]);
    }
    text.push('\n');
    text.push_str(&groups.text());
    text
}

/// The cluster's, and who keeps it from being higher.
fn feature_level(status: &Status) -> String {
    let level = status.feature_level;
    let knows_more = |node: &&Node| node.feature_level > level;
    if !status.nodes.iter().any(|node| knows_more(&node)) {
        return level.to_string();
    }
    let others = status.nodes.iter().filter(|node| !knows_more(node));
    let names: Vec<String> = others.map(|node| node.name.clone()).collect();
    let names = or_dash(list(&names).as_deref());
    format!("{level} (some know more; not yet: {names})")
}

/// First of all, where a tired reader begins.
fn problems(problems: &[String]) -> String {
    let lines = problems
        .iter()
        .map(|problem| format!("problem: {problem}\n"));
    let mut text: String = lines.collect();
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

fn list(names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| names.join(", "))
}

/// The members of the cluster.
pub fn nodes(nodes: &[Node]) -> String {
    let mut table = Table::new(&[
        "NODE",
        "STATE",
        "META",
        "ADDRESS",
        "INCARNATION",
        "SINCE",
        "LEVEL",
        "ID",
    ]);
    for node in nodes {
        let role = match (node.leader, node.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        table.push(vec![
            node.name.clone(),
            node_state(node),
            role.to_owned(),
            node.address.clone(),
            node.incarnation.to_string(),
            or_dash(since(node.since.as_deref(), SystemTime::now()).as_deref()),
            or_dash(
                (node.feature_level > 0)
                    .then(|| node.feature_level.to_string())
                    .as_deref(),
            ),
            node.id.clone(),
        ]);
    }
    table.text()
}

/// A moment, and how long ago that is.
fn since(moment: Option<&str>, now: SystemTime) -> Option<String> {
    let moment = moment?;
    let ago = humantime::parse_rfc3339(moment).ok();
    let ago = ago.and_then(|moment| now.duration_since(moment).ok());
    Some(match ago {
        Some(ago) => format!("{moment} ({} ago)", duration(ago.as_secs())),
        None => moment.to_owned(),
    })
}

fn node_state(node: &Node) -> String {
    let mut words = vec![node.state.as_str()];
    words.extend(node.leaving.then_some("leaving"));
    words.extend(node.draining.then_some("draining"));
    words.extend((node.state == "up" && !node.reached).then_some("not reached"));
    words.join(", ")
}

/// Subscriptions, one a line.
pub fn subscriptions(subscriptions: &[Subscription]) -> String {
    let mut table = Table::new(&["CLIENT", "FILTER", "QOS", "NO LOCAL", "RETAIN AS PUBLISHED"]);
    for one in subscriptions {
        table.push(vec![
            one.client_id.clone(),
            one.filter.clone(),
            one.qos.to_string(),
            yes_or_no(one.no_local),
            yes_or_no(one.retain_as_published),
        ]);
    }
    table.text()
}

/// Where a topic goes.
pub fn routes(routes: &Routes) -> String {
    let nodes = match routes.nodes.is_empty() {
        true => "nobody but members of shared subscriptions".to_owned(),
        false => routes.nodes.join(", "),
    };
    let mut text = format!("{} goes to {nodes}\n", routes.topic);
    for share in &routes.shares {
        text.push_str(&format!(
            "one member of $share/{}/{}:\n",
            share.group, share.filter
        ));
        for member in &share.members {
            let away = if member.connected {
                ""
            } else {
                ", none connected"
            };
            text.push_str(&format!("  {} of {}{away}\n", member.members, member.node));
        }
    }
    text
}

/// Retained messages, one a line.
pub fn retained(messages: &[Retained]) -> String {
    let mut table = Table::new(&["TOPIC", "QOS", "BYTES", "PUBLISHER", "STORED", "EXPIRES"]);
    for one in messages {
        table.push(vec![
            one.topic.clone(),
            one.qos.to_string(),
            one.bytes.to_string(),
            one.publisher.clone(),
            one.stored_at.clone(),
            or_dash(one.expires_at.as_deref()),
        ]);
    }
    table.text()
}

/// Clients, one a line.
pub fn clients(clients: &[Client]) -> String {
    let mut table = Table::new(&[
        "CLIENT",
        "NODE",
        "CONNECTED",
        "SESSION",
        "VERSION",
        "USER",
        "ADDRESS",
        "SUBS",
        "QUEUED",
        "INFLIGHT",
    ]);
    for client in clients {
        table.push(vec![
            client.client_id.clone(),
            client.node.clone(),
            yes_or_no(client.connected),
            client.session.clone(),
            or_dash(client.version.as_deref()),
            or_dash(client.username.as_deref()),
            or_dash(client.address.as_deref()),
            client.subscriptions.to_string(),
            client.queued.to_string(),
            client.inflight.to_string(),
        ]);
    }
    table.text()
}

/// All that is known of one client.
pub fn client(client: &Client) -> String {
    let mut table = Table::new(&["client", &client.client_id]);
    let mut fact = |name: &str, value: String| table.push(vec![name.to_owned(), value]);
    fact("node", client.node.clone());
    fact("connected", yes_or_no(client.connected));
    fact("since", or_dash(client.connected_at.as_deref()));
    fact("address", or_dash(client.address.as_deref()));
    fact("user", or_dash(client.username.as_deref()));
    fact("version", or_dash(client.version.as_deref()));
    fact(
        "keep alive",
        client
            .keep_alive_s
            .map_or_else(|| or_dash(None), |seconds| format!("{seconds} s")),
    );
    fact(
        "clean start",
        client.clean_start.map_or_else(|| or_dash(None), yes_or_no),
    );
    fact("session", client.session.clone());
    fact("subscriptions", client.subscriptions.to_string());
    fact("queued", client.queued.to_string());
    fact("inflight", client.inflight.to_string());
    table.text()
}

fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

fn yes_or_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        let shown: Vec<String> = [5, 65, 3_660, 90_000].into_iter().map(duration).collect();
        assert_eq!(shown, ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]);
    }
}
