//! The orderly end of a connection. A socket that is closed while something of the peer's is unread sends a reset, and
//! that takes away what the peer has not read yet: the reason for the end. So the peer gets the time to read it.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use bytes::BytesMut;

use super::Socket;

/// How long a peer may take to close its side.
const LINGER: Duration = Duration::from_secs(1);
/// How much of what the peer still sends is read and thrown away.
const LINGER_BYTES_MAX: usize = 1 << 20;
/// One read.
const READ_BYTES: usize = 16 << 10;

impl Socket {
    /// Sends `words`, then the last words of the layers, as far as the socket takes them at once. A client whose socket is
    /// full does not get them.
    pub fn close(&self, words: &[u8]) {
        match self {
            Socket::Plain(stream) => {
                let _ = stream.try_write(words);
            }
            Socket::Layered(layered) => layered.close(words),
        }
    }

    /// Whether a layer came to its end before the socket did, so that its last word is on its way.
    pub fn has_last_word(&self) -> bool {
        match self {
            Socket::Plain(_) => false,
            Socket::Layered(layered) => layered.ended().is_some(),
        }
    }

    /// Waits until the peer has closed its side, within bounds of time and bytes.
    pub async fn linger(&self) {
        // Whether the peer was in time makes no difference any more.
        let _ = tokio::time::timeout(LINGER, self.drain()).await;
    }

    async fn drain(&self) -> io::Result<()> {
        if let Socket::Layered(layered) = self {
            poll_fn(|cx| layered.poll_flush(cx)).await?;
        }
        self.stream().shutdown()?;
        let mut thrown_away = 0;
        let mut buffer = BytesMut::new();
        while thrown_away < LINGER_BYTES_MAX {
            buffer.clear();
            buffer.reserve(READ_BYTES);
            match poll_fn(|cx| self.stream().poll_read(cx, &mut buffer)).await? {
                0 => break,
                bytes => thrown_away += bytes,
            }
        }
        Ok(())
    }
}
