//! The admin port: readiness, status and metrics. Blocking, with a limit on every request.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// For what waits until a cluster has done it.
const ORDER_LIMIT: Duration = Duration::from_secs(20);

/// Status code and body of a GET; `None` when the node does not answer.
pub fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    request(address, path, "GET")
}

/// Status code and body of a DELETE; `None` when the node does not answer.
pub fn delete(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    request(address, path, "DELETE")
}

/// Status code and body of a POST of a JSON document; `None` when the node does not answer.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> Option<(u16, String)> {
    let sent = agent(ORDER_LIMIT)
        .post(format!("http://{address}{path}"))
        .content_type("application/json")
        .send(body.to_string());
    let mut answer = sent.ok()?;
    let status = answer.status().as_u16();
    Some((status, answer.body_mut().read_to_string().ok()?))
}

fn agent(limit: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder().timeout_global(Some(limit));
    config.http_status_as_error(false).build().into()
}

fn request(address: SocketAddr, path: &str, method: &str) -> Option<(u16, String)> {
    let agent = agent(REQUEST_LIMIT);
    let url = format!("http://{address}{path}");
    let sent = if method == "DELETE" {
        agent.delete(&url).call()
    } else {
        agent.get(&url).call()
    };
    let mut answer = sent.ok()?;
    let status = answer.status().as_u16();
    Some((status, answer.body_mut().read_to_string().ok()?))
}

/// The JSON document at `path`; `None` when the node does not answer 200.
pub fn json(address: SocketAddr, path: &str) -> Option<Value> {
    let (status, body) = get(address, path)?;
    let parsed = || {
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path} is not JSON: {e}: {body}"))
    };
    (status == 200).then(parsed)
}

/// Whether /readyz says 200.
pub fn is_ready(address: SocketAddr) -> bool {
    get(address, "/readyz").is_some_and(|(status, _)| status == 200)
}

/// The value of a metric whose name and labels begin with `series`, summed over all series.
pub fn metric(address: SocketAddr, series: &str) -> Option<f64> {
    let (_, body) = get(address, "/metrics")?;
    sum_of(&body, series)
}

/// Several of these at one moment; those that are not there are 0.
pub fn metrics<const N: usize>(address: SocketAddr, series: [&str; N]) -> Option<[f64; N]> {
    let (_, body) = get(address, "/metrics")?;
    Some(series.map(|series| sum_of(&body, series).unwrap_or_default()))
}

fn sum_of(body: &str, series: &str) -> Option<f64> {
    let mut lines = body
        .lines()
        .filter(|line| line.starts_with(series))
        .peekable();
    lines.peek()?;
    let value = |line: &str| {
        line.rsplit(' ')
            .next()
            .and_then(|text| text.parse::<f64>().ok())
    };
    Some(lines.filter_map(value).sum())
}
