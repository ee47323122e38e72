//! Puts the lines of several processes on one console, each with the name of who wrote it.

use std::io::{self, IsTerminal as _, Write as _};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

/// A longer line is cut into pieces.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// Copies `from` to stderr, line by line, until its end.
pub async fn copy(name: String, color: u8, from: impl AsyncRead + Unpin) {
    let prefix = if io::stderr().is_terminal() {
        format!("\x1b[{color}m{name} |\x1b[0m ")
    } else {
        format!("{name} | ")
    };
    let mut from = BufReader::new(from);
    while let Some(line) = next_line(&mut from).await {
        let mut console = io::stderr().lock();
        // A console that is gone is no reason to stop a cluster; the node must not block on its pipe either.
        let _ = console
            .write_all(prefix.as_bytes())
            .and_then(|()| console.write_all(&line));
    }
}

/// A line with its end; `None` after the last.
async fn next_line(from: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let read = from.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
    if line.is_empty() || (read.is_err() && line.is_empty()) {
        return None;
    }
    if !line.ends_with(b"\n") {
        line.push(b'\n');
    }
    Some(line)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_kept_whole_and_long_ones_cut() {
        let long = vec![b'x'; usize::try_from(LINE_BYTES_MAX).unwrap() + 1];
        let text = [&b"one\n\nlast \xff\n"[..], &long].concat();
        let mut from = BufReader::new(&text[..]);
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut from).await {
            lines.push(line);
        }
        assert_eq!(lines[..3], [&b"one\n"[..], b"\n", b"last \xff\n"]);
        assert_eq!((lines[3].len(), lines[4].as_slice()), (65_537, &b"x\n"[..]));
    }
}
