//! Handshakes, records cut anywhere, and damaged ones.

use proptest::prelude::*;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};

use super::*;
use crate::config::listener::CertIdentity;

struct Pair {
    server: Session,
    client: Session,
    /// On their way.
    to_server: BytesMut,
    to_client: BytesMut,
    at_server: Vec<u8>,
    at_client: Vec<u8>,
}

fn certificate(name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let cert = params.self_signed(&key).unwrap();
    (
        cert.der().clone(),
        PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    )
}

fn pair(version: &'static rustls::SupportedProtocolVersion) -> Pair {
    let (cert, key) = certificate("server");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let identity = Identity(CertIdentity::CommonName);
    let mut pair = Pair {
        server: Session::server(server.into(), identity).unwrap(),
        client: Session::client(client.into(), "localhost".try_into().unwrap()).unwrap(),
        to_server: BytesMut::new(),
        to_client: BytesMut::new(),
        at_server: Vec::new(),
        at_client: Vec::new(),
    };
    pair.client.begin(&mut pair.to_server).unwrap();
    pair
}

impl Pair {
    /// Carries everything to where it goes, in pieces, until nothing is on its way.
    fn run(&mut self, piece: usize) {
        while !self.to_server.is_empty() || !self.to_client.is_empty() {
            for mut piece in std::mem::take(&mut self.to_server)
                .chunks(piece)
                .map(<[u8]>::to_vec)
            {
                let data = &mut |bytes: &[u8]| self.at_server.extend_from_slice(bytes);
                self.server
                    .open(&mut piece, &mut self.to_client, data)
                    .unwrap();
            }
            for mut piece in std::mem::take(&mut self.to_client)
                .chunks(piece)
                .map(<[u8]>::to_vec)
            {
                let data = &mut |bytes: &[u8]| self.at_client.extend_from_slice(bytes);
                self.client
                    .open(&mut piece, &mut self.to_server, data)
                    .unwrap();
            }
        }
    }
}

#[test]
fn data_goes_both_ways_in_either_version_however_it_is_cut() {
    for version in [&TLS12, &TLS13] {
        for piece in [1, 1_000, 1 << 20] {
            let mut pair = pair(version);
            pair.run(piece);
            assert!(pair.server.is_open() && pair.client.is_open());
            let long: Vec<u8> = (0..40_000_u32).map(|at| at as u8).collect();
            pair.client.seal(b"ping", &mut pair.to_server).unwrap();
            pair.server.seal(&long, &mut pair.to_client).unwrap();
            pair.run(piece);
            assert_eq!(pair.at_server, b"ping");
            assert!(pair.at_client == long);
            assert_eq!(pair.server.incoming.capacity(), 0, "idle");
        }
    }
}

#[test]
fn something_may_be_written_while_half_a_record_is_there() {
    let mut pair = pair(&TLS13);
    pair.run(1 << 20);
    pair.client
        .seal(b"from the client", &mut pair.to_server)
        .unwrap();
    let mut record = std::mem::take(&mut pair.to_server);
    let (first, rest) = record.split_at_mut(9);
    let mut data = Vec::new();
    pair.server
        .open(first, &mut pair.to_client, &mut |bytes| {
            data.extend_from_slice(bytes)
        })
        .unwrap();
    pair.server
        .seal(b"from the server", &mut pair.to_client)
        .unwrap();
    pair.server
        .open(rest, &mut pair.to_client, &mut |bytes| {
            data.extend_from_slice(bytes)
        })
        .unwrap();
    pair.run(1 << 20);
    assert_eq!(
        (&data[..], &pair.at_client[..]),
        (&b"from the client"[..], &b"from the server"[..])
    );
}

#[test]
fn an_end_is_told() {
    let mut pair = pair(&TLS13);
    pair.run(1 << 20);
    pair.client.seal(b"last", &mut pair.to_server).unwrap();
    pair.client.close(&mut pair.to_server);
    pair.run(1 << 20);
    assert_eq!(pair.at_server, b"last");
    assert!(pair.server.has_ended() && !pair.client.has_ended());
    pair.server.close(&mut pair.to_client);
    pair.run(1 << 20);
    assert!(pair.client.has_ended());
}

#[test]
fn what_is_no_tls_gets_no_answer() {
    let mut pair = pair(&TLS13);
    let mut out = BytesMut::new();
    let error = pair
        .server
        .open(&mut b"\x10\x0C\x00\x04MQTT".to_vec(), &mut out, &mut |_| ());
    assert!(matches!(error, Err(SessionError::NotTls)), "{error:?}");
    assert!(out.is_empty());
}

#[test]
fn a_handshake_that_goes_wrong_gets_an_alert() {
    let mut pair = pair(&TLS13);
    let mut hello = pair.to_server.to_vec();
    // The session id is longer than the message.
    hello[43] = 0xFF;
    let mut out = BytesMut::new();
    let error = pair.server.open(&mut hello, &mut out, &mut |_| ());
    assert!(matches!(error, Err(SessionError::Tls(_))), "{error:?}");
    assert_eq!((out[0], out.len()), (0x15, 7), "an alert");
    let mut out = BytesMut::new();
    pair.server
        .open(b"\x16".to_vec().as_mut(), &mut out, &mut |_| ())
        .unwrap_err();
}

#[test]
fn a_hello_that_never_ends_is_refused() {
    let mut pair = pair(&TLS13);
    let mut out = BytesMut::new();
    // A client hello of 60,000 bytes in records of 16,000.
    let mut bytes = Vec::new();
    for at in 0..3 {
        bytes.extend([0x16, 3, 1, 0x3E, 0x80]);
        let mut record = vec![0; 16_000];
        if at == 0 {
            record[..4].copy_from_slice(&[1, 0, 0xEA, 0x60]);
        }
        bytes.extend(record);
    }
    let mut end = Ok(());
    for piece in bytes.chunks_mut(1_000) {
        end = pair.server.open(piece, &mut out, &mut |_| ());
        if end.is_err() {
            break;
        }
        assert!(pair.server.incoming.len() <= INCOMING_BYTES_MAX);
    }
    assert!(matches!(end, Err(SessionError::TooLong)), "{end:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..200_usize, open: bool) {
        let mut pair = pair(&TLS13);
        let mut received = if open {
            pair.run(1 << 20);
            let mut record = BytesMut::new();
            pair.client.seal(b"something that is long enough", &mut record).unwrap();
            record.to_vec()
        } else {
            pair.to_server.to_vec()
        };
        for (place, byte) in received.iter_mut().skip(at).zip(&bytes) {
            *place ^= byte;
        }
        let mut out = BytesMut::new();
        let _ = pair.server.open(&mut received, &mut out, &mut |_| ());
        let _ = pair.server.open(&mut bytes.clone(), &mut out, &mut |_| ());
        let _ = pair.server.seal(b"anything", &mut out);
        pair.server.close(&mut out);
    }
}
