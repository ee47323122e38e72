//! `flotte ctl rebalance`: asks a node to have clients spread evenly, and waits until they are, or stay as they are.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Api, CtlError};
use super::model::Rebalance;
use super::{pretty, write};
use crate::cli::Exit;

/// How long it may take: ten passes of a minute.
const WAIT_MAX: Duration = Duration::from_secs(660);
/// How often it is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Asks for it and waits.
pub(super) fn rebalance(api: &Api, json: bool) -> Result<Exit, CtlError> {
    let mut answer: Value = api.post("/rebalance", &json!({}))?;
    let begin = Instant::now();
    let state = loop {
        let state: Rebalance =
            serde_json::from_value(answer.clone()).map_err(|error| CtlError::Strange {
                url: api.url().to_owned(),
                reason: error.to_string(),
            })?;
        if !state.running || begin.elapsed() >= WAIT_MAX {
            break state;
        }
        std::thread::sleep(ASK_EVERY);
        answer = api.get("/rebalance", &[])?;
    };
    let text = match json {
        true => pretty(&answer),
        false => shown(&state),
    };
    write(&text)?;
    if state.even {
        return Ok(Exit::Done);
    }
    Err(CtlError::Refused(
        "clients are not spread evenly: those of 3.x may come back to the same node, and sessions that outlive their \
         connections stay where they are"
            .to_owned(),
    ))
}

fn shown(state: &Rebalance) -> String {
    let line = |node: &super::model::NodeLoad| match node.clients {
        Some(clients) => format!("{:<20} {clients} clients\n", node.name),
        None => format!("{:<20} does not answer\n", node.name),
    };
    state.nodes.iter().map(line).collect()
}
