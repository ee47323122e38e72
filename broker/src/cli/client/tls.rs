//! TLS of the clients: whom they trust and what they show.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::ClientError;
use super::options::ConnectOptions;
use crate::transport::Session;

/// A session where the options ask for TLS, otherwise none.
pub fn session(options: &ConnectOptions) -> Result<Option<Session>, ClientError> {
    if !options.is_tls() {
        return Ok(None);
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match (&options.cafile, options.insecure) {
        (_, true) => Arc::new(Anybody(Arc::clone(&provider))),
        (Some(cafile), false) => trusted(cafile, &provider)?,
        (None, false) => {
            return Err(ClientError::Usage(
                "--cert needs --cafile: who signs the broker's certificate".to_owned(),
            ));
        }
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(setup)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|error| unusable(cert, error))?,
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = if options.ws {
        vec![b"http/1.1".to_vec()]
    } else {
        vec![b"mqtt".to_vec()]
    };
    let name = ServerName::try_from(options.host.clone())
        .map_err(|_| ClientError::Usage(format!("{} is no name of a host", options.host)))?;
    Session::client(config.into(), name)
        .map(Some)
        .map_err(setup)
}

fn trusted(
    cafile: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, ClientError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(cafile)? {
        roots
            .add(certificate)
            .map_err(|error| unusable(cafile, error))?;
    }
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(provider)).build();
    verifier
        .map(|verifier| verifier as Arc<dyn ServerCertVerifier>)
        .map_err(|error| unusable(cafile, error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(unusable(path, "there is no certificate in PEM in it"))
        }
        read => read.map_err(|error| unusable(path, error)),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ClientError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unusable(path, error))
}

fn unusable(path: &Path, why: impl ToString) -> ClientError {
    ClientError::Input(
        path.display().to_string(),
        io::Error::other(why.to_string()),
    )
}

fn setup(error: Error) -> ClientError {
    ClientError::Setup(io::Error::other(error))
}

/// Believes every certificate, for who asked for that.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
