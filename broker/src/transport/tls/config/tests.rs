//! What is asked of certificate files, good and bad.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use tempfile::TempDir;

use super::*;

type Authority = CertifiedIssuer<'static, KeyPair>;

struct Fixture {
    dir: TempDir,
    authority: Authority,
    config: listener::Config,
}

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A listener with a certificate for "localhost" that asks for certificates of clients.
fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority();
    let path = |name: &str| Some(dir.path().join(name));
    let config = listener::Config {
        protocol: Protocol::Mqtts,
        tls_cert: path("cert.pem"),
        tls_key: path("key.pem"),
        tls_client_ca: path("ca.pem"),
        tls_client_cert: ClientCert::Required,
        tls_crl: path("crl.pem"),
        ..Default::default()
    };
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(dir.path().join("crl.pem"), crl(&authority)).unwrap();
    let (cert, key) = certificate(&authority);
    std::fs::write(dir.path().join("cert.pem"), cert).unwrap();
    std::fs::write(dir.path().join("key.pem"), key).unwrap();
    Fixture {
        dir,
        authority,
        config,
    }
}

fn certificate(authority: &Authority) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let cert = params.signed_by(&key, authority).unwrap();
    (cert.pem(), key.serialize_pem())
}

fn crl(authority: &Authority) -> String {
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(7),
        revocation_time: rcgen::date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(2120, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(authority).unwrap().pem().unwrap()
}

impl Fixture {
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn refused(&self) -> String {
        let error = Tls::new(&self.config).unwrap_err().to_string();
        error.replace(&*self.dir.path().to_string_lossy(), "")
    }
}

#[test]
fn files_that_fit_are_taken() {
    Tls::new(&fixture().config).unwrap();
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_key_and_path() {
    let fixture = fixture();
    let (other_cert, other_key) = certificate(&fixture.authority);
    let good = |name: &str| std::fs::read_to_string(fixture.dir.path().join(name)).unwrap();
    let (cert, key, ca, crl) = (
        good("cert.pem"),
        good("key.pem"),
        good("ca.pem"),
        good("crl.pem"),
    );
    for (file, content, expected) in [
        (
            "cert.pem",
            "",
            r#"listener.mqtt.tls.cert = "/cert.pem": there is no certificate in PEM in it"#,
        ),
        (
            "cert.pem",
            &key,
            r#"listener.mqtt.tls.cert = "/cert.pem": there is no certificate in PEM in it"#,
        ),
        (
            "cert.pem",
            &other_cert,
            r#"listener.mqtt.tls.key = "/key.pem": it is not the key of the certificate "/cert.pem""#,
        ),
        (
            "key.pem",
            &other_key,
            r#"listener.mqtt.tls.key = "/key.pem": it is not the key of the certificate "/cert.pem""#,
        ),
        (
            "key.pem",
            &cert,
            r#"listener.mqtt.tls.key = "/key.pem": there is no private key in PEM in it"#,
        ),
        (
            "ca.pem",
            "nothing",
            r#"listener.mqtt.tls.client_ca = "/ca.pem": there is no certificate in PEM in it"#,
        ),
        (
            "crl.pem",
            &ca,
            r#"listener.mqtt.tls.crl = "/crl.pem": there is no revocation list in PEM in it"#,
        ),
    ] {
        fixture.write(file, content);
        assert_eq!(fixture.refused(), expected, "{file}");
        for (file, content) in [
            ("cert.pem", &cert),
            ("key.pem", &key),
            ("ca.pem", &ca),
            ("crl.pem", &crl),
        ] {
            fixture.write(file, content);
        }
    }
    fixture.write(
        "key.pem",
        "-----BEGIN PRIVATE KEY-----\n%%%\n-----END PRIVATE KEY-----\n",
    );
    assert!(
        fixture
            .refused()
            .starts_with(r#"listener.mqtt.tls.key = "/key.pem": no private key in PEM: "#)
    );
    std::fs::remove_file(fixture.dir.path().join("key.pem")).unwrap();
    assert!(
        fixture
            .refused()
            .starts_with(r#"listener.mqtt.tls.key = "/key.pem" cannot be read: "#)
    );
}

#[test]
fn a_reload_changes_all_or_nothing() {
    let fixture = fixture();
    let tls = Tls::new(&fixture.config).unwrap();
    let before = Arc::clone(&tls.current.read());
    let (cert, key) = certificate(&fixture.authority);
    fixture.write("cert.pem", &cert);
    tls.read().unwrap_err();
    assert!(Arc::ptr_eq(&before, &tls.current.read()));
    fixture.write("key.pem", &key);
    let loaded = tls.read().unwrap();
    assert!(Arc::ptr_eq(&before, &tls.current.read()), "not yet");
    tls.replace(loaded);
    assert!(!Arc::ptr_eq(&before, &tls.current.read()));
}

#[test]
fn a_listener_without_a_file_that_it_needs_is_refused() {
    let mut fixture = fixture();
    fixture.config.tls_client_ca = None;
    assert_eq!(fixture.refused(), "listener.mqtt.tls.client_ca is not set");
    assert!(Path::new(&fixture.dir.path().join("key.pem")).exists());
}
