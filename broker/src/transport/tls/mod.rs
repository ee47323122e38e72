//! TLS: certificates from files, and sessions that are driven by hand. It does no IO on sockets.

mod certificate;
mod config;
mod session;

pub use config::{Loaded, Tls, TlsError};
pub use session::Session;
