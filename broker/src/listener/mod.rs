//! Accepts clients and hands their sockets to the workers in turn.

mod endpoint;
mod unix;

pub use endpoint::endpoints;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use metrics::counter;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::admission::Refusal;
use crate::config::listener::Bind;
use crate::connection::{Accepted, ListenerInfo, Shared, Workers};
use crate::transport::{self, Layering, TlsError};
use unix::SocketFile;

/// Sockets that the kernel holds for us.
const BACKLOG: i32 = 4_096;
/// While no more sockets can be accepted, such as with no file descriptors left.
const PAUSE: Duration = Duration::from_millis(50);

/// A shortage is over when there was none for so long; until then it is one, and told once.
const SPELL: Duration = Duration::from_secs(5);

/// Why a listener does not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A file of the configuration cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot bind {bind}: {source}")]
    Bind { bind: Bind, source: io::Error },
}

/// A listening address that is bound: nobody else has it.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    info: Arc<ListenerInfo>,
    /// The real one, also where any free port was asked for.
    bind: Bind,
    /// Goes with the listener.
    file: Option<SocketFile>,
}

impl Listener {
    /// Binds an address. It does not listen yet: clients are refused until the node serves. Those of a unix socket wait
    /// for that.
    pub fn bind(config: &crate::config::Config, at: usize) -> Result<Listener, ListenError> {
        let packet_bytes_max = config.mqtt.max_packet_size.value();
        let config = &config.listeners[at];
        let layering = Layering::new(config, packet_bytes_max)?;
        let cannot = |source| ListenError::Bind {
            bind: config.bind.clone(),
            source,
        };
        let (socket, bind, file) = match &config.bind {
            Bind::Tcp(address) => {
                let (socket, address) = bind_tcp(*address).map_err(cannot)?;
                (socket, Bind::Tcp(address), None)
            }
            Bind::Unix(path) => {
                let (socket, file) = SocketFile::bind(path, BACKLOG).map_err(cannot)?;
                (socket, config.bind.clone(), Some(file))
            }
        };
        let info = Arc::new(ListenerInfo {
            config: config.clone(),
            connections: Default::default(),
            layering,
        });
        Ok(Listener {
            socket,
            info,
            bind,
            file,
        })
    }

    /// The bound address.
    pub fn address(&self) -> &Bind {
        &self.bind
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.info.config.name.to_string()
    }

    /// What its connections know of it.
    pub fn info(&self) -> &Arc<ListenerInfo> {
        &self.info
    }

    /// Listens; from now on the kernel takes clients.
    pub fn listen(&self) -> io::Result<()> {
        match self.bind {
            Bind::Tcp(_) => self.socket.listen(BACKLOG),
            Bind::Unix(_) => Ok(()),
        }
    }

    /// Accepts until the shutdown.
    pub async fn run(
        self,
        shared: Arc<Shared>,
        workers: Arc<Workers>,
        shutdown: CancellationToken,
    ) {
        let _file = self.file;
        let acceptor = match Acceptor::new(self.socket, &self.bind) {
            Ok(acceptor) => acceptor,
            Err(e) => return warn!(error = %e, "listener not usable"),
        };
        let mut shortage = Shortage::default();
        loop {
            let accepted = tokio::select! {
                accepted = acceptor.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                // The client is gone already.
                Err(e) if !is_shortage(&e) => {
                    debug!(error = %e, "accept failed");
                    continue;
                }
                Err(e) => {
                    if shortage.begins() {
                        warn!(error = %e, listener = %self.info.config.name, "no more clients can be accepted");
                    }
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            if shortage.ends() {
                info!(listener = %self.info.config.name, "clients are accepted again");
            }
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
            let accepted = Accepted {
                stream,
                peer,
                listener: Arc::clone(&self.info),
                turned_away,
            };
            workers.hand_over(accepted).await;
        }
    }
}

/// A time in which sockets cannot be accepted for want of something, with a few that could be between.
#[derive(Debug, Default)]
struct Shortage {
    last: Option<Instant>,
}

impl Shortage {
    /// Another accept failed. Says whether it is the first.
    fn begins(&mut self) -> bool {
        self.last.replace(Instant::now()).is_none()
    }

    /// An accept went well. Says whether the shortage is over with that.
    fn ends(&mut self) -> bool {
        let over = self.last.is_some_and(|last| last.elapsed() >= SPELL);
        if over {
            self.last = None;
        }
        over
    }
}

/// The listeners of a node, for what concerns them all.
#[derive(Debug, Default)]
pub struct Listeners(Vec<Arc<ListenerInfo>>);

impl Listeners {
    /// Those that were bound.
    pub fn new(listeners: &[Listener]) -> Listeners {
        let infos = listeners.iter().map(|listener| Arc::clone(listener.info()));
        Listeners(infos.collect())
    }

    /// Reads certificates, keys, authorities and revocation lists again; blocks. New connections use them, those that
    /// are there go on. All is read before anything changes: on an error, which names key and file, all stays as it was.
    pub fn reload(&self) -> Result<(), String> {
        let (mut loaded, mut errors) = (Vec::new(), Vec::new());
        for tls in self.0.iter().filter_map(|info| info.layering.tls()) {
            match tls.read() {
                Ok(read) => loaded.push((tls, read)),
                Err(e) => errors.push(e.to_string()),
            }
        }
        if !errors.is_empty() {
            return Err(errors.join("; "));
        }
        for (tls, read) in loaded {
            tls.replace(read);
        }
        Ok(())
    }
}

/// The two kinds of sockets that clients are accepted from.
enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Acceptor {
    fn new(socket: Socket, bind: &Bind) -> io::Result<Acceptor> {
        Ok(match bind {
            Bind::Tcp(_) => Acceptor::Tcp(TcpListener::from_std(socket.into())?),
            Bind::Unix(_) => Acceptor::Unix(UnixListener::from_std(socket.into())?),
        })
    }

    async fn accept(&self) -> io::Result<(transport::Accepted, SocketAddr)> {
        match self {
            Acceptor::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((transport::Accepted::Tcp(stream.into_std()?), peer))
            }
            Acceptor::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                // It is on this machine.
                let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                Ok((transport::Accepted::Unix(stream.into_std()?), peer))
            }
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    let real = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((socket, real))
}

/// Whether this process or machine has no room for one more socket, which a pause may change.
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| shortages.contains(&errno))
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
