//! One connection to the broker: a socket that never blocks, the layers above it, what was read of a packet, and what is
//! still to be written. It does not know what packets mean.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::link::{HELD_BYTES_MAX, Link, Transport};

/// Connections for each loopback source address: well below the number of ephemeral ports.
const CONNECTIONS_PER_SOURCE: u32 = 10_000;

pub struct Client {
    pub stream: TcpStream,
    /// TLS and WebSocket, where there are any.
    pub link: Link,
    /// The start of a packet whose rest has not come; bounded by the packet sizes of this load.
    pub partial: Vec<u8>,
    /// Packets to write.
    pub output: Vec<u8>,
    /// What the layers made of them, and what they say themselves.
    sealed: Vec<u8>,
    /// Whether epoll watches for room to write; the engine changes it.
    pub watches_write: bool,
}

/// What became of an attempt to write everything.
#[derive(PartialEq, Eq)]
pub enum Flushed {
    All,
    Blocked,
}

impl Client {
    /// `number` spreads connections to a loopback broker over source addresses.
    pub fn connect(addr: SocketAddr, number: u32, transport: &Transport) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        // Closed by a reset: tens of thousands of ports must not wait out TIME_WAIT before the next run.
        socket.set_linger(Some(Duration::ZERO))?;
        if let IpAddr::V4(ip) = addr.ip()
            && ip.is_loopback()
        {
            let last = 2 + u8::try_from(number / CONNECTIONS_PER_SOURCE)
                .context("too many connections")?;
            socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)).into())?;
        }
        socket
            .connect(&addr.into())
            .with_context(|| format!("connecting to {addr}"))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            stream: socket.into(),
            link: transport.link()?,
            partial: Vec::new(),
            output: Vec::new(),
            sealed: Vec::new(),
            watches_write: false,
        })
    }

    /// Reads once; 0 means that there is nothing now.
    pub fn read(&mut self, into: &mut [u8]) -> anyhow::Result<usize> {
        if self.link.is_plain() {
            return read_once(&self.stream, into);
        }
        let room = into.len() - HELD_BYTES_MAX;
        let received = read_once(&self.stream, &mut into[..room])?;
        let mut data = Vec::new();
        self.link.open(&into[..received], &mut data)?;
        into[..data.len()].copy_from_slice(&data);
        Ok(data.len())
    }

    /// What the layers are not ready for stays in `output`, and is no reason to wait for the socket.
    pub fn flush(&mut self) -> anyhow::Result<Flushed> {
        if self.link.is_plain() {
            return write_all(&self.stream, &mut self.output);
        }
        self.link.seal(&mut self.output, &mut self.sealed)?;
        write_all(&self.stream, &mut self.sealed)
    }
}

fn read_once(mut stream: &TcpStream, into: &mut [u8]) -> anyhow::Result<usize> {
    loop {
        match stream.read(into) {
            Ok(0) => bail!("the broker closed a connection"),
            Ok(bytes) => return Ok(bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("reading from the broker"),
        }
    }
}

fn write_all(mut stream: &TcpStream, bytes: &mut Vec<u8>) -> anyhow::Result<Flushed> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("writing to the broker"),
        }
    }
    bytes.drain(..written);
    Ok(if bytes.is_empty() {
        Flushed::All
    } else {
        Flushed::Blocked
    })
}
