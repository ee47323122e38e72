//! The admin port: health, readiness, metrics and the API, over HTTP. Without tokens an address that others reach serves
//! no API.

mod api;
mod gauges;
mod membership;
mod operations;
mod problem;
mod topics;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flotte_cluster::handle::State as NodeState;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::config::admin::{Config, Exposure};
use crate::connection::Shared;
use crate::reload::Reloader;

/// The admin port, bound.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    exposure: Exposure,
}

/// What the handlers need.
#[derive(Clone)]
pub(crate) struct Context {
    shared: Arc<Shared>,
    reloader: Arc<Reloader>,
    recorder: PrometheusHandle,
    /// Cancelled once all listeners take clients.
    open: CancellationToken,
    /// Cancelled once the node begins to leave.
    drain: CancellationToken,
    orders: Orders,
}

/// What the node is told to do by its signals and its operators.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    /// Cancelled when it is to send its clients away and take no new ones.
    pub drain: CancellationToken,
    /// Cancelled when it is to end.
    pub stop: CancellationToken,
    /// Cancelled when it is not to wait any longer for those who drain.
    pub hurry: CancellationToken,
    /// Cancelled when its process is to start again then, with the data directory as it is by then.
    pub again: CancellationToken,
}

impl Admin {
    /// Binds the port.
    pub async fn bind(config: &Config) -> io::Result<Admin> {
        let listener = TcpListener::bind(config.bind).await?;
        Ok(Admin {
            address: listener.local_addr()?,
            listener,
            exposure: config.exposure(),
        })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the shutdown.
    pub async fn run(
        self,
        shared: Arc<Shared>,
        reloader: Arc<Reloader>,
        recorder: PrometheusHandle,
        open: CancellationToken,
        (drain, orders): (CancellationToken, Orders),
        shutdown: CancellationToken,
    ) {
        let context = Context {
            shared,
            reloader,
            recorder,
            open,
            drain,
            orders,
        };
        let mut routes = Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics));
        if self.exposure == Exposure::Full {
            routes = routes.nest("/api/v1", all_routes());
        }
        let app = routes.fallback(problem::not_found).with_state(context);
        let served = axum::serve(self.listener, app)
            .with_graceful_shutdown(async move { shutdown.cancelled().await });
        if let Err(e) = served.await {
            error!(error = %e, "the admin port failed");
        }
    }
}

fn all_routes() -> Router<Context> {
    api::routes()
        .merge(operations::routes())
        .merge(membership::routes())
        .merge(topics::routes())
}

async fn healthz() -> &'static str {
    "alive\n"
}

/// 200 when Up, lease held, taking clients, and not leaving; else 503 with the reasons.
async fn readyz(State(context): State<Context>) -> Response {
    let status = context.shared.cluster().status();
    let mut reasons = Vec::new();
    if status.state != NodeState::Up {
        reasons.extend(status.problems.iter().cloned());
        if reasons.is_empty() {
            reasons.push("this node is not up".to_owned());
        }
    }
    if !context.open.is_cancelled() {
        reasons.push("the listeners are not open yet".to_owned());
    }
    if !status.behind.is_empty() {
        let groups: Vec<String> = status.behind.iter().map(ToString::to_string).collect();
        reasons.push(format!(
            "the replicas of groups {} on this node have not caught up yet",
            groups.join(", ")
        ));
    }
    if context.drain.is_cancelled() {
        reasons.push("this node drains: its clients go to others".to_owned());
    }
    let code = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        code,
        axum::Json(json!({ "ready": reasons.is_empty(), "reasons": reasons })),
    )
        .into_response()
}

async fn metrics(State(context): State<Context>) -> Response {
    gauges::record(&context.shared);
    let text = crate::metrics::render(&context.recorder);
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response()
}
