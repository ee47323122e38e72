//! What large messages need and the kit's client is too careful for: a blocking client that compares as it reads, and a
//! proxy between nodes that can be cut.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use flotte_tests::packets::Packet;
use flotte_tests::run::until_blocking;
use flotte_tests::{Version, connect, fresh, puback, subscribe};

/// Longest that one read or write may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that do not repeat, the same for the same seed.
pub fn noise(bytes: usize, seed: u64) -> Arc<Vec<u8>> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(bytes);
    Arc::new(noise)
}

/// A 3.1.1 client on a blocking socket.
pub struct Raw {
    stream: TcpStream,
}

impl Raw {
    /// Connects anew until the node accepts: a group may still be without a leader.
    pub fn connect(address: SocketAddr) -> Raw {
        until_blocking(PATIENCE, "a CONNACK of success", || {
            let stream = TcpStream::connect(address).ok()?;
            stream.set_nodelay(true).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            stream.set_write_timeout(Some(PATIENCE)).ok()?;
            let mut raw = Raw { stream };
            raw.send(&connect(fresh("raw")).encode(Version::V311));
            (raw.read::<4>() == [0x20, 2, 0, 0]).then_some(raw)
        })
    }

    pub fn subscribe(&mut self, filter: &str) {
        self.send(&subscribe(1).to(filter, 1).encode(Version::V311));
        assert_eq!(self.read::<5>(), [0x90, 3, 0, 1, 1], "SUBACK");
    }

    /// Writes a PUBLISH; its payload is not copied.
    pub fn publish(&mut self, topic: &str, qos: u8, packet_id: u16, payload: &[u8]) {
        self.write_publish(qos << 1, topic, packet_id, payload)
            .expect("the node reads");
    }

    /// Writes a PUBLISH that is to be retained, at QoS 1. An error = the node went meanwhile.
    pub fn retain(&mut self, topic: &str, packet_id: u16, payload: &[u8]) -> io::Result<()> {
        self.write_publish(0b11, topic, packet_id, payload)
    }

    fn write_publish(
        &mut self,
        flags: u8,
        topic: &str,
        packet_id: u16,
        payload: &[u8],
    ) -> io::Result<()> {
        let qos = flags >> 1 & 3;
        let mut rest = 2 + topic.len() + usize::from(qos > 0) * 2 + payload.len();
        let mut head = vec![0x30 | flags];
        loop {
            let byte = u8::try_from(rest % 128).expect("below 128");
            rest /= 128;
            head.push(byte | if rest > 0 { 128 } else { 0 });
            if rest == 0 {
                break;
            }
        }
        let topic_bytes = u16::try_from(topic.len()).expect("a short topic");
        head.extend_from_slice(&topic_bytes.to_be_bytes());
        head.extend_from_slice(topic.as_bytes());
        if qos > 0 {
            head.extend_from_slice(&packet_id.to_be_bytes());
        }
        self.stream.write_all(&head)?;
        self.stream.write_all(payload)
    }

    pub fn recv_puback(&mut self, packet_id: u16) {
        let [high, low] = packet_id.to_be_bytes();
        assert_eq!(self.read::<4>(), [0x40, 2, high, low], "PUBACK");
    }

    /// Sends a PINGREQ. An error = the node has closed the connection.
    pub fn ping(&mut self) -> io::Result<()> {
        self.stream.write_all(&[0xC0, 0])
    }

    /// The same connection for another thread: one writes, one reads.
    pub fn share(&self) -> Raw {
        let stream = self.stream.try_clone().expect("sockets can be cloned");
        Raw { stream }
    }

    /// Reads one PUBLISH, compares its payload as it comes, and acknowledges it. Returns whether DUP was set.
    pub fn take(&mut self, payload: &[u8]) -> bool {
        self.take_slowly(payload, |_| ())
    }

    /// As [`Raw::take`]; `pause` is told of the bytes read so far before each read.
    pub fn take_slowly(&mut self, payload: &[u8], mut pause: impl FnMut(usize)) -> bool {
        let (flags, bytes) = self.head();
        let topic_bytes = usize::from(u16::from_be_bytes(self.read()));
        let mut topic = vec![0; topic_bytes];
        self.fill(&mut topic);
        let qos = flags >> 1 & 3;
        let packet_id = (qos > 0).then(|| u16::from_be_bytes(self.read()));
        let head_bytes = 2 + topic_bytes + usize::from(qos > 0) * 2;
        assert_eq!(bytes - head_bytes, payload.len(), "the size of the payload");
        let mut buffer = vec![0; 256 << 10];
        let mut done = 0;
        while done < payload.len() {
            pause(done);
            let want = buffer.len().min(payload.len() - done);
            self.fill(&mut buffer[..want]);
            assert!(
                buffer[..want] == payload[done..done + want],
                "the payload differs behind {done} bytes"
            );
            done += want;
        }
        if let Some(packet_id) = packet_id {
            self.send(&puback(packet_id).encode(Version::V311));
        }
        flags & 0x08 != 0
    }

    /// Reads the first byte and the length of a packet, a PUBLISH.
    fn head(&mut self) -> (u8, usize) {
        let [first] = self.read();
        assert_eq!(first >> 4, 3, "wanted a PUBLISH");
        let (mut length, mut shift) = (0, 0);
        loop {
            let [byte] = self.read();
            length |= usize::from(byte & 127) << shift;
            shift += 7;
            if byte < 128 {
                return (first & 15, length);
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the node reads");
    }

    fn read<const BYTES: usize>(&mut self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        self.fill(&mut bytes);
        bytes
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        self.stream.read_exact(bytes).expect("the node writes");
    }
}

/// Forwards connections to a node, until it is cut.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<ProxyShared>,
}

#[derive(Default)]
struct ProxyShared {
    /// Bytes that went to the node.
    bytes: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub fn start(to: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(ProxyShared::default());
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.expect("an accepted connection");
                // The node may not listen yet.
                if let Ok(far) = TcpStream::connect(to) {
                    accepting.join(near, far).expect("sockets can be cloned");
                }
            }
        });
        Proxy { address, shared }
    }

    /// Resets all connections.
    pub fn cut(&self) {
        let streams = std::mem::take(&mut *self.shared.streams.lock().expect("no test panicked"));
        for stream in streams {
            // One that has ended already cannot be shut down.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Waits until so many bytes more have gone to the node.
    pub fn wait_bytes(&self, more: u64) {
        let begin = self.bytes();
        until_blocking(PATIENCE, "bytes to the node", || {
            (self.bytes() >= begin + more).then_some(())
        });
    }
}

impl ProxyShared {
    fn join(self: &Arc<Self>, near: TcpStream, far: TcpStream) -> io::Result<()> {
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let mut streams = self.streams.lock().expect("no test panicked");
        streams.push(near.try_clone()?);
        streams.push(far.try_clone()?);
        drop(streams);
        let (near_in, far_in) = (near.try_clone()?, far.try_clone()?);
        let counting = Arc::clone(self);
        thread::spawn(move || copy(near_in, far, &counting.bytes));
        thread::spawn(move || copy(far_in, near, &AtomicU64::new(0)));
        Ok(())
    }
}

/// Until either side ends.
fn copy(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
        count.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// How long one thing took, many times; at least once.
pub struct Times(pub Vec<Duration>);

impl Times {
    /// The time that so many of a hundred stay below.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let place = (sorted.len() * percent / 100).min(sorted.len() - 1);
        sorted[place]
    }
}
