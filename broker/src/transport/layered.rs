//! A socket with TLS, WebSocket, or both above it. What they need between reads and writes stands behind one short lock:
//! the connection's task reads, and whoever has something for the client writes.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tracing::debug;

use super::stream::Stream;
use super::tls::Session;
use super::ws::WebSocket;

/// One read takes at most this much.
const READ_BYTES: usize = 64 << 10;
/// So much is sealed at once; hence as much may wait for the socket, sealed.
const SEAL_BYTES: usize = 64 << 10;

thread_local! {
    /// What was read and not opened yet; one for all connections of a worker, borrowed for one poll only.
    static RECEIVED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A socket and the layers above it.
#[derive(Debug)]
pub struct Layered {
    stream: Stream,
    /// Held for the work on one read or write, and no other lock is taken under it.
    layers: Mutex<Layers>,
}

#[derive(Debug)]
struct Layers {
    /// Boxed: where there is only WebSocket it shall cost no more than a pointer.
    tls: Option<Box<Session>>,
    ws: Option<WebSocket>,
    /// Ready for the socket, which took no more; without capacity while there is nothing. Bounded by [`SEAL_BYTES`] of
    /// data, and by what the layers answer by themselves.
    sealed: BytesMut,
    /// Why a layer is over: nothing more is read. What it said about it stands in `sealed`.
    ended: Option<Box<str>>,
    /// Our last word is said.
    closed: bool,
}

impl Layered {
    /// Puts layers above a socket.
    pub fn new(stream: Stream, tls: Option<Session>, ws: Option<WebSocket>) -> Layered {
        Layered {
            stream,
            layers: Mutex::new(Layers {
                tls: tls.map(Box::new),
                ws,
                sealed: BytesMut::new(),
                ended: None,
                closed: false,
            }),
        }
    }

    /// Reads data behind the end of `buffer`. `Ok(0)` is the end. What the layers have to say to each other is said on
    /// the way.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(read) = ready!(self.poll_step(cx, buffer))? {
                return Poll::Ready(Ok(read));
            }
        }
    }

    /// One read from the socket; nothing, when it brought no data.
    pub fn poll_step(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<Option<usize>>> {
        let start = buffer.len();
        self.poll_push(cx)?;
        if self.layers.lock().ended.is_some() {
            return Poll::Ready(Ok(Some(0)));
        }
        RECEIVED.with_borrow_mut(|received| {
            received.clear();
            received.reserve(READ_BYTES);
            let read = ready!(self.stream.poll_read(cx, received))?;
            if read == 0 {
                return Poll::Ready(Ok(Some(0)));
            }
            self.layers.lock().open(received, buffer);
            let data = buffer.len() - start;
            Poll::Ready(Ok((data > 0).then_some(data)))
        })
    }

    /// Writes what waits, and sees to it that this task is woken when the socket takes the rest.
    fn poll_push(&self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut layers = self.layers.lock();
        while !layers.sealed.is_empty() {
            match layers.push(&self.stream) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                pushed => return pushed,
            }
            match self.stream.poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Ok(()),
            }
        }
        Ok(())
    }

    /// Takes data from `buffer` as long as the socket takes it. [`io::ErrorKind::WouldBlock`]: it takes no more, whether
    /// or not something is left in `buffer`.
    pub fn write(&self, buffer: &mut impl Buf) -> io::Result<()> {
        let mut layers = self.layers.lock();
        layers.push(&self.stream)?;
        while buffer.has_remaining() {
            let chunk = buffer.chunk();
            let bytes = chunk.len().min(SEAL_BYTES);
            layers.seal(&chunk[..bytes])?;
            buffer.advance(bytes);
            layers.push(&self.stream)?;
        }
        Ok(())
    }

    /// Sends `words`, then the last words of the layers, as far as the socket takes them.
    pub fn close(&self, words: &[u8]) {
        let mut layers = self.layers.lock();
        if !words.is_empty()
            && let Err(error) = layers.seal(words)
        {
            debug!(%error, "last words");
        }
        layers.close();
        if let Err(error) = layers.push(&self.stream) {
            debug!(%error, "last words");
        }
    }

    /// Writes what is left. Ready when that is done.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_push(cx)?;
        if self.layers.lock().sealed.is_empty() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    /// Why a layer came to its end before the socket did, if one did: its last word is on its way.
    pub fn ended(&self) -> Option<Box<str>> {
        self.layers.lock().ended.clone()
    }

    /// Whether every layer takes data.
    pub fn is_open(&self) -> bool {
        let layers = self.layers.lock();
        layers.tls.as_ref().is_none_or(|tls| tls.is_open())
            && layers.ws.as_ref().is_none_or(WebSocket::is_open)
    }

    /// Who the certificate of the peer names.
    pub fn peer(&self) -> Option<Box<str>> {
        self.layers.lock().tls.as_ref()?.peer()
    }

    /// Puts the first message of a client's handshake out.
    pub fn begin(&self) -> io::Result<()> {
        let mut layers = self.layers.lock();
        let Layers { tls, sealed, .. } = &mut *layers;
        if let Some(tls) = tls {
            tls.begin(sealed).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Writes to the peer what stands below the frames of WebSocket.
    pub fn say(&self, text: &str) -> io::Result<()> {
        self.layers.lock().seal_frames(text.as_bytes())
    }

    /// Whether TLS, where there is any, takes data.
    pub fn is_secured(&self) -> bool {
        self.layers
            .lock()
            .tls
            .as_ref()
            .is_none_or(|tls| tls.is_open())
    }

    /// The socket below.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }
}

impl Layers {
    /// Passes what was received through all layers.
    fn open(&mut self, received: &mut [u8], data: &mut BytesMut) {
        let unwritten = self.sealed.len();
        let (ws, mut answers, mut over) = (&mut self.ws, BytesMut::new(), None);
        let mut pass_on = |bytes: &[u8]| match ws {
            None => data.extend_from_slice(bytes),
            Some(ws) => {
                if let Err(ended) = ws.decode(bytes, data, &mut answers, unwritten) {
                    over = Some(ended);
                }
            }
        };
        match &mut self.tls {
            None => pass_on(received),
            Some(tls) => {
                if let Err(error) = tls.open(received, &mut self.sealed, &mut pass_on) {
                    self.ended = Some(error.to_string().into());
                } else if tls.has_ended() {
                    self.ended = Some("the peer closed TLS".into());
                }
            }
        }
        if !answers.is_empty()
            && let Err(error) = self.seal_frames(&answers)
        {
            self.ended.get_or_insert(error.to_string().into());
        }
        if let Some(ended) = over {
            self.close();
            self.ended = Some(ended.to_string().into());
        }
        if let Some(why) = &self.ended {
            debug!(%why, "a layer ended");
        }
    }

    /// Turns data into what the socket gets.
    fn seal(&mut self, data: &[u8]) -> io::Result<()> {
        match (&self.ws, &self.tls) {
            (None, _) => self.seal_frames(data),
            (Some(ws), None) => {
                ws.encode(data, &mut self.sealed);
                Ok(())
            }
            (Some(ws), Some(_)) => {
                let mut frame = BytesMut::new();
                ws.encode(data, &mut frame);
                self.seal_frames(&frame)
            }
        }
    }

    /// The same for what stands below the frames of WebSocket.
    fn seal_frames(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => self.sealed.extend_from_slice(bytes),
            Some(tls) => tls
                .seal(bytes, &mut self.sealed)
                .map_err(io::Error::other)?,
        }
        Ok(())
    }

    fn close(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        if let Some(ws) = &mut self.ws {
            let mut frame = BytesMut::new();
            ws.close(&mut frame);
            if !frame.is_empty() && self.seal_frames(&frame).is_err() {
                return;
            }
        }
        if let Some(tls) = &mut self.tls {
            tls.close(&mut self.sealed);
        }
    }

    fn push(&mut self, stream: &Stream) -> io::Result<()> {
        while !self.sealed.is_empty() {
            let written = stream.try_write(&self.sealed)?;
            self.sealed.advance(written);
        }
        self.sealed = BytesMut::new();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_idle_websocket_costs_above_its_socket_is_small() {
        let bytes = size_of::<Layered>() - size_of::<Stream>();
        assert!(bytes <= 96, "{bytes}");
    }
}
