//! What an operator asks of the cluster by way of a node: that a member leaves or stays, that this node drains.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use flotte_cluster::handle::{JoinError, LeaveError};
use tracing::info;

use super::Context;
use super::problem::problem;
use crate::cli::ctl::model::{Drain, Join, Joining, Leave, NodeLoad, Rebalance};
use crate::config::HostPort;
use crate::rebalance;

pub(super) fn routes() -> axum::Router<Context> {
    axum::Router::new()
        .route("/cluster/join", post(join))
        .route("/cluster/leave", post(leave))
        .route("/drain", post(drain))
        .route("/rebalance", get(rebalanced).post(begin_rebalance))
}

/// 202: the member has been asked, and leaves once its replicas have moved. 200: it is gone, or stays.
async fn leave(
    State(context): State<Context>,
    asked: Result<Json<Leave>, JsonRejection>,
) -> Response {
    let asked = match asked {
        Ok(Json(asked)) => asked,
        Err(error) => return problem(error.status(), "Not understood", &error.body_text()),
    };
    let cluster = context.shared.cluster().clone();
    let name = asked.node.clone().unwrap_or_else(|| cluster.node_name());
    info!(%name, force = asked.force, stay = asked.stay, "asked to leave");
    // It goes on should the caller give up.
    let (force, stay) = (asked.force, asked.stay);
    let result = tokio::spawn(async move {
        match stay {
            true => cluster.stay(&name).await,
            false => cluster.leave(&name, force).await,
        }
    });
    match result.await {
        Ok(Ok(())) if force || stay => (StatusCode::OK, Json(asked)).into_response(),
        Ok(Ok(())) => (StatusCode::ACCEPTED, Json(asked)).into_response(),
        Ok(Err(error)) => refused(&error),
        Err(error) => problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Failed",
            &error.to_string(),
        ),
    }
}

fn refused(error: &LeaveError) -> Response {
    let (status, title) = match error {
        LeaveError::Unknown(_) => (StatusCode::NOT_FOUND, "Unknown node"),
        LeaveError::NoAnswer => (StatusCode::SERVICE_UNAVAILABLE, "No answer"),
        LeaveError::Last(_)
        | LeaveError::Itself(_)
        | LeaveError::Down(_)
        | LeaveError::Needed { .. }
        | LeaveError::Refused { .. } => (StatusCode::CONFLICT, "Refused"),
    };
    problem(status, title, &error.to_string())
}

/// 202: it is written down; the node drains, starts again with a new identity, and is a member of the other cluster then.
async fn join(
    State(context): State<Context>,
    asked: Result<Json<Join>, JsonRejection>,
) -> Response {
    let asked = match asked {
        Ok(Json(asked)) => asked,
        Err(error) => return problem(error.status(), "Not understood", &error.body_text()),
    };
    if let Err(error) = asked.address.parse::<HostPort>() {
        let detail = format!("`{}`: {error}", asked.address);
        return problem(StatusCode::BAD_REQUEST, "No address", &detail);
    }
    if context.orders.stop.is_cancelled() {
        return problem(StatusCode::CONFLICT, "Refused", "this node is ending");
    }
    let cluster = context.shared.cluster();
    let plan = match cluster.plan_join(&asked.address).await {
        Ok(plan) => plan,
        Err(error) => return not_joined(&error),
    };
    let sessions = context.shared.registry.all();
    let sessions = sessions
        .iter()
        .filter(|session| session.is_durable())
        .count();
    let retained = plan.retained;
    if !asked.force && sessions + retained > 0 {
        let detail = format!(
            "this node holds {retained} retained messages and {sessions} sessions that outlive their connections, and would give \
             them up (its data is set aside, not deleted): --force if it may"
        );
        return problem(StatusCode::CONFLICT, "Refused", &detail);
    }
    if let Err(error) = cluster.mark_join(&plan) {
        return not_joined(&error);
    }
    info!(address = %asked.address, retained, sessions, "asked to join another cluster");
    context.orders.again.cancel();
    context.orders.stop.cancel();
    let joining = Joining {
        cluster_id: format!("{:016x}", plan.cluster_id),
        addresses: plan.addresses,
        retained: retained as u64,
        sessions: sessions as u64,
    };
    (StatusCode::ACCEPTED, Json(joining)).into_response()
}

fn not_joined(error: &JoinError) -> Response {
    let (status, title) = match error {
        JoinError::Unreachable { .. } => (StatusCode::BAD_GATEWAY, "No answer"),
        JoinError::NotUp => (StatusCode::SERVICE_UNAVAILABLE, "Not up"),
        JoinError::Disk(_) => (StatusCode::INTERNAL_SERVER_ERROR, "Not written down"),
        JoinError::Itself(_)
        | JoinError::Protocol(_)
        | JoinError::NoCluster(..)
        | JoinError::Member
        | JoinError::NotAlone(_)
        | JoinError::NameTaken(_) => (StatusCode::CONFLICT, "Refused"),
    };
    problem(status, title, &error.to_string())
}

/// 202: its clients are being sent to other nodes, and it takes no new ones.
async fn drain(
    State(context): State<Context>,
    asked: Result<Json<Drain>, JsonRejection>,
) -> Response {
    match asked {
        Ok(Json(asked)) => {
            info!(stop = asked.stop, "asked to drain");
            context.orders.drain.cancel();
            if asked.stop {
                context.orders.stop.cancel();
            }
            (StatusCode::ACCEPTED, Json(asked)).into_response()
        }
        Err(error) => problem(error.status(), "Not understood", &error.body_text()),
    }
}

/// 202: nodes with too many clients send some to those with too few; GET says how far that is.
async fn begin_rebalance(State(context): State<Context>) -> Response {
    if context.drain.is_cancelled() {
        let detail = "this node drains: ask another one";
        return problem(StatusCode::CONFLICT, "Refused", detail);
    }
    if context.shared.cluster().me().is_none() {
        let detail = "this node is not up: it cannot ask the others";
        return problem(StatusCode::SERVICE_UNAVAILABLE, "Not up", detail);
    }
    info!("asked to spread clients evenly");
    rebalance::begin(&context.shared);
    let state = rebalance_state(&context).await;
    (StatusCode::ACCEPTED, Json(state)).into_response()
}

async fn rebalanced(State(context): State<Context>) -> Json<Rebalance> {
    Json(rebalance_state(&context).await)
}

async fn rebalance_state(context: &Context) -> Rebalance {
    // Looked at first: the counts are those of its end, then.
    let running = context.shared.rebalancing.runs();
    let loads = rebalance::loads(context.shared.cluster()).await;
    let counts: Vec<u64> = loads
        .iter()
        .filter_map(|(_, _, load)| Some(load.as_ref()?.clients))
        .collect();
    let nodes = loads.into_iter().map(|(_, name, load)| NodeLoad {
        name,
        clients: load.map(|load| load.clients),
    });
    Rebalance {
        running,
        even: rebalance::is_even(&counts),
        nodes: nodes.collect(),
    }
}
