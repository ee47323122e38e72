//! rumqttc behind lines of JSON: what `clients/remote_client.py` asks on stdin is done, and what happens is told on stdout.
//! It judges nothing; the steps are in `steps.py`.

mod peer;
mod request;
mod v311;
mod v5;

use std::collections::HashMap;
use std::io::{BufRead as _, Write as _};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use peer::Peer;
use request::{Operation, Request};

/// Requests that are read ahead, and lines that wait to be written.
const LINES_MAX: usize = 1_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (ask, mut asked) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if ask.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let (tell, mut told) = mpsc::channel::<Value>(LINES_MAX);
    std::thread::spawn(move || {
        while let Some(value) = told.blocking_recv() {
            // Nobody reads any more: the end of stdin follows.
            if writeln!(std::io::stdout(), "{value}").is_err() {
                return;
            }
        }
    });
    let mut peers: HashMap<u64, Arc<Peer>> = HashMap::new();
    while let Some(line) = asked.recv().await {
        let request: Request = serde_json::from_str(&line)?;
        dispatch(&mut peers, request, &tell);
    }
    Ok(())
}

/// Starts what is asked for; its answer goes out when it is done.
fn dispatch(peers: &mut HashMap<u64, Arc<Peer>>, request: Request, tell: &mpsc::Sender<Value>) {
    let peer = request.peer.and_then(|number| peers.get(&number)).cloned();
    if let (Operation::Open(session), Some(number)) = (&request.operation, request.peer) {
        let opened = Peer::open(number, session.clone(), tell.clone());
        peers.insert(number, Arc::new(opened));
    }
    if let (Operation::Close | Operation::Abandon, Some(number)) =
        (&request.operation, request.peer)
    {
        peers.remove(&number);
    }
    let tell = tell.clone();
    tokio::spawn(async move {
        let answer = match perform(peer, request.operation).await {
            Ok(()) => json!({ "id": request.id }),
            Err(error) => json!({ "id": request.id, "error": format!("{error:#}") }),
        };
        // A failure means that the writer has ended, as the reader will.
        let _ = tell.send(answer).await;
    });
}

async fn perform(peer: Option<Arc<Peer>>, operation: Operation) -> anyhow::Result<()> {
    let peer = match operation {
        // A peer that was closed is forgotten: to abandon it is no fault.
        Operation::Hello | Operation::Open(_) | Operation::Abandon => return Ok(()),
        Operation::Close if peer.is_none() => return Ok(()),
        _ => peer.ok_or_else(|| anyhow::anyhow!("no such peer"))?,
    };
    match operation {
        Operation::Publish(publish) => peer.publish(publish).await,
        Operation::Unsubscribe { topic } => peer.unsubscribe(topic).await,
        _ => peer.disconnect().await,
    }
}
