//! `flotte ctl join`: asks a node to join another cluster, and waits until it has, or says what keeps it from that.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Api, CtlError};
use super::model::{Join, Joining, Status};
use super::{pretty, write};
use crate::cli::Exit;

/// How long it may take: the node drains, starts again, and gets the log of the cluster.
const WAIT_MAX: Duration = Duration::from_secs(180);
/// How often it is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Asks for it and waits.
pub(super) fn join(api: &Api, json: bool, address: String, force: bool) -> Result<Exit, CtlError> {
    let asked = Join { address, force };
    let answer: Value = api.post("/cluster/join", &json!(asked))?;
    let strange = |error: serde_json::Error| CtlError::Strange {
        url: api.url().to_owned(),
        reason: error.to_string(),
    };
    let joining: Joining = serde_json::from_value(answer.clone()).map_err(strange)?;
    let status = wait(api, &joining)?;
    let text = match json {
        true => pretty(&answer),
        false => format!(
            "{} is a member of cluster {}; given up: {} retained messages, {} sessions\n",
            status.node.name, joining.cluster_id, joining.retained, joining.sessions
        ),
    };
    write(&text)?;
    Ok(Exit::Done)
}

fn wait(api: &Api, joining: &Joining) -> Result<Status, CtlError> {
    let begin = Instant::now();
    let mut last = "it has not answered since".to_owned();
    while begin.elapsed() < WAIT_MAX {
        // It does not answer while it starts again.
        match api.get::<Status>("/status", &[]) {
            Ok(status) if status.cluster_id == joining.cluster_id && status.state == "up" => {
                return Ok(status);
            }
            Ok(status) => last = status.problems.join("; "),
            Err(CtlError::Unreachable { .. }) => {}
            Err(error) => last = error.to_string(),
        }
        std::thread::sleep(ASK_EVERY);
    }
    Err(CtlError::Refused(format!(
        "not a member yet after {} s, and still trying: {last}",
        WAIT_MAX.as_secs()
    )))
}
