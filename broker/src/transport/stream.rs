//! The socket itself, TCP or unix, read and written through a shared reference: its task reads, and whoever routes a
//! message to the client writes.

use std::io;
use std::net::Shutdown;
use std::task::{Context, Poll};

use bytes::BufMut;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// A connected socket that a listener accepted, not yet known to a runtime.
#[derive(Debug)]
pub enum Accepted {
    /// Non-blocking.
    Tcp(std::net::TcpStream),
    /// Non-blocking.
    Unix(std::os::unix::net::UnixStream),
}

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Registers it with the runtime of this thread.
    pub fn register(accepted: Accepted) -> io::Result<Stream> {
        match accepted {
            Accepted::Tcp(stream) => {
                let stream = TcpStream::from_std(stream)?;
                // Small packets shall not wait for each other; where that cannot be had it works all the same.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "no TCP_NODELAY");
                }
                Ok(Stream::Tcp(stream))
            }
            Accepted::Unix(stream) => Ok(Stream::Unix(UnixStream::from_std(stream)?)),
        }
    }

    /// Reads what there is behind the end of `buffer`; the room there has to be more than 0. `Ok(0)` is the end.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut impl BufMut,
    ) -> Poll<io::Result<usize>> {
        loop {
            let ready = match self {
                Stream::Tcp(stream) => stream.poll_read_ready(cx),
                Stream::Unix(stream) => stream.poll_read_ready(cx),
            };
            std::task::ready!(ready)?;
            match self.try_read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    }

    /// One system call for each wake-up: a short read tells the driver that there is no more, as a failed one does.
    fn try_read(&self, buffer: &mut impl BufMut) -> io::Result<usize> {
        let room = buffer.chunk_mut().len();
        debug_assert!(room > 0, "a read without room looks like the end");
        let mut short = None;
        let mut read = |read: io::Result<usize>| match read? {
            bytes if 0 < bytes && bytes < room => {
                short = Some(bytes);
                Err(io::ErrorKind::WouldBlock.into())
            }
            bytes => Ok(bytes),
        };
        let whole = match self {
            Stream::Tcp(stream) => {
                stream.try_io(Interest::READABLE, || read(stream.try_read_buf(buffer)))
            }
            Stream::Unix(stream) => {
                stream.try_io(Interest::READABLE, || read(stream.try_read_buf(buffer)))
            }
        };
        short.map_or(whole, Ok)
    }

    /// Writes what the socket takes at once.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_write(bytes),
            Stream::Unix(stream) => stream.try_write(bytes),
        }
    }

    /// Waits until the socket takes bytes again.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_write_ready(cx),
            Stream::Unix(stream) => stream.poll_write_ready(cx),
        }
    }

    /// Nothing more is written.
    pub fn shutdown(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
            Stream::Unix(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;

    use bytes::BytesMut;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn what_comes_is_read_also_after_a_short_read_and_the_end_is_told() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()
            .map(|(ours, theirs)| {
                ours.set_nonblocking(true).unwrap();
                theirs.set_nonblocking(true).unwrap();
                (ours, UnixStream::from_std(theirs).unwrap())
            })
            .unwrap();
        let stream = Stream::register(Accepted::Unix(ours)).unwrap();
        let mut buffer = BytesMut::new();
        for round in 0..3_u8 {
            theirs.write_all(&[round; 5]).await.unwrap();
            buffer.reserve(64);
            let read = poll_fn(|cx| stream.poll_read(cx, &mut buffer))
                .await
                .unwrap();
            assert_eq!((read, &buffer.split()[..]), (5, &[round; 5][..]));
        }
        // A whole buffer, and what is left behind it.
        theirs.write_all(&[7; 20]).await.unwrap();
        let mut small = [0_u8; 16];
        let read = poll_fn(|cx| stream.poll_read(cx, &mut &mut small[..])).await;
        assert_eq!(read.unwrap(), 16);
        let read = poll_fn(|cx| stream.poll_read(cx, &mut &mut small[..])).await;
        assert_eq!(read.unwrap(), 4);
        drop(theirs);
        let read = poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await;
        assert_eq!(read.unwrap(), 0);
    }
}
