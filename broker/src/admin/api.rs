//! The first endpoints of the API: status, nodes, clients. Their shapes are those of `cli::ctl::model`.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flotte_cluster::handle::{NodeStatus, Role, State as NodeState, Status};
use flotte_cluster::id::NodeId;
use flotte_mqtt::Version;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::Context;
use super::problem::problem;
use crate::cli::ctl::model;
use crate::connection::Shared;
use crate::session::{Session, Wake};

/// Items of a page when the request does not say.
pub(super) const LIMIT: usize = 100;
pub(super) const LIMIT_MAX: usize = 1_000;
/// How long a kicked connection may take to close.
const KICK_WAIT: Duration = Duration::from_secs(2);

pub(super) fn routes() -> axum::Router<Context> {
    axum::Router::new()
        .route("/status", get(status))
        .route("/nodes", get(nodes))
        .route("/clients", get(clients))
        .route("/clients/{id}", get(client).delete(kick))
}

async fn status(State(context): State<Context>) -> Json<model::Status> {
    let status = context.shared.cluster().status();
    let clients = context
        .shared
        .registry
        .all()
        .iter()
        .filter(|s| s.client_info().is_some())
        .count();
    Json(status_model(
        &status,
        clients as u64,
        context.drain.is_cancelled(),
    ))
}

async fn nodes(State(context): State<Context>) -> Json<model::Page<model::Node>> {
    let status = context.shared.cluster().status();
    Json(model::Page {
        items: status.nodes.iter().map(node_model).collect(),
        next: None,
    })
}

#[derive(Debug, Deserialize)]
struct PageQuery {
    limit: Option<usize>,
    cursor: Option<String>,
}

async fn clients(
    State(context): State<Context>,
    Query(query): Query<PageQuery>,
) -> Json<model::Page<model::Client>> {
    let mut sessions = context.shared.registry.all();
    sessions.sort_by(|a, b| a.client.cmp(&b.client));
    let limit = query.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX);
    let after = |session: &&Arc<Session>| {
        query
            .cursor
            .as_deref()
            .is_none_or(|cursor| session.client.as_str() > cursor)
    };
    let mut page: Vec<_> = sessions.iter().filter(after).take(limit + 1).collect();
    let more = page.len() > limit;
    page.truncate(limit);
    let next = page
        .last()
        .filter(|_| more)
        .map(|session| session.client.as_str().to_owned());
    Json(model::Page {
        items: page
            .into_iter()
            .map(|session| client_model(&context.shared, session))
            .collect(),
        next,
    })
}

async fn client(State(context): State<Context>, Path(id): Path<String>) -> Response {
    match context.shared.registry.find(&id) {
        Some(session) => Json(client_model(&context.shared, &session)).into_response(),
        None => unknown(&id),
    }
}

/// Closes a client's connection; its session stays as its expiry says.
async fn kick(State(context): State<Context>, Path(id): Path<String>) -> Response {
    let Some(session) = context.shared.registry.find(&id) else {
        return unknown(&id);
    };
    let (done, closed) = oneshot::channel();
    let told = session.close(
        Wake::CLOSE,
        Box::new(move || {
            let _ = done.send(());
        }),
    );
    if told.is_some() {
        return problem(
            StatusCode::CONFLICT,
            "Not connected",
            &format!("client `{id}` is not connected"),
        );
    }
    if tokio::time::timeout(KICK_WAIT, closed).await.is_err() {
        return problem(
            StatusCode::GATEWAY_TIMEOUT,
            "Not closed yet",
            &format!("client `{id}` was told and has not closed yet"),
        );
    }
    StatusCode::NO_CONTENT.into_response()
}

fn unknown(id: &str) -> Response {
    problem(
        StatusCode::NOT_FOUND,
        "Unknown client",
        &format!("this node holds no session of client `{id}`"),
    )
}

fn status_model(status: &Status, clients: u64, draining: bool) -> model::Status {
    let state = match status.state {
        _ if draining => "draining",
        NodeState::Up => "up",
        NodeState::Joining => "joining",
        NodeState::NoQuorum => "no_quorum",
    };
    model::Status {
        cluster_id: format!("{:016x}", status.cluster_id),
        node: model::ThisNode {
            name: status.node_name.clone(),
            id: status.node_id.to_string(),
            incarnation: status.incarnation,
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: status.uptime.as_secs(),
        },
        state: state.into(),
        lease_ms_left: Some(u64::try_from(status.lease_left.as_millis()).unwrap_or(u64::MAX))
            .filter(|left| *left > 0),
        nodes: status.nodes.iter().map(node_model).collect(),
        groups: status
            .groups
            .iter()
            .map(|group| group_model(status, group))
            .collect(),
        clients,
        feature_level: status.feature_level.number(),
        may_be_old: status.state != NodeState::Up,
        problems: status.problems.clone(),
    }
}

fn group_model(status: &Status, group: &flotte_cluster::handle::GroupStatus) -> model::Group {
    let role = match group.role {
        Role::Learner => "learner",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
        Role::Stopped => "stopped",
    };
    let names = |ids: &mut dyn Iterator<Item = &NodeId>| {
        let mut names: Vec<String> = ids.map(|id| name_of(&status.nodes, *id)).collect();
        names.sort_unstable();
        names
    };
    let is_reached = |id: &&NodeId| {
        let mut nodes = status.nodes.iter();
        nodes.any(|node| node.id == **id && node.connected)
    };
    model::Group {
        id: u64::from(group.id.0),
        role: role.into(),
        term: group.term,
        leader: group.leader.map(|leader| name_of(&status.nodes, leader)),
        applied: group.applied,
        committed: group.committed,
        voters: names(&mut group.voters.iter()),
        missing: names(&mut group.voters.iter().filter(|id| !is_reached(id))),
    }
}

fn name_of(nodes: &[NodeStatus], id: NodeId) -> String {
    nodes
        .iter()
        .find(|node| node.id == id)
        .map_or_else(|| id.to_string(), |node| node.name.clone())
}

fn node_model(node: &NodeStatus) -> model::Node {
    model::Node {
        name: node.name.clone(),
        id: node.id.to_string(),
        state: if node.up { "up" } else { "down" }.into(),
        incarnation: node.incarnation,
        address: node.address.clone(),
        leader: node.leader,
        voter: node.voter,
        leaving: node.leaving,
        draining: node.draining,
        reached: node.connected,
        feature_level: node.feature_level.number(),
        down_after_ms: node.down_after_ms,
        since: (node.since_ms > 0).then(|| rfc3339(node.since_ms)),
    }
}

fn client_model(shared: &Shared, session: &Session) -> model::Client {
    let info = session.client_info();
    let (queued, inflight) = session.output().lock().counts();
    let version = |version| match version {
        Version::V3 => "3.1",
        Version::V4 => "3.1.1",
        Version::V5 => "5.0",
    };
    model::Client {
        client_id: session.client.as_str().into(),
        username: info
            .as_ref()
            .and_then(|info| info.username.as_deref().map(Into::into)),
        node: shared.config.node.effective_name().to_string(),
        version: info.as_ref().map(|info| version(info.version).into()),
        address: info.as_ref().map(|info| {
            info.address
                .map_or_else(|| "unix".to_owned(), |address| address.to_string())
        }),
        connected_at: info.as_ref().map(|info| rfc3339(info.connected_at_ms)),
        keep_alive_s: info.as_ref().map(|info| info.keep_alive_s),
        clean_start: info.as_ref().map(|info| info.clean_start),
        session: if session.is_durable() {
            "durable"
        } else {
            "live"
        }
        .into(),
        connected: info.is_some(),
        subscriptions: session.subscriptions().lock().len() as u64,
        queued: queued as u64,
        inflight: inflight as u64,
    }
}

pub(super) fn rfc3339(ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}
