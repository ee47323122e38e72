//! Certificates made for one test, and TLS clients that use them. What a broker shows and takes is checked by rustls.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::broker::fresh_dir;
use crate::client::Client;
use crate::wire::Version;

/// An authority with a directory for its files.
pub struct Authority {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// What is to be shown behind a certificate of its, where the authority is known by another's word.
    chain: Vec<CertificateDer<'static>>,
}

/// A certificate with its key.
pub struct Identity {
    pub cert: CertificateDer<'static>,
    /// Of the authorities between it and the one that is trusted.
    pub chain: Vec<CertificateDer<'static>>,
    pub cert_pem: String,
    pub key: PrivateKeyDer<'static>,
    pub key_pem: String,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            cert: self.cert.clone(),
            chain: self.chain.clone(),
            cert_pem: self.cert_pem.clone(),
            key: self.key.clone_key(),
            key_pem: self.key_pem.clone(),
        }
    }
}

impl Authority {
    pub fn new() -> Self {
        let (params, key) = authority_params("the authority of a test");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        Self::with(issuer, Vec::new())
    }

    /// An authority that this one vouches for, with a directory of its own.
    pub fn subordinate(&self, name: &str) -> Self {
        let (params, key) = authority_params(name);
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).expect("a certificate");
        let chain = vec![issuer.der().clone()];
        Self::with(issuer, chain)
    }

    fn with(
        issuer: CertifiedIssuer<'static, KeyPair>,
        chain: Vec<CertificateDer<'static>>,
    ) -> Self {
        let authority = Self {
            dir: fresh_dir("tls"),
            issuer,
            chain,
        };
        authority.write("ca.pem", &authority.issuer.pem());
        authority.renew_server();
        authority.revoke(&[]);
        authority
    }

    /// Writes a file that a broker may be pointed at.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("the directory is ours");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes another certificate for localhost: `server.pem`, `server.key`.
    pub fn renew_server(&self) -> Identity {
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])
            .expect("names that are well formed");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let identity = self.sign(params);
        self.write("server.pem", &identity.cert_pem);
        self.write("server.key", &identity.key_pem);
        identity
    }

    /// A certificate for a client with this common name.
    pub fn client(&self, name: &str, serial: u64) -> Identity {
        self.sign(client_params(name, serial))
    }

    /// One that is good in this year only.
    pub fn client_of(&self, year: i32, name: &str, serial: u64) -> Identity {
        let mut params = client_params(name, serial);
        params.not_before = rcgen::date_time_ymd(year, 1, 1);
        params.not_after = rcgen::date_time_ymd(year + 1, 1, 1);
        self.sign(params)
    }

    /// The same that holds from the begin of one year to that of another.
    pub fn client_between(&self, name: &str, from_year: i32, to_year: i32) -> Identity {
        let mut params = CertificateParams::new([format!("{name}.example")]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = rcgen::date_time_ymd(from_year, 1, 1);
        params.not_after = rcgen::date_time_ymd(to_year, 1, 1);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity {
            cert: cert.der().clone(),
            chain: self.chain.clone(),
            cert_pem: cert.pem(),
            key: PrivateKeyDer::try_from(key.serialize_der()).expect("a key in PKCS 8"),
            key_pem: key.serialize_pem(),
        }
    }

    /// Writes `crl.pem`, which takes back the certificates with these numbers.
    pub fn revoke(&self, serials: &[u64]) {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(2120, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("a list");
        self.write("crl.pem", &list.pem().expect("a list"));
    }

    /// What a client needs that trusts this authority, and shows a certificate if it has one.
    pub fn client_config(&self, identity: Option<&Identity>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions of the provider")
            .with_root_certificates(roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let certs = [&[identity.cert.clone()][..], &identity.chain].concat();
                builder
                    .with_client_auth_cert(certs, identity.key.clone_key())
                    .expect("they belong together")
            }
        }
    }

    /// A TLS connection; the error is that of the handshake.
    pub async fn dial(
        &self,
        address: SocketAddr,
        identity: Option<&Identity>,
    ) -> io::Result<TlsStream<TcpStream>> {
        dial(address, self.client_config(identity).into()).await
    }

    /// A client on a TLS connection that has sent nothing.
    pub async fn client_at(
        &self,
        address: SocketAddr,
        identity: Option<&Identity>,
        version: Version,
    ) -> Client {
        let stream = self.dial(address, identity).await;
        Client::over(stream.expect("a handshake"), version)
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

fn authority_params(name: &str) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    (params, KeyPair::generate().expect("a key"))
}

fn client_params(name: &str, serial: u64) -> CertificateParams {
    let mut params = CertificateParams::new([format!("{name}.example")]).expect("a name");
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(SerialNumber::from(serial));
    params
}

/// A TLS connection to localhost.
pub async fn dial(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = "localhost".try_into().expect("a name");
    TlsConnector::from(config).connect(name, stream).await
}
