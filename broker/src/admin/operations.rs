//! What an operator asks of a running node: to read its files again, to log more or less.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::json;
use tracing::info;

use super::Context;
use super::problem::problem;
use crate::cli::ctl::model::{LogLevel, Reload};
use crate::config::log::Level;

pub(super) fn routes() -> axum::Router<Context> {
    axum::Router::new()
        .route("/reload", post(reload))
        .route("/log", post(log))
}

/// 200 when all was reloaded; else 422, and the problem document tells of every part.
async fn reload(State(context): State<Context>) -> Response {
    let reloader = context.reloader;
    // It reads files, and goes on should the caller give up.
    match tokio::task::spawn_blocking(move || reloader.reload()).await {
        Ok(report) if report.parts.iter().all(|part| part.ok) => Json(report).into_response(),
        Ok(report) => not_all(&report),
        Err(error) => problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Reload failed",
            &error.to_string(),
        ),
    }
}

fn not_all(report: &Reload) -> Response {
    let status = StatusCode::UNPROCESSABLE_ENTITY;
    let failed = report.parts.iter().filter_map(|part| {
        let error = part.error.as_ref()?;
        Some(format!("{}: {error}", part.name))
    });
    let detail: Vec<String> = failed.collect();
    let body = json!({
        "type": "about:blank",
        "title": "Not all was reloaded",
        "status": status.as_u16(),
        "detail": detail.join("; "),
        "parts": report.parts,
        "restart": report.restart,
    });
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, kind, body.to_string()).into_response()
}

/// Until a reload, which sets the level of the configuration.
async fn log(
    State(context): State<Context>,
    asked: Result<Json<LogLevel>, JsonRejection>,
) -> Response {
    let asked = match asked {
        Ok(Json(asked)) => asked,
        Err(error) => return problem(error.status(), "Not understood", &error.body_text()),
    };
    let level = match asked.level.parse::<Level>() {
        Ok(level) => level,
        Err(error) => {
            let detail = format!("`{}` is {error}", asked.level);
            return problem(StatusCode::BAD_REQUEST, "No log level", &detail);
        }
    };
    match context.reloader.set_log_level(&level) {
        Ok(()) => {
            info!(level = level.as_str(), "log level set");
            Json(asked).into_response()
        }
        Err(error) => problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Log level not set",
            &error.to_string(),
        ),
    }
}
