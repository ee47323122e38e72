//! Waits until the nodes say at /readyz that they serve.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::plan::{NodePlan, Plan};

/// How often a node is asked: nobody tells from outside when it is ready.
const POLL: Duration = Duration::from_millis(100);
/// How long a node has for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Returns when every node has been ready.
pub async fn all(plan: &Plan) {
    join_all(plan.nodes.iter().map(|node| one(node.admin))).await;
}

async fn one(admin: SocketAddr) {
    let mut poll = interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        poll.tick().await;
        if ask(admin).await.is_ok_and(|answer| is_ready(&answer)) {
            return;
        }
    }
}

/// Who is not ready, and why.
pub async fn missing(plan: &Plan) -> Vec<String> {
    let reason = async |node: &NodePlan| match ask(node.admin).await {
        Ok(answer) if is_ready(&answer) => None,
        Ok(answer) => Some(format!("{}: {}", node.name, body(&answer))),
        Err(error) => Some(format!("{}: {error}", node.name)),
    };
    join_all(plan.nodes.iter().map(reason))
        .await
        .into_iter()
        .flatten()
        .collect()
}

async fn ask(admin: SocketAddr) -> io::Result<String> {
    let asked = timeout(ANSWER_TIMEOUT, async {
        let mut stream = TcpStream::connect(admin).await?;
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut answer)
            .await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    });
    asked
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn is_ready(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 ")
}

fn body(answer: &str) -> &str {
    answer
        .split_once("\r\n\r\n")
        .map_or(answer, |(_, body)| body)
        .trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_is_ready() {
        assert!(is_ready("HTTP/1.1 200 OK\r\n\r\n"));
        let unready = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}\n";
        assert!(!is_ready(unready));
        assert!(!is_ready(""));
        assert_eq!(body(unready), "{}");
    }
}
