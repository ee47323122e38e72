//! Accepts clients and hands their sockets to the workers in turn.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metrics::counter;
use socket2::{Domain, Protocol, Socket, Type};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::admission::Refusal;
use crate::connection::{Accepted, ListenerInfo, Shared, Workers};

/// Sockets that the kernel holds for us.
const BACKLOG: i32 = 4_096;
/// After a failed accept, such as with no file descriptors left.
const PAUSE: Duration = Duration::from_millis(50);

/// A listening address that is bound: nobody else has it.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    info: Arc<ListenerInfo>,
    address: SocketAddr,
}

impl Listener {
    /// Binds an address. It does not listen yet: clients are refused until the node serves.
    pub fn bind(config: &crate::config::listener::Config) -> io::Result<Listener> {
        let socket = Socket::new(
            Domain::for_address(config.bind),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&config.bind.into())?;
        let address = socket.local_addr()?.as_socket().unwrap_or(config.bind);
        let info = Arc::new(ListenerInfo {
            config: config.clone(),
            connections: Default::default(),
        });
        Ok(Listener {
            socket,
            info,
            address,
        })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.info.config.name.to_string()
    }

    /// Listens; from now on the kernel takes clients.
    pub fn listen(&self) -> io::Result<()> {
        self.socket.listen(BACKLOG)
    }

    /// Accepts until the shutdown.
    pub async fn run(
        self,
        shared: Arc<Shared>,
        workers: Arc<Workers>,
        shutdown: CancellationToken,
    ) {
        let listener = match tokio::net::TcpListener::from_std(self.socket.into()) {
            Ok(listener) => listener,
            Err(e) => return warn!(error = %e, "listener not usable"),
        };
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    warn!(error = %e, "accept failed");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let turned_away = match refusal(&shared, &self.info) {
                None => None,
                Some(refusal) => {
                    let Some(turned_away) = shared.admission.turn_away(refusal) else {
                        counter!("flotte_connects_total", "result" => refusal.label()).increment(1);
                        debug!(%peer, ?refusal, "closed without a word");
                        continue;
                    };
                    Some(turned_away)
                }
            };
            match stream.into_std() {
                Ok(stream) => {
                    workers
                        .hand_over(Accepted {
                            stream,
                            peer,
                            listener: Arc::clone(&self.info),
                            turned_away,
                        })
                        .await
                }
                Err(e) => debug!(error = %e, "socket not usable"),
            }
        }
    }
}

/// Why no more is taken here.
fn refusal(shared: &Shared, info: &ListenerInfo) -> Option<Refusal> {
    let max = info.config.max_connections.map(|max| max as usize);
    if max.is_some_and(|max| info.connections.load(Ordering::Relaxed) >= max) {
        return Some(Refusal::TooMany);
    }
    let connections = shared.connections.load(Ordering::Relaxed);
    shared.admission.judge(connections)
}
