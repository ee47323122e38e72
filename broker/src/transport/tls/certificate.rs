//! What is read from a certificate: who it names, and until when it holds. Whether it is to be trusted is decided
//! elsewhere, and before.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::SystemTime;

use flotte_mqtt::ByteStr;
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, asn1, oid::AssociatedOid as _};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::{DirectoryString, GeneralName};

use crate::config::listener::CertIdentity;

/// Reads identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(pub CertIdentity);

impl Identity {
    /// Who a certificate names; none where it names nobody, or in a way that no user name can hold.
    pub fn of(self, der: &[u8]) -> Option<Box<str>> {
        let certificate = Certificate::from_der(der).ok()?;
        let name = match self.0 {
            CertIdentity::CommonName => common_name(&certificate)?,
            CertIdentity::DistinguishedName => certificate.tbs_certificate().subject().to_string(),
            CertIdentity::AlternativeName => alternative_name(&certificate)?,
        };
        // The rules of a user name in CONNECT [MQTT-1.5.4-1], [MQTT-1.5.4-2].
        let is_name = !name.is_empty() && ByteStr::try_from(name.as_str()).is_ok();
        is_name.then(|| name.into_boxed_str())
    }
}

/// Whether a certificate does not hold any more at `now`.
pub fn is_expired(der: &[u8], now: SystemTime) -> bool {
    Certificate::from_der(der).is_ok_and(|certificate| {
        certificate
            .tbs_certificate()
            .validity()
            .not_after
            .to_system_time()
            < now
    })
}

fn common_name(certificate: &Certificate) -> Option<String> {
    const COMMON_NAME: asn1::ObjectIdentifier = asn1::ObjectIdentifier::new_unwrap("2.5.4.3");
    let subject = certificate.tbs_certificate().subject();
    let mut names = subject.iter().filter(|part| part.oid == COMMON_NAME);
    let name = names.next()?;
    // Of two nobody could say which one was meant.
    if names.next().is_some() {
        return None;
    }
    let name: DirectoryString = name.value.decode_as().ok()?;
    Some(name.value().to_string())
}

/// The first that is a name: DNS, e-mail, URI, or address.
fn alternative_name(certificate: &Certificate) -> Option<String> {
    let extensions = certificate.tbs_certificate().extensions()?;
    let names = extensions
        .iter()
        .find(|extension| extension.extn_id == SubjectAltName::OID)?;
    let names = SubjectAltName::from_der(names.extn_value.as_bytes()).ok()?;
    names.0.iter().find_map(|name| match name {
        GeneralName::DnsName(name)
        | GeneralName::Rfc822Name(name)
        | GeneralName::UniformResourceIdentifier(name) => Some(name.to_string()),
        GeneralName::IpAddress(address) => address_text(address.as_bytes()),
        _ => None,
    })
}

fn address_text(bytes: &[u8]) -> Option<String> {
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    let mut text = String::new();
    write!(text, "{address}").ok()?;
    Some(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn device() -> Vec<u8> {
        certificate(|params| {
            let name = &mut params.distinguished_name;
            name.push(DnType::OrganizationName, "Fleet, Inc.");
            name.push(DnType::CommonName, "device-7");
            params.subject_alt_names = vec![
                SanType::DnsName("seven.example".try_into().unwrap()),
                SanType::Rfc822Name("seven@example".try_into().unwrap()),
            ];
        })
    }

    #[test]
    fn each_kind_of_identity_is_read() {
        let of = |kind, der: &[u8]| Identity(kind).of(der).map(String::from);
        let device = device();
        assert_eq!(of(CertIdentity::CommonName, &device).unwrap(), "device-7");
        assert_eq!(
            of(CertIdentity::DistinguishedName, &device).unwrap(),
            "CN=device-7,O=Fleet\\, Inc."
        );
        assert_eq!(
            of(CertIdentity::AlternativeName, &device).unwrap(),
            "seven.example"
        );
        let address = certificate(|params| {
            params.subject_alt_names = vec![SanType::IpAddress([10, 0, 0, 7].into())];
        });
        assert_eq!(
            of(CertIdentity::AlternativeName, &address).unwrap(),
            "10.0.0.7"
        );
    }

    #[test]
    fn what_names_nobody_is_no_identity() {
        let nobody = certificate(|_| {});
        for kind in [
            CertIdentity::CommonName,
            CertIdentity::DistinguishedName,
            CertIdentity::AlternativeName,
        ] {
            assert_eq!(Identity(kind).of(&nobody), None, "{kind:?}");
            assert_eq!(Identity(kind).of(b"no certificate"), None);
        }
        let with_nul = certificate(|params| {
            let name = &mut params.distinguished_name;
            name.push(DnType::CommonName, "admin\0.example");
        });
        assert_eq!(Identity(CertIdentity::CommonName).of(&with_nul), None);
    }

    #[test]
    fn the_end_of_a_certificate_is_seen() {
        let now = SystemTime::now();
        let der = certificate(|params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        });
        assert!(is_expired(&der, now));
        assert!(!is_expired(&der, now - Duration::from_secs(3650 * 86_400)));
    }
}
