//! What commands write: results to stdout, everything else to stderr. A reader that has gone away is no error.

use std::fmt;
use std::io::{self, Write as _};

/// Writes a result to stdout.
pub fn print(text: &str) -> io::Result<()> {
    print_bytes(text.as_bytes())
}

/// Writes a result that need not be text.
pub fn print_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Tells whoever runs the command; lost where nobody listens.
pub fn tell(message: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}
