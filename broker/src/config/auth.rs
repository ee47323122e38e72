//! `[auth]`: who may connect.

use std::path::PathBuf;

use super::listener;
use super::section::section;
use super::types::{Nothing, Present};
use super::value::choice;

choice! {
    /// A way to prove who one is.
    Method {
        /// Lines of user and hash in a file.
        PasswordFile = "password-file",
        /// The certificate that the client showed to the listener, checked there.
        Certificate = "certificate",
    }
    later { "jwt", "http", "scram" }
}

section! {
    /// Who may connect.
    "auth" {
        /// Whether clients without a user name are taken. Unset: on loopback, as long as no method is configured.
        allow_anonymous: Option<bool> = None;
        /// The methods that are asked, in order. Unset: those that have a table here.
        chain: Option<Vec<Method>> = None;
        /// Lines of `user:hash`, made with `flotte passwd`; bcrypt and mosquitto_passwd's $6$ and $7$ are read, too. Read
        /// again by a reload: clients whose user is gone are closed; a password that changed counts at the next CONNECT.
        password_file ["password-file.file"]: Option<PathBuf> = None;
        /// A client that shows a certificate is who it says, by `tls.identity` of its listener; whatever user name its
        /// CONNECT holds does not count then. A table without keys.
        certificate: Option<Present> = None;
    }
    later {
        /// Signed tokens as passwords.
        "jwt": Option<Nothing> = None;
        /// A question to an HTTP server.
        "http": Option<Nothing> = None;
        /// SCRAM in AUTH packets of 5.0.
        "scram": Option<Nothing> = None;
    }
}

impl Config {
    /// Whether clients without a user name are taken on `listener`.
    pub fn takes_anonymous(&self, listener: &listener::Config) -> bool {
        let out_of_the_box = self.methods().is_empty() && listener.bind.is_local();
        listener
            .allow_anonymous
            .or(self.allow_anonymous)
            .unwrap_or(out_of_the_box)
    }

    /// The methods that are asked, in order.
    pub fn methods(&self) -> Vec<Method> {
        if let Some(chain) = &self.chain {
            return chain.clone();
        }
        let password_file = self.password_file.as_ref().map(|_| Method::PasswordFile);
        let certificate = self.certificate.map(|_| Method::Certificate);
        password_file.into_iter().chain(certificate).collect()
    }
}
