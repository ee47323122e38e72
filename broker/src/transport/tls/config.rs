//! The certificate, key, authorities and revocation list of a listener: read from files at the start and on a reload.
//! What is in use changes as a whole, and only when all of it is right.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use super::certificate::{Identity, is_expired};
use super::session::Session;
use crate::config::listener::{self, ClientCert, Protocol};

/// Why the files of a listener cannot be used; the message names key and file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{key} = {path:?} cannot be read: {source}")]
    Unreadable {
        key: String,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{key} = {path:?}: {problem}")]
    Unusable {
        key: String,
        path: PathBuf,
        problem: String,
    },
    #[error("{key} is not set")]
    Missing { key: String },
}

/// TLS of one listener.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    identity: Identity,
    /// The lock guards only the pointer.
    current: RwLock<Arc<ServerConfig>>,
}

/// What was read and can be used.
#[derive(Debug)]
pub struct Loaded(Arc<ServerConfig>);

/// Where everything stands.
#[derive(Debug, Clone)]
struct Files {
    /// The name of the listener, for messages.
    listener: String,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
    client_cert: ClientCert,
    crl: Option<PathBuf>,
    protocols: Vec<Vec<u8>>,
}

impl Tls {
    /// Reads the files of a listener; blocks.
    pub fn new(config: &listener::Config) -> Result<Tls, TlsError> {
        // "x-amzn-mqtt-ca" is what clients offer that were made for another service.
        let protocols: &[&[u8]] = match config.protocol {
            Protocol::Ws | Protocol::Wss => &[b"http/1.1"],
            Protocol::Mqtt | Protocol::Mqtts | Protocol::Unix => &[b"mqtt", b"x-amzn-mqtt-ca"],
        };
        let files = Files {
            listener: config.name.to_string(),
            cert: config.tls_cert.clone(),
            key: config.tls_key.clone(),
            client_ca: config.tls_client_ca.clone(),
            client_cert: config.tls_client_cert,
            crl: config.tls_crl.clone(),
            protocols: protocols.iter().map(|name| name.to_vec()).collect(),
        };
        let current = RwLock::new(files.read()?);
        let identity = Identity(config.tls_identity);
        Ok(Tls {
            files,
            identity,
            current,
        })
    }

    /// Reads the files again; blocks. Nothing changes before [`Tls::replace`].
    pub fn read(&self) -> Result<Loaded, TlsError> {
        self.files.read().map(Loaded)
    }

    /// New connections use what was read; those that are there go on as they are. Tickets of before are void, as who
    /// holds one might not be taken any more.
    pub fn replace(&self, loaded: Loaded) {
        *self.current.write() = loaded.0;
    }

    /// A session for a connection that was accepted.
    pub fn accept(&self) -> Result<Session, rustls::Error> {
        let config = Arc::clone(&self.current.read());
        Session::server(config, self.identity)
    }
}

impl Files {
    fn read(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let (cert, key) = (
            required(&self.cert, self, "cert")?,
            required(&self.key, self, "key")?,
        );
        let chain: Vec<CertificateDer<'_>> = self.pem("cert", cert, "certificate")?;
        if is_expired(chain.first().map_or(&[], |first| first), SystemTime::now()) {
            tracing::warn!(listener = %self.listener, cert = %cert.display(), "the certificate has expired");
        }
        let private = PrivateKeyDer::from_pem_slice(&self.bytes("key", key)?)
            .map_err(|e| self.unusable("key", key, no_pem("private key", &e)))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| self.unusable("cert", cert, e.to_string()))?;
        let builder = match self.verifier(&provider)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, private)
            .map_err(|e| match e {
                rustls::Error::InconsistentKeys(_) => self.unusable(
                    "key",
                    key,
                    format!("it is not the key of the certificate {cert:?}"),
                ),
                rustls::Error::General(problem) => self.unusable("key", key, problem),
                e => self.unusable("cert", cert, e.to_string()),
            })?;
        config.alpn_protocols = self.protocols.clone();
        config.ticketer = aws_lc_rs::Ticketer::new()
            .map_err(|e| self.unusable("key", key, format!("no keys for tickets: {e}")))?;
        // A device has one connection at a time.
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }

    /// Who judges the certificates of clients, where they are asked for any.
    fn verifier(
        &self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        if self.client_cert == ClientCert::None {
            return Ok(None);
        }
        let authorities = required(&self.client_ca, self, "client_ca")?;
        let mut roots = RootCertStore::empty();
        for certificate in
            self.pem::<CertificateDer<'_>>("client_ca", authorities, "certificate")?
        {
            roots
                .add(certificate)
                .map_err(|e| self.unusable("client_ca", authorities, e.to_string()))?;
        }
        let mut builder =
            WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(provider));
        if let Some(crl) = &self.crl {
            let lists: Vec<CertificateRevocationListDer<'_>> =
                self.pem("crl", crl, "revocation list")?;
            builder = builder.with_crls(lists).only_check_end_entity_revocation();
        }
        if self.client_cert == ClientCert::Optional {
            builder = builder.allow_unauthenticated();
        }
        let verifier = builder.build().map_err(|e| match (&self.crl, e) {
            (Some(crl), VerifierBuilderError::InvalidCrl(e)) => {
                self.unusable("crl", crl, rustls::Error::from(e).to_string())
            }
            (_, e) => self.unusable("client_ca", authorities, e.to_string()),
        })?;
        Ok(Some(verifier))
    }

    /// All items of a kind in a PEM file; at least one.
    fn pem<T: PemObject>(&self, key: &str, path: &Path, what: &str) -> Result<Vec<T>, TlsError> {
        let bytes = self.bytes(key, path)?;
        let items: Result<Vec<T>, pem::Error> = T::pem_slice_iter(&bytes).collect();
        match items {
            Ok(items) if items.is_empty() => {
                Err(self.unusable(key, path, no_pem(what, &pem::Error::NoItemsFound)))
            }
            Ok(items) => Ok(items),
            Err(e) => Err(self.unusable(key, path, no_pem(what, &e))),
        }
    }

    fn bytes(&self, key: &str, path: &Path) -> Result<Vec<u8>, TlsError> {
        std::fs::read(path).map_err(|source| TlsError::Unreadable {
            key: self.key(key),
            path: path.to_owned(),
            source,
        })
    }

    fn unusable(&self, key: &str, path: &Path, problem: String) -> TlsError {
        TlsError::Unusable {
            key: self.key(key),
            path: path.to_owned(),
            problem,
        }
    }

    fn key(&self, key: &str) -> String {
        format!("listener.{}.tls.{key}", self.listener)
    }
}

fn no_pem(what: &str, error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => format!("there is no {what} in PEM in it"),
        error => format!("no {what} in PEM: {error}"),
    }
}

fn required<'a>(path: &'a Option<PathBuf>, files: &Files, key: &str) -> Result<&'a Path, TlsError> {
    path.as_deref().ok_or_else(|| TlsError::Missing {
        key: files.key(key),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
