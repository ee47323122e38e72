//! A small DNS server: A, AAAA and SRV records from a table that a test changes while it runs. It answers over UDP, one question
//! at a time, and says of every record that it holds for a second.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const TTL_S: u32 = 1;
/// How often the server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);
/// QTYPE numbers of RFC 1035, 3596 and 2782.
const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;

/// What stands behind a name.
#[derive(Clone, Debug)]
pub enum Record {
    Address(IpAddr),
    Service { host: String, port: u16 },
}

impl Record {
    fn kind(&self) -> u16 {
        match self {
            Record::Address(IpAddr::V4(_)) => A,
            Record::Address(IpAddr::V6(_)) => AAAA,
            Record::Service { .. } => SRV,
        }
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Record::Address(IpAddr::V4(ip)) => ip.octets().to_vec(),
            Record::Address(IpAddr::V6(ip)) => ip.octets().to_vec(),
            Record::Service { host, port } => {
                // Priority and weight 0.
                let mut data = vec![0, 0, 0, 0];
                data.extend(port.to_be_bytes());
                data.extend(encoded(host));
                data
            }
        }
    }
}

/// A running server; it ends with this.
pub struct Dns {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    table: Mutex<BTreeMap<String, Vec<Record>>>,
    asked: AtomicU64,
    end: AtomicBool,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Record>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dns {
    /// A server that knows no name, on a free port.
    pub fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = socket.local_addr().expect("it is bound");
        socket.set_read_timeout(Some(LOOK)).expect("not zero");
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || serve(&socket, &serving));
        Self {
            shared,
            address,
            thread: Some(thread),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Questions answered so far.
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// From now on these records stand behind a name; none: the name exists.
    pub fn set(&self, name: &str, records: impl IntoIterator<Item = Record>) {
        let records = records.into_iter().collect();
        self.shared.table().insert(name.to_owned(), records);
    }

    pub fn set_addresses(&self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        self.set(name, addresses.into_iter().map(Record::Address));
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, shared: &Shared) {
    let mut question = [0; 1_500];
    while !shared.end.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut question) else {
            continue;
        };
        if let Some(answer) = answer(&question[..len], &shared.table()) {
            shared.asked.fetch_add(1, Ordering::Relaxed);
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// The answer to one question; none where it is not one.
fn answer(message: &[u8], table: &BTreeMap<String, Vec<Record>>) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let (name, end) = decoded(message, HEADER)?;
    let question = message.get(HEADER..end + 4)?;
    let kind = u16::from_be_bytes([*message.get(end)?, *message.get(end + 1)?]);
    let records = table.get(&name);
    let found: Vec<&Record> = records
        .into_iter()
        .flatten()
        .filter(|record| record.kind() == kind)
        .collect();
    let code = if records.is_some() { 0 } else { 3 };
    let count = u16::try_from(found.len()).expect("few records");
    let mut answer = message.get(..2)?.to_vec();
    // An authoritative answer, recursion wanted and available.
    answer.extend([0x85, 0x80 | code, 0, 1]);
    answer.extend(count.to_be_bytes());
    answer.extend([0, 0, 0, 0]);
    answer.extend(question);
    for record in found {
        let data = record.data();
        // The name is that of the question; the class is IN.
        answer.extend([0xC0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1]);
        answer.extend(TTL_S.to_be_bytes());
        answer.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
        answer.extend(data);
    }
    Some(answer)
}

/// The name at this place, lower case and without its last dot, and where it ends.
fn decoded(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1;
        if len == 0 {
            return Some((labels.join("."), at));
        }
        let label = message.get(at..at + len)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += len;
    }
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(server: &Dns, name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(encoded(name));
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("not zero");
        socket.send_to(&message, server.address()).expect("sent");
        let mut answer = [0; 512];
        let len = socket.recv(&mut answer).expect("an answer");
        answer[..len].to_vec()
    }

    #[test]
    fn records_are_answered_as_the_table_has_them_now() {
        let server = Dns::start();
        assert_eq!(ask(&server, "n.example", A)[3] & 0xF, 3, "no such name");
        server.set_addresses("n.example", [Ipv4Addr::new(127, 0, 0, 9).into()]);
        let found = ask(&server, "N.example", A);
        assert_eq!((found[0], found[1], found[7]), (7, 9, 1));
        assert!(found.ends_with(&[0, 4, 127, 0, 0, 9]));
        assert_eq!(ask(&server, "n.example", AAAA)[7], 0);
        assert_eq!(server.asked(), 3);
    }
}
