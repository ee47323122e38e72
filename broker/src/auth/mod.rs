//! Who may connect: the rule for anonymous clients and the password file. It knows no packet; the connection turns an
//! [`AuthError`] into the reason code of its version.
//!
//! Verifying a password is slow on purpose, so it runs off the workers, a few at a time; what was verified once is remembered
//! until the file is read again, so that a fleet that reconnects does not pay for it each time.

pub mod acl;
mod hash;
mod password_file;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::Semaphore;

use crate::config;
use crate::config::auth::Method;

pub use hash::{Hash, HashError, hash_new};
pub use password_file::{PasswordFileError, PasswordTable, Problem, ProblemKind, is_blank};

/// How many clients may wait for the verification of their password; what is beyond is told to come back later.
const WAITING_MAX: usize = 4096;

/// Decides who may connect. One per node, shared by all listeners.
pub struct Authenticator {
    config: config::auth::Config,
    /// Present when the password file is asked; the lock guards only the pointer.
    passwords: Option<Passwords>,
    /// Verifications under way: each takes a core, and with argon2id 19 MiB.
    slots: Arc<Semaphore>,
    /// How many wait for a slot, up to [`WAITING_MAX`].
    waiting: AtomicUsize,
    /// How long one waits before it is told to come back: a storm of wrong passwords must not be worked off for clients that
    /// have long given up.
    patience: Duration,
}

struct Passwords {
    path: PathBuf,
    table: RwLock<Arc<PasswordTable>>,
}

/// What a client says about itself in CONNECT, and where it came from.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    pub listener: &'a config::listener::Config,
    pub username: Option<&'a str>,
    pub password: Option<&'a [u8]>,
    /// Who the certificate names that it showed, and that was checked.
    pub certificate: Option<&'a str>,
    pub peer: SocketAddr,
}

/// Who a client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Only a name that was proven: an anonymous client has none, whatever it says.
    pub username: Option<Arc<str>>,
    pub proof: Proof,
}

/// How a client proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Not at all, and need not.
    Anonymous,
    PasswordFile,
    Certificate,
}

/// Why a client may not connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Wrong user or password; which of both is not told. 0x86, 3.x: 4.
    #[error("bad user name or password")]
    BadCredentials,
    /// It brings nothing, and anonymous clients are not taken here. 0x87, 3.x: 5.
    #[error("not authorized")]
    NotAuthorized,
    /// Too many wait already, or the check itself failed. 0x88, 3.x: 3.
    #[error("authentication is not available")]
    Unavailable,
}

impl Authenticator {
    /// Reads the password file, if one is configured; blocks. `patience` is how long a client waits for its turn.
    pub fn new(
        config: &config::auth::Config,
        patience: Duration,
    ) -> Result<Self, PasswordFileError> {
        let asked = config
            .methods()
            .contains(&config::auth::Method::PasswordFile);
        let passwords = match config.password_file.as_ref().filter(|_| asked) {
            None => None,
            Some(path) => {
                let table = RwLock::new(Arc::new(PasswordTable::read(path)?));
                Some(Passwords {
                    path: path.clone(),
                    table,
                })
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            config: config.clone(),
            passwords,
            slots: Arc::new(Semaphore::new((cores / 2).max(1))),
            waiting: AtomicUsize::new(0),
            patience,
        })
    }

    /// Whether there is a password file.
    pub fn has_passwords(&self) -> bool {
        self.passwords.is_some()
    }

    /// Reads the password file again; blocks and changes nothing. None = there is no file.
    pub fn read_again(&self) -> Result<Option<PasswordTable>, PasswordFileError> {
        let read = |passwords: &Passwords| PasswordTable::read(&passwords.path);
        self.passwords.as_ref().map(read).transpose()
    }

    /// Puts other users in the place of those that were; what was remembered is forgotten.
    pub fn replace(&self, table: PasswordTable) {
        if let Some(passwords) = &self.passwords {
            *passwords.table.write() = Arc::new(table);
        }
    }

    /// Whether a client that was let in as this one would be known today. A password that changed since counts at its next
    /// CONNECT only.
    pub fn still_takes(&self, username: Option<&str>, proof: Proof) -> bool {
        let (Proof::PasswordFile, Some(passwords)) = (proof, &self.passwords) else {
            return true;
        };
        username.is_some_and(|name| passwords.table.read().knows(name))
    }

    /// Decides about a client. At once, unless a password has to be verified for the first time.
    pub async fn authenticate(&self, attempt: Attempt<'_>) -> Result<Identity, AuthError> {
        let verdict = self.decide(&attempt).await;
        let (method, result) = match &verdict {
            Ok(Identity {
                proof: Proof::Anonymous,
                ..
            }) => ("anonymous", "ok"),
            Ok(Identity {
                proof: Proof::PasswordFile,
                ..
            }) => ("password-file", "ok"),
            Ok(Identity {
                proof: Proof::Certificate,
                ..
            }) => ("certificate", "ok"),
            Err(AuthError::BadCredentials) => ("password-file", "bad_credentials"),
            Err(AuthError::NotAuthorized) => ("anonymous", "not_authorized"),
            Err(AuthError::Unavailable) => ("password-file", "unavailable"),
        };
        metrics::counter!("flotte_auth_total", "method" => method, "result" => result).increment(1);
        if let Err(error) = &verdict {
            let Attempt {
                listener,
                username,
                peer,
                ..
            } = attempt;
            tracing::debug!(listener = listener.name.as_str(), %peer, username, %error, "client refused");
        }
        verdict
    }

    async fn decide(&self, attempt: &Attempt<'_>) -> Result<Identity, AuthError> {
        if let Some(name) = self.certified(attempt) {
            return Ok(Identity {
                username: Some(name.into()),
                proof: Proof::Certificate,
            });
        }
        let anonymous = Identity {
            username: None,
            proof: Proof::Anonymous,
        };
        let takes_anonymous = self.config.takes_anonymous(attempt.listener);
        match (&self.passwords, attempt.username) {
            // A name that nobody can prove is as good as none.
            (None, _) | (Some(_), None) if takes_anonymous => Ok(anonymous),
            (_, None) => Err(AuthError::NotAuthorized),
            (None, Some(_)) => Err(AuthError::BadCredentials),
            (Some(passwords), Some(username)) => {
                let table = Arc::clone(&passwords.table.read());
                let username = self
                    .check_password(table, username, attempt.password.unwrap_or_default())
                    .await?;
                Ok(Identity {
                    username: Some(username),
                    proof: Proof::PasswordFile,
                })
            }
        }
    }

    /// Who a certificate proves a client to be, where that is the method for it: a password is asked first only where it
    /// stands first in the chain and the client names a user.
    fn certified<'a>(&self, attempt: &Attempt<'a>) -> Option<&'a str> {
        let asked = self
            .config
            .methods()
            .into_iter()
            .find(|method| match method {
                Method::PasswordFile => attempt.username.is_some(),
                Method::Certificate => attempt.certificate.is_some(),
            });
        attempt
            .certificate
            .filter(|_| asked == Some(Method::Certificate))
    }

    async fn check_password(
        &self,
        table: Arc<PasswordTable>,
        username: &str,
        password: &[u8],
    ) -> Result<Arc<str>, AuthError> {
        let candidate = table.candidate(username);
        if let Some(name) = table.remembered(candidate, password) {
            return Ok(name);
        }
        let waiting = Waiting::enter(&self.waiting).ok_or(AuthError::Unavailable)?;
        let turn = Arc::clone(&self.slots).acquire_owned();
        let slot = match tokio::time::timeout(self.patience, turn).await {
            Ok(Ok(slot)) => slot,
            _ => return Err(AuthError::Unavailable),
        };
        drop(waiting);
        // Others of the same user may have been verified while this one waited.
        if let Some(name) = table.remembered(candidate, password) {
            return Ok(name);
        }
        let password = password.to_vec();
        let verified = tokio::task::spawn_blocking(move || {
            // Held until the work is done, also when the client is gone meanwhile.
            let _slot = slot;
            table.verify(candidate, &password)
        });
        match verified.await {
            Ok(name) => name.ok_or(AuthError::BadCredentials),
            Err(error) => {
                tracing::error!(%error, "a password could not be verified");
                Err(AuthError::Unavailable)
            }
        }
    }
}

/// One client that waits for a slot.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    /// Joins those who wait, unless they are too many.
    fn enter(waiting: &'a AtomicUsize) -> Option<Self> {
        let one_more = |count: usize| (count < WAITING_MAX).then_some(count + 1);
        waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()
            .map(|_| Self(waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    struct Fixture {
        dir: tempfile::TempDir,
        config: config::auth::Config,
        listener: config::listener::Config,
    }

    /// A file with ann, whose password is "a".
    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwords");
        std::fs::write(&path, format!("ann:{}\n", hash_new(b"a").unwrap())).unwrap();
        let config = config::auth::Config {
            password_file: Some(path),
            ..Default::default()
        };
        Fixture {
            dir,
            config,
            listener: config::listener::Config::default(),
        }
    }

    impl Fixture {
        fn attempt<'a>(
            &'a self,
            username: Option<&'a str>,
            password: Option<&'a [u8]>,
        ) -> Attempt<'a> {
            Attempt {
                listener: &self.listener,
                username,
                password,
                certificate: None,
                peer: "127.0.0.1:1".parse().unwrap(),
            }
        }
    }

    #[tokio::test]
    async fn the_right_password_gives_the_proven_name_and_is_remembered() {
        let fixture = fixture();
        let authenticator = Authenticator::new(&fixture.config, PATIENCE).unwrap();
        for _ in 0..2 {
            let identity = authenticator
                .authenticate(fixture.attempt(Some("ann"), Some(b"a")))
                .await
                .unwrap();
            assert_eq!(
                identity,
                Identity {
                    username: Some("ann".into()),
                    proof: Proof::PasswordFile
                }
            );
        }
        let table = Arc::clone(&authenticator.passwords.as_ref().unwrap().table.read());
        assert!(table.remembered(table.candidate("ann"), b"a").is_some());
    }

    #[tokio::test]
    async fn wrong_user_wrong_password_and_no_password_look_the_same() {
        let fixture = fixture();
        let authenticator = Authenticator::new(&fixture.config, PATIENCE).unwrap();
        for (username, password) in [("ann", Some(&b"b"[..])), ("bob", Some(b"a")), ("ann", None)] {
            let refused = authenticator
                .authenticate(fixture.attempt(Some(username), password))
                .await;
            assert_eq!(refused, Err(AuthError::BadCredentials));
        }
    }

    #[tokio::test]
    async fn anonymous_clients_follow_the_rule_of_the_listener() {
        let mut fixture = fixture();
        let authenticator = Authenticator::new(&fixture.config, PATIENCE).unwrap();
        let refused = authenticator
            .authenticate(fixture.attempt(None, None))
            .await;
        assert_eq!(refused, Err(AuthError::NotAuthorized));
        fixture.listener.allow_anonymous = Some(true);
        let taken = authenticator
            .authenticate(fixture.attempt(None, None))
            .await
            .unwrap();
        assert_eq!(
            taken,
            Identity {
                username: None,
                proof: Proof::Anonymous
            }
        );
        // Who gives a name has to prove it all the same.
        let refused = authenticator
            .authenticate(fixture.attempt(Some("ann"), Some(b"b")))
            .await;
        assert_eq!(refused, Err(AuthError::BadCredentials));
    }

    #[tokio::test]
    async fn without_a_method_a_name_proves_nothing() {
        let mut fixture = fixture();
        let authenticator = Authenticator::new(&config::auth::Config::default(), PATIENCE).unwrap();
        let taken = authenticator
            .authenticate(fixture.attempt(Some("ann"), Some(b"a")))
            .await
            .unwrap();
        assert_eq!(taken.username, None);
        fixture.listener.bind = "10.0.0.1:1883".parse().unwrap();
        let refused = authenticator
            .authenticate(fixture.attempt(Some("ann"), Some(b"a")))
            .await;
        assert_eq!(refused, Err(AuthError::BadCredentials));
    }

    #[tokio::test]
    async fn a_certificate_counts_in_its_turn() {
        let mut fixture = fixture();
        let mut with = |chain: &[Method]| {
            fixture.config.chain = Some(chain.to_vec());
            Authenticator::new(&fixture.config, PATIENCE).unwrap()
        };
        let certificate_first = with(&[Method::Certificate, Method::PasswordFile]);
        let password_first = with(&[Method::PasswordFile, Method::Certificate]);
        let no_certificate = with(&[Method::PasswordFile]);
        let attempt = |username, certificate| Attempt {
            certificate,
            ..fixture.attempt(username, Some(b"a"))
        };
        let named = |identity: Result<Identity, AuthError>| {
            identity.map(|one| one.username.as_deref().map(str::to_owned))
        };
        let both = attempt(Some("ann"), Some("device"));
        let only_certificate = attempt(None, Some("device"));
        for (authenticator, attempt, expected) in [
            (&certificate_first, both, Ok(Some("device"))),
            (
                &certificate_first,
                attempt(Some("ann"), None),
                Ok(Some("ann")),
            ),
            (&password_first, both, Ok(Some("ann"))),
            (&password_first, only_certificate, Ok(Some("device"))),
            (
                &no_certificate,
                only_certificate,
                Err(AuthError::NotAuthorized),
            ),
        ] {
            let found = named(authenticator.authenticate(attempt).await);
            assert_eq!(found, expected.map(|name| name.map(str::to_owned)));
        }
    }

    #[tokio::test]
    async fn a_reload_takes_new_passwords_and_forgets_old_ones() {
        let fixture = fixture();
        let authenticator = Authenticator::new(&fixture.config, PATIENCE).unwrap();
        authenticator
            .authenticate(fixture.attempt(Some("ann"), Some(b"a")))
            .await
            .unwrap();
        std::fs::write(
            fixture.dir.path().join("passwords"),
            format!("ann:{}\n", hash_new(b"new").unwrap()),
        )
        .unwrap();
        authenticator.replace(authenticator.read_again().unwrap().unwrap());
        let old = authenticator
            .authenticate(fixture.attempt(Some("ann"), Some(b"a")))
            .await;
        assert_eq!(old, Err(AuthError::BadCredentials));
        authenticator
            .authenticate(fixture.attempt(Some("ann"), Some(b"new")))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_broken_file_at_a_reload_changes_nothing() {
        let fixture = fixture();
        let authenticator = Authenticator::new(&fixture.config, PATIENCE).unwrap();
        std::fs::write(fixture.dir.path().join("passwords"), "garbage\n").unwrap();
        let error = authenticator.read_again().err().unwrap().to_string();
        assert!(error.ends_with("line 1: not a `user:hash` line"), "{error}");
        authenticator
            .authenticate(fixture.attempt(Some("ann"), Some(b"a")))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn whoever_was_removed_is_not_taken_any_longer() {
        let fixture = fixture();
        let authenticator = Authenticator::new(&fixture.config, PATIENCE).unwrap();
        let takes = |proof| authenticator.still_takes(Some("ann"), proof);
        let write = |text: String| std::fs::write(fixture.dir.path().join("passwords"), text);
        write(format!("ann:{}\n", hash_new(b"new").unwrap())).unwrap();
        authenticator.replace(authenticator.read_again().unwrap().unwrap());
        assert!(takes(Proof::PasswordFile), "though by another password");
        write(String::new()).unwrap();
        let none = authenticator.read_again().unwrap().unwrap();
        assert!(takes(Proof::PasswordFile), "reading alone changes nothing");
        authenticator.replace(none);
        assert!(!takes(Proof::PasswordFile));
        assert!(takes(Proof::Anonymous));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_for_a_turn() {
        let fixture = fixture();
        let authenticator = Authenticator::new(&fixture.config, PATIENCE).unwrap();
        let slots = u32::try_from(authenticator.slots.available_permits()).unwrap();
        let _all = authenticator.slots.acquire_many(slots).await.unwrap();
        let refused = authenticator
            .authenticate(fixture.attempt(Some("ann"), Some(b"a")))
            .await;
        assert_eq!(refused, Err(AuthError::Unavailable));
        assert_eq!(authenticator.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_missing_file_is_an_error_at_the_start() {
        let config = config::auth::Config {
            password_file: Some("does/not/exist".into()),
            ..Default::default()
        };
        assert!(matches!(
            Authenticator::new(&config, PATIENCE),
            Err(PasswordFileError::Unreadable { .. })
        ));
    }

    #[tokio::test]
    async fn too_many_waiting_clients_are_told_to_come_back() {
        let fixture = fixture();
        let authenticator = Authenticator::new(&fixture.config, PATIENCE).unwrap();
        authenticator.waiting.store(WAITING_MAX, Ordering::Relaxed);
        let refused = authenticator
            .authenticate(fixture.attempt(Some("ann"), Some(b"a")))
            .await;
        assert_eq!(refused, Err(AuthError::Unavailable));
    }

    #[tokio::test]
    async fn a_client_that_gives_up_waiting_leaves_no_trace() {
        let fixture = fixture();
        let authenticator = Authenticator::new(&fixture.config, PATIENCE).unwrap();
        let slots = u32::try_from(authenticator.slots.available_permits()).unwrap();
        let all = authenticator.slots.acquire_many(slots).await.unwrap();
        let mut attempt =
            Box::pin(authenticator.authenticate(fixture.attempt(Some("ann"), Some(b"a"))));
        assert!(futures::poll!(attempt.as_mut()).is_pending());
        assert_eq!(authenticator.waiting.load(Ordering::Relaxed), 1);
        drop(attempt);
        assert_eq!(authenticator.waiting.load(Ordering::Relaxed), 0);
        drop(all);
        authenticator
            .authenticate(fixture.attempt(Some("ann"), Some(b"a")))
            .await
            .unwrap();
    }
}
