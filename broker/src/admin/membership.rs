//! What an operator asks of the cluster by way of a node: that a member leaves or stays, that this node drains.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use flotte_cluster::handle::LeaveError;
use tracing::info;

use super::Context;
use super::problem::problem;
use crate::cli::ctl::model::{Drain, Leave};

pub(super) fn routes() -> axum::Router<Context> {
    axum::Router::new()
        .route("/cluster/leave", post(leave))
        .route("/drain", post(drain))
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
        LeaveError::Last(_) | LeaveError::Down(_) | LeaveError::Needed { .. } => {
            (StatusCode::CONFLICT, "Refused")
        }
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
