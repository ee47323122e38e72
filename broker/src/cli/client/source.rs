//! Where `pub` takes its messages from: the command line, a file, or stdin.

use std::io::{self, BufRead as _, Read as _};
use std::path::Path;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::ClientError;

/// The largest payload: the largest packet without a topic.
const PAYLOAD_BYTES_MAX: usize = 268_435_450;
/// How many lines are read ahead.
const LINES_AHEAD: usize = 64;

/// Messages, one after the other.
#[derive(Debug)]
pub enum Source {
    /// One message, until it is taken.
    Once(Option<Bytes>),
    /// A message for each line of stdin. A thread reads them, as stdin cannot be waited for otherwise.
    Lines(mpsc::Receiver<Result<Bytes, ClientError>>),
}

impl Source {
    /// This very message.
    pub fn text(text: &str) -> Self {
        Self::Once(Some(Bytes::copy_from_slice(text.as_bytes())))
    }

    /// The content of a file as one message.
    pub fn file(path: &Path) -> Result<Self, ClientError> {
        let name = path.display().to_string();
        match std::fs::File::open(path) {
            Ok(file) => whole(file, name),
            Err(error) => Err(ClientError::Input(name, error)),
        }
    }

    /// All of stdin as one message.
    pub fn stdin() -> Result<Self, ClientError> {
        whole(io::stdin().lock(), "stdin".to_owned())
    }

    /// Each line of stdin as a message.
    pub fn lines() -> Self {
        let (sender, lines) = mpsc::channel(LINES_AHEAD);
        std::thread::spawn(move || read_lines(io::stdin().lock(), &sender));
        Self::Lines(lines)
    }

    /// The next message; `None` after the last. Nothing is lost when it is given up half-way.
    pub async fn next(&mut self) -> Option<Result<Bytes, ClientError>> {
        match self {
            Self::Once(message) => message.take().map(Ok),
            Self::Lines(lines) => lines.recv().await,
        }
    }
}

fn whole(from: impl io::Read, name: String) -> Result<Source, ClientError> {
    let mut payload = Vec::new();
    let limit = PAYLOAD_BYTES_MAX as u64 + 1;
    from.take(limit)
        .read_to_end(&mut payload)
        .map_err(|error| ClientError::Input(name.clone(), error))?;
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(ClientError::Usage(format!(
            "{name} is larger than {PAYLOAD_BYTES_MAX} bytes"
        )));
    }
    Ok(Source::Once(Some(payload.into())))
}

fn read_lines(mut from: impl io::BufRead, to: &mpsc::Sender<Result<Bytes, ClientError>>) {
    loop {
        let mut line = Vec::new();
        let read = from
            .by_ref()
            .take(PAYLOAD_BYTES_MAX as u64 + 1)
            .read_until(b'\n', &mut line);
        let item = match read {
            Ok(0) => return,
            Ok(_) => {
                if line.ends_with(b"\n") {
                    line.pop();
                }
                if line.len() > PAYLOAD_BYTES_MAX {
                    Err(ClientError::LineTooLong(PAYLOAD_BYTES_MAX))
                } else {
                    Ok(line.into())
                }
            }
            Err(error) => Err(ClientError::Input("stdin".to_owned(), error)),
        };
        let last = item.is_err();
        // Nobody listens any more when the client has ended.
        if to.blocking_send(item).is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_without_their_end() {
        let (sender, mut lines) = mpsc::channel(LINES_AHEAD);
        read_lines(&b"one\n\ntwo\r\nlast"[..], &sender);
        drop(sender);
        let mut read = Vec::new();
        while let Some(line) = lines.blocking_recv() {
            read.push(line.unwrap());
        }
        assert_eq!(read, ["one", "", "two\r", "last"]);
    }

    #[test]
    fn reading_ends_with_the_client() {
        let (sender, lines) = mpsc::channel(LINES_AHEAD);
        drop(lines);
        read_lines(io::BufReader::new(io::repeat(b'\n')), &sender);
    }

    #[tokio::test]
    async fn a_file_is_one_message() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("payload");
        std::fs::write(&path, b"a\nb\0").unwrap();
        let mut source = Source::file(&path).unwrap();
        assert_eq!(source.next().await.unwrap().unwrap(), &b"a\nb\0"[..]);
        assert!(source.next().await.is_none());
        assert!(matches!(
            Source::file(&dir.path().join("none")),
            Err(ClientError::Input(..))
        ));
    }
}
