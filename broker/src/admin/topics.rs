//! Topics for operators: who has subscribed here, where a topic goes, what is retained.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flotte_cluster::id::NodeRef;
use flotte_cluster::meta::Retained as Stored;
use flotte_cluster::wire::{Retain, RetainedMessage};
use flotte_mqtt::topic::{TopicFilter, TopicName};
use serde::Deserialize;
use tracing::info;

use super::Context;
use super::api::{LIMIT, LIMIT_MAX, rfc3339};
use super::problem::problem;
use crate::cli::ctl::model;
use crate::connection::Shared;
use crate::session::{Session, wall_ms};

pub(super) fn routes() -> axum::Router<Context> {
    axum::Router::new()
        .route("/subscriptions", get(subscriptions))
        .route("/routes", get(destinations))
        .route("/retained", get(retained).delete(delete))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubscriptionsQuery {
    /// Of this client only.
    client: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// Of the sessions of this node, session by session: a page may end a little beyond its limit.
async fn subscriptions(
    State(context): State<Context>,
    Query(query): Query<SubscriptionsQuery>,
) -> Json<model::Page<model::Subscription>> {
    let mut sessions = context.shared.registry.all();
    let is_asked = |session: &Arc<Session>| match &query.client {
        Some(client) => session.client.as_str() == client,
        None => true,
    };
    let is_after = |session: &Arc<Session>| {
        let cursor = query.cursor.as_deref();
        cursor.is_none_or(|cursor| session.client.as_str() > cursor)
    };
    sessions.retain(|session| is_asked(session) && is_after(session));
    sessions.sort_by(|a, b| a.client.cmp(&b.client));
    let limit = query.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX);
    let (mut items, mut next) = (Vec::new(), None);
    let mut rest = sessions.iter().peekable();
    while let Some(session) = rest.next() {
        let held = session.subscriptions().lock();
        items.extend(held.iter().map(|(filter, options)| model::Subscription {
            client_id: session.client.as_str().to_owned(),
            filter: filter.to_string(),
            qos: options.qos as u8,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
        }));
        if items.len() >= limit && rest.peek().is_some() {
            next = Some(session.client.as_str().to_owned());
            break;
        }
    }
    Json(model::Page { items, next })
}

#[derive(Debug, Deserialize)]
struct TopicQuery {
    topic: String,
}

fn no_topic(error: &impl ToString) -> Response {
    problem(StatusCode::BAD_REQUEST, "No topic", &error.to_string())
}

/// Where a message to a topic goes, as this node's replica has it.
async fn destinations(State(context): State<Context>, Query(query): Query<TopicQuery>) -> Response {
    let topic = match TopicName::try_from(query.topic.as_str()) {
        Ok(topic) => topic,
        Err(error) => return no_topic(&error),
    };
    let cluster = context.shared.cluster();
    let found = cluster.routes(topic.as_str());
    let nodes = cluster.status().nodes;
    let name = |node: &NodeRef| {
        let known = nodes.iter().find(|one| one.id == node.node);
        known.map_or_else(|| node.node.to_string(), |one| one.name.clone())
    };
    let shares = found.shares.iter().map(|share| model::ShareRoute {
        group: share.group.to_string(),
        filter: share.filter.to_string(),
        members: share
            .members
            .iter()
            .map(|(node, members)| model::ShareMember {
                node: name(node),
                members: members.count,
                connected: !members.away,
            })
            .collect(),
    });
    let routes = model::Routes {
        topic: topic.as_str().to_owned(),
        nodes: found.nodes.iter().map(name).collect(),
        shares: shares.collect(),
    };
    Json(routes).into_response()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetainedQuery {
    /// One message, with its payload.
    topic: Option<String>,
    /// Those that match; unset: all but those of `$`.
    filter: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

async fn retained(State(context): State<Context>, Query(query): Query<RetainedQuery>) -> Response {
    if let Some(topic) = &query.topic {
        return one(&context.shared, topic);
    }
    let filter = match TopicFilter::try_from(query.filter.as_deref().unwrap_or("#")) {
        Ok(filter) => filter,
        Err(error) => return problem(StatusCode::BAD_REQUEST, "No filter", &error.to_string()),
    };
    let limit = query.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX);
    let mut items = Vec::new();
    let next = context.shared.cluster().retained_page(
        &filter,
        query.cursor.as_deref(),
        limit,
        &mut |stored, left_ms| items.push(shown(stored, left_ms, false)),
    );
    Json(model::Page { items, next }).into_response()
}

fn one(shared: &Shared, topic: &str) -> Response {
    let filter = TopicName::try_from(topic).and_then(|_| TopicFilter::try_from(topic));
    let filter = match filter {
        Ok(filter) => filter,
        Err(error) => return no_topic(&error),
    };
    let mut found = None;
    shared
        .cluster()
        .retained_page(&filter, None, 1, &mut |stored, left_ms| {
            found = Some(shown(stored, left_ms, true));
        });
    match found {
        Some(message) => Json(message).into_response(),
        None => nothing(topic),
    }
}

fn nothing(topic: &str) -> Response {
    let detail = format!("nothing is retained under `{topic}`");
    problem(StatusCode::NOT_FOUND, "Nothing retained", &detail)
}

fn shown(stored: &Stored, left_ms: Option<u64>, whole: bool) -> model::Retained {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    model::Retained {
        topic: text(stored.topic()),
        qos: stored.qos(),
        bytes: stored.payload().len() as u64,
        publisher: text(stored.publisher()),
        stored_at: rfc3339(stored.time_ms()),
        expires_at: left_ms.map(|left| rfc3339(wall_ms().saturating_add(left))),
        payload_base64: whole.then(|| STANDARD.encode(stored.payload())),
    }
}

/// Removes the retained message of a topic; nobody gets anything for it.
async fn delete(State(context): State<Context>, Query(query): Query<TopicQuery>) -> Response {
    let topic = match TopicName::try_from(query.topic.as_str()) {
        Ok(topic) => topic,
        Err(error) => return no_topic(&error),
    };
    let cluster = context.shared.cluster();
    let filter = TopicFilter::try_from(topic.as_str());
    let mut is_there = false;
    if let Ok(filter) = &filter {
        cluster.retained_page(filter, None, 1, &mut |_, _| is_there = true);
    }
    if !is_there {
        return nothing(topic.as_str());
    }
    info!(
        topic = topic.as_str(),
        "an operator deletes a retained message"
    );
    let command = Retain {
        message: Some(RetainedMessage {
            topic: topic.text().as_bytes().clone(),
            ..RetainedMessage::default()
        }),
        ..Retain::default()
    };
    match cluster.retain(command, None).await {
        Ok(_) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "Not deleted",
            &error.to_string(),
        ),
    }
}
