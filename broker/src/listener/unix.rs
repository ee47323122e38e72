//! The file of a unix socket: made at the start, taken over from a process that is gone, removed at the end.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// User and group may connect.
const MODE: u32 = 0o660;

/// The file of a socket that is bound.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: another process may have put its own file there.
    id: (u64, u64),
}

impl SocketFile {
    /// Binds the path and listens; nobody is accepted yet. A file that a dead process has left is replaced.
    pub fn bind(path: &Path, backlog: i32) -> io::Result<(Socket, SocketFile)> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let address = SockAddr::unix(path)?;
        match socket.bind(&address) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                socket.bind(&address)?;
            }
            bound => bound?,
        }
        // Before it may be connected to, it must not look as if it was left behind.
        socket.listen(backlog)?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
        let file = SocketFile {
            path: path.to_owned(),
            id: id_of(path)?,
        };
        Ok((socket, file))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if id_of(&self.path).is_ok_and(|id| id == self.id) {
            // It will be replaced at the next start, if it has to stay.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that nobody listens on any more; anything else stays, and is an error.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        let what = "there is a file that is no socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(e) => Err(e),
    }
}

fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_nobody_listens_on_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mqtt.sock");
        let (socket, file) = SocketFile::bind(&path, 8).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let refused = SocketFile::bind(&path, 8).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        // As after kill -9: closed, and the file is still there.
        std::mem::forget(file);
        drop(socket);
        assert!(path.exists());
        let (_socket, file) = SocketFile::bind(&path, 8).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mqtt.sock");
        fs::write(&path, "precious").unwrap();
        assert!(SocketFile::bind(&path, 8).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();
        let (_socket, file) = SocketFile::bind(&path, 8).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another").unwrap();
        drop(file);
        assert!(path.exists());
    }
}
