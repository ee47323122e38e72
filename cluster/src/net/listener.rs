//! The cluster port: accepts connections, within a bound, and runs the gRPC server on them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flotte_proto::node_server::NodeServer;
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::NetError;
use super::network::{CONNECTION_WINDOW, STREAM_WINDOW, Shared, chain};
use super::service::Service;

/// A connection that has sent nothing for this long after it was accepted is closed.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds the cluster port.
pub(super) async fn bind(bind: SocketAddr) -> Result<(TcpListener, SocketAddr), NetError> {
    let failed = |source| NetError::Bind { bind, source };
    let listener = TcpListener::bind(bind).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok((listener, local))
}

/// Serves until the shutdown.
pub(super) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let config = &shared.config;
    let service = NodeServer::new(Service::new(Arc::clone(&shared)))
        .max_decoding_message_size(config.frame_bytes_max());
    let room = Arc::new(Semaphore::new(config.connections_max));
    let serving = Server::builder()
        .http2_keepalive_interval(Some(config.keep_alive_interval))
        .http2_keepalive_timeout(Some(config.keep_alive_timeout))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(service)
        .serve_with_incoming_shutdown(
            incoming(listener, room),
            shared.shutdown.clone().cancelled_owned(),
        );
    if let Err(error) = serving.await {
        tracing::error!(error = chain(&error), "the cluster port failed");
    }
}

/// The accepted connections. None is accepted while there are too many.
fn incoming(
    listener: TcpListener,
    room: Arc<Semaphore>,
) -> impl Stream<Item = Result<Connection, io::Error>> {
    futures::stream::unfold((listener, room), |(listener, room)| async {
        let permit = Arc::clone(&room).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = Connection::new(stream, permit);
                    return Some((Ok(connection), (listener, room)));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the cluster port");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// A connection that holds its place among the accepted ones.
struct Connection {
    stream: TcpStream,
    /// Runs until the first byte has come.
    silence: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: TcpStream, permit: OwnedSemaphorePermit) -> Self {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY on a connection of the cluster port");
        }
        Self {
            stream,
            silence: Some(Box::pin(sleep(FIRST_BYTE_TIMEOUT))),
            _permit: permit,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(result) => {
                self.silence = None;
                Poll::Ready(result)
            }
            Poll::Pending => {
                if let Some(silence) = &mut self.silence {
                    ready!(silence.as_mut().poll(cx));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
