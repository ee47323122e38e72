//! One hashed password: reading its text, verifying a password against it in constant time, and making a new one. Verifying is
//! slow on purpose: this code never runs on a worker.

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Argon2, Params};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha512};
use subtle::ConstantTimeEq as _;

/// One verification may use this much memory; a file that asks for more is refused, not obeyed.
const ARGON2_KIB_MAX: u32 = 1024 * 1024;
/// And so much in all its passes: a few seconds of work, as the two below. Whoever may try passwords makes the node do that
/// for each of them.
const ARGON2_KIB_PASSES_MAX: u64 = 4 * 1024 * 1024;
const BCRYPT_COST_MAX: u32 = 16;
const PBKDF2_ITERATIONS_MAX: u32 = 5_000_000;

/// The length of SHA-512 and of what `mosquitto_passwd` derives.
const SHA512_LEN: usize = 64;

/// A hashed password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hash {
    /// PHC string, `$argon2id$v=19$...`; what `flotte passwd` writes.
    Argon2id(Box<str>),
    /// Modular crypt string, `$2b$...`.
    Bcrypt(Box<str>),
    /// `mosquitto_passwd -H sha512`: `$6$salt$hash`, one SHA-512 of password and salt.
    Sha512(Salted),
    /// `mosquitto_passwd`: `$7$iterations$salt$hash`, PBKDF2-HMAC-SHA512.
    Pbkdf2 { iterations: u32, salted: Salted },
}

/// A salt and what it gave together with the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Salted {
    salt: Box<[u8]>,
    hash: Box<[u8; SHA512_LEN]>,
}

/// Why a text is not a hash that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    #[error(
        "not a hash of a known kind: known are $argon2id$, $2a$, $2b$ and $2y$ (bcrypt), $6$ and $7$ (mosquitto_passwd)"
    )]
    UnknownKind,
    #[error("a {kind} hash that is not well-formed")]
    Malformed { kind: &'static str },
    #[error("a {kind} hash that costs more than is allowed ({allowed})")]
    TooCostly {
        kind: &'static str,
        allowed: &'static str,
    },
}

impl Hash {
    /// Reads a hash and checks that it can be verified within bounds.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        match text.split('$').nth(1) {
            Some("argon2id") => parse_argon2id(text),
            Some("2a" | "2b" | "2y") => parse_bcrypt(text),
            Some("6") => parse_sha512(text),
            Some("7") => parse_pbkdf2(text),
            _ => Err(HashError::UnknownKind),
        }
    }

    /// Whether `password` is the one; takes as long when it is not.
    pub fn verify(&self, password: &[u8]) -> bool {
        match self {
            Self::Argon2id(text) => PasswordHash::new(text)
                .is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok()),
            Self::Bcrypt(text) => bcrypt::verify(password, text).unwrap_or(false),
            Self::Sha512(Salted { salt, hash }) => {
                let computed = Sha512::new()
                    .chain_update(password)
                    .chain_update(salt)
                    .finalize();
                computed.as_slice().ct_eq(hash.as_slice()).into()
            }
            Self::Pbkdf2 {
                iterations,
                salted: Salted { salt, hash },
            } => {
                let mut computed = [0; SHA512_LEN];
                pbkdf2::pbkdf2_hmac::<Sha512>(password, salt, *iterations, &mut computed);
                computed.ct_eq(hash.as_slice()).into()
            }
        }
    }
}

/// Hashes a new password with argon2id and a random salt.
pub fn hash_new(password: &[u8]) -> Result<String, argon2::password_hash::Error> {
    Ok(Argon2::default().hash_password(password)?.to_string())
}

fn parse_argon2id(text: &str) -> Result<Hash, HashError> {
    const KIND: &str = "argon2id";
    let malformed = || HashError::Malformed { kind: KIND };
    let hash = PasswordHash::new(text).map_err(|_| malformed())?;
    let params = Params::try_from(&hash).map_err(|_| malformed())?;
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err(malformed());
    }
    let passes = u64::from(params.m_cost()) * u64::from(params.t_cost());
    if params.m_cost() > ARGON2_KIB_MAX || passes > ARGON2_KIB_PASSES_MAX {
        return Err(HashError::TooCostly {
            kind: KIND,
            allowed: "m=1048576, and 4194304 for m times t",
        });
    }
    Ok(Hash::Argon2id(text.into()))
}

fn parse_bcrypt(text: &str) -> Result<Hash, HashError> {
    const KIND: &str = "bcrypt";
    let parts: bcrypt::HashParts = text
        .parse()
        .map_err(|_| HashError::Malformed { kind: KIND })?;
    if parts.get_cost() > BCRYPT_COST_MAX {
        return Err(HashError::TooCostly {
            kind: KIND,
            allowed: "cost 16",
        });
    }
    Ok(Hash::Bcrypt(text.into()))
}

fn parse_sha512(text: &str) -> Result<Hash, HashError> {
    let malformed = || HashError::Malformed { kind: "$6$" };
    let ["", "6", salt, hash] = text.split('$').collect::<Vec<_>>()[..] else {
        return Err(malformed());
    };
    salted(salt, hash).map(Hash::Sha512).ok_or_else(malformed)
}

fn parse_pbkdf2(text: &str) -> Result<Hash, HashError> {
    const KIND: &str = "$7$";
    let malformed = || HashError::Malformed { kind: KIND };
    let ["", "7", iterations, salt, hash] = text.split('$').collect::<Vec<_>>()[..] else {
        return Err(malformed());
    };
    let iterations: u32 = iterations.parse().map_err(|_| malformed())?;
    if iterations == 0 {
        return Err(malformed());
    }
    if iterations > PBKDF2_ITERATIONS_MAX {
        return Err(HashError::TooCostly {
            kind: KIND,
            allowed: "5000000 iterations",
        });
    }
    let salted = salted(salt, hash).ok_or_else(malformed)?;
    Ok(Hash::Pbkdf2 { iterations, salted })
}

fn salted(salt: &str, hash: &str) -> Option<Salted> {
    let salt = STANDARD.decode(salt).ok()?;
    let hash: [u8; SHA512_LEN] = STANDARD.decode(hash).ok()?.try_into().ok()?;
    Some(Salted {
        salt: salt.into(),
        hash: Box::new(hash),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Made by mosquitto_passwd 2.0 and 2.1 for "secret é".
    const MOSQUITTO: [&str; 2] = [
        "$7$101$EmbXK2zOphRgaN8b$ASPcnpqrxapgdNJteUQ9vRY73spY9Y8Ch0d//qFxsXwIwyH39uc3QLj6Lb9/8fY9V+5nLQILbVQ4BM2xkFbyMg==",
        "$6$0kaY5rJrkZ2JqXlc$fqVHr1SCXN7KvAeQF/eHUq1Hn5tRkawtLU2kOnK6CEF7ERpjl82CHpRxmchKMu6fghH5oro+IA5SYhjeQ439TA==",
    ];

    #[test]
    fn hashes_of_mosquitto_are_verified() {
        for text in MOSQUITTO {
            let hash = Hash::parse(text).unwrap();
            assert!(hash.verify("secret é".as_bytes()), "{text}");
            assert!(!hash.verify(b"secret"), "{text}");
            assert!(!hash.verify(b""), "{text}");
        }
    }

    #[test]
    fn a_new_hash_is_argon2id_with_its_own_salt_and_verifies() {
        let (one, other) = (hash_new(b"secret").unwrap(), hash_new(b"secret").unwrap());
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
        assert_ne!(one, other);
        let hash = Hash::parse(&one).unwrap();
        assert!(hash.verify(b"secret"));
        assert!(!hash.verify(b"Secret"));
    }

    #[test]
    fn hashes_of_bcrypt_are_verified() {
        let text = bcrypt::hash("secret", 4).unwrap();
        for version in ["$2a$", "$2b$", "$2y$"] {
            let hash = Hash::parse(&text.replacen("$2b$", version, 1)).unwrap();
            assert!(hash.verify(b"secret"));
            assert!(!hash.verify(b"other"));
        }
    }

    #[test]
    fn what_is_no_hash_says_why() {
        for unknown in [
            "",
            "secret",
            "$1$a$b",
            "$argon2i$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert_eq!(
                Hash::parse(unknown),
                Err(HashError::UnknownKind),
                "{unknown}"
            );
        }
        for (malformed, kind) in [
            ("$6$only", "$6$"),
            ("$6$AAAA$AAAA", "$6$"),
            ("$7$0$AAAA$AAAA", "$7$"),
            ("$7$x$AAAA$AAAA", "$7$"),
            ("$2b$zz$", "bcrypt"),
            ("$argon2id$v=19$m=8,t=1,p=1", "argon2id"),
            ("$argon2id$", "argon2id"),
        ] {
            assert_eq!(
                Hash::parse(malformed),
                Err(HashError::Malformed { kind }),
                "{malformed}"
            );
        }
    }

    #[test]
    fn a_hash_that_would_take_the_machine_down_is_refused() {
        let argon2 = "$argon2id$v=19$m=4000000,t=2,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let passes = argon2.replacen("m=4000000,t=2", "m=65536,t=1000", 1);
        let pbkdf2 = MOSQUITTO[0].replacen("101", "4000000000", 1);
        let bcrypt = bcrypt::hash("secret", 4)
            .unwrap()
            .replacen("$04$", "$31$", 1);
        for text in [argon2, &passes, &pbkdf2, &bcrypt] {
            assert!(
                matches!(Hash::parse(text), Err(HashError::TooCostly { .. })),
                "{text}"
            );
        }
    }
}
