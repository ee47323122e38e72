//! `flotte passwd FILE USER`: adds, changes or deletes a user of a password file. The file is replaced as a whole or not at all;
//! lines of others stay as they are.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::tell;
use super::{Exit, Failure};
use crate::auth::{hash_new, is_blank};

/// The longest password of MQTT.
const PASSWORD_BYTES_MAX: u64 = 65_535;

#[derive(Debug, Args)]
pub struct Arguments {
    /// The password file; made, readable by its owner only, where there is none.
    file: PathBuf,
    /// The user to add or change. The password is asked for, or is one line of stdin.
    user: String,
    /// Delete the user.
    #[arg(short = 'D', long)]
    delete: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PasswdError {
    #[error(
        "the user name {0:?} cannot stand in a password file: it must not be empty, begin with `#` or a space, or hold `:` or a line break"
    )]
    UserName(String),
    #[error("the two passwords are not the same")]
    NotTheSame,
    #[error("an empty password")]
    Empty,
    #[error("a password of more than {PASSWORD_BYTES_MAX} bytes")]
    TooLong,
    #[error("the password cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("there is no user {user} in {}", path.display())]
    NoSuchUser { user: String, path: PathBuf },
    #[error("the password cannot be hashed: {0}")]
    Hash(String),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

impl Failure for PasswdError {
    fn exit(&self) -> Exit {
        match self {
            Self::UserName(_) | Self::NotTheSame | Self::Empty | Self::TooLong | Self::Read(_) => {
                Exit::Usage
            }
            Self::NoSuchUser { .. } | Self::Hash(_) => Exit::Refused,
            Self::File { .. } => Exit::DiskFailed,
        }
    }
}

impl Arguments {
    /// Does it.
    pub fn run(self) -> Result<Exit, PasswdError> {
        let user = self.user;
        if user.is_empty() || user.starts_with(['#', ' ', '\t']) || user.contains([':', '\n', '\r'])
        {
            return Err(PasswdError::UserName(user));
        }
        let file = PasswordFile::read(&self.file)?;
        if self.delete {
            let text = file.without(&user).ok_or_else(|| PasswdError::NoSuchUser {
                user: user.clone(),
                path: self.file,
            })?;
            file.replace(&text)?;
            tell(format_args!("{user} is deleted"));
            return Ok(Exit::Done);
        }
        let hash = hash_new(read_password(&user)?.as_bytes())
            .map_err(|error| PasswdError::Hash(error.to_string()))?;
        let (text, done) = file.with(&user, &hash);
        file.replace(&text)?;
        tell(format_args!("{user} is {done}"));
        Ok(Exit::Done)
    }
}

/// Asks twice where a person sits; otherwise takes one line.
fn read_password(user: &str) -> Result<String, PasswdError> {
    let stdin = io::stdin();
    let password = if stdin.is_terminal() {
        let ask = |prompt: String| rpassword::prompt_password(prompt).map_err(PasswdError::Read);
        let password = ask(format!("Password of {user}: "))?;
        if ask("Again: ".to_owned())? != password {
            return Err(PasswdError::NotTheSame);
        }
        password
    } else {
        let mut line = String::new();
        stdin
            .lock()
            .take(PASSWORD_BYTES_MAX + 2)
            .read_line(&mut line)
            .map_err(PasswdError::Read)?;
        line.trim_end_matches(['\n', '\r']).to_owned()
    };
    match password.len() {
        0 => Err(PasswdError::Empty),
        len if len as u64 > PASSWORD_BYTES_MAX => Err(PasswdError::TooLong),
        _ => Ok(password),
    }
}

/// The file as it was found.
struct PasswordFile {
    /// Where it really is: a link stays a link.
    path: PathBuf,
    text: String,
    /// Mode, owner and group; `None` when there is no file yet.
    metadata: Option<std::fs::Metadata>,
}

impl PasswordFile {
    fn read(path: &Path) -> Result<Self, PasswdError> {
        let failed = |source| PasswdError::File {
            path: path.to_owned(),
            source,
        };
        match File::open(path) {
            Ok(mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text).map_err(failed)?;
                let metadata = Some(file.metadata().map_err(failed)?);
                Ok(Self {
                    path: path.canonicalize().map_err(failed)?,
                    text,
                    metadata,
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self {
                path: path.to_owned(),
                text: String::new(),
                metadata: None,
            }),
            Err(error) => Err(failed(error)),
        }
    }

    /// The text with the user's line added, or changed where it stands.
    fn with(&self, user: &str, hash: &str) -> (String, &'static str) {
        let line = format!("{user}:{hash}");
        let mut lines: Vec<&str> = self.text.lines().collect();
        let done = match lines.iter().position(|line| is_of(line, user)) {
            Some(at) => {
                lines[at] = &line;
                "changed"
            }
            None => {
                lines.push(&line);
                "added"
            }
        };
        (lines.join("\n") + "\n", done)
    }

    /// The text without the user's line; `None` when there is none.
    fn without(&self, user: &str) -> Option<String> {
        let lines: Vec<&str> = self
            .text
            .lines()
            .filter(|line| !is_of(line, user))
            .collect();
        let found = lines.len() < self.text.lines().count();
        found.then(|| lines.iter().flat_map(|line| [line, "\n"]).collect())
    }

    /// Puts `text` in the place of the file: all of it, or nothing.
    fn replace(&self, text: &str) -> Result<(), PasswdError> {
        let failed = |source| PasswdError::File {
            path: self.path.clone(),
            source,
        };
        let name = self
            .path
            .file_name()
            .ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
        let temporary = self.path.with_file_name(format!(
            ".{}.{}.new",
            name.to_string_lossy(),
            std::process::id()
        ));
        let replaced = self
            .write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, &self.path));
        if let Err(error) = replaced {
            // Nothing else can be done about it; the error that counts is the first.
            let _ = std::fs::remove_file(&temporary);
            return Err(failed(error));
        }
        let directory = self
            .path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed)
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        // Until it has its owner and mode nobody else may read it.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        if let Some(metadata) = &self.metadata {
            // Changed by root, it must stay readable for the broker.
            if (metadata.uid(), metadata.gid()) != (file.metadata()?.uid(), file.metadata()?.gid())
            {
                std::os::unix::fs::fchown(&file, Some(metadata.uid()), Some(metadata.gid()))?;
            }
            file.set_permissions(std::fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }
}

fn is_of(line: &str, user: &str) -> bool {
    !is_blank(line) && line.split_once(':').is_some_and(|(name, _)| name == user)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PasswordFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwords");
        std::fs::write(&path, text).unwrap();
        let file = PasswordFile::read(&path).unwrap();
        (dir, file)
    }

    #[test]
    fn a_new_user_is_added_and_a_known_one_changed_in_place() {
        let (_dir, file) = file("# fleet\nann:old\nbob:x");
        assert_eq!(
            file.with("carl", "new"),
            ("# fleet\nann:old\nbob:x\ncarl:new\n".to_owned(), "added")
        );
        assert_eq!(
            file.with("ann", "new"),
            ("# fleet\nann:new\nbob:x\n".to_owned(), "changed")
        );
    }

    #[test]
    fn a_deleted_user_leaves_the_others_as_they_are() {
        let (_dir, file) = file("# ann:comment\nann:old\n\nannie:x\n");
        assert_eq!(file.without("ann").unwrap(), "# ann:comment\n\nannie:x\n");
        assert_eq!(file.without("an"), None);
    }

    #[test]
    fn a_replaced_file_keeps_its_mode_and_leaves_nothing_behind() {
        let (dir, file) = file("ann:old\n");
        std::fs::set_permissions(&file.path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let file = PasswordFile::read(&file.path).unwrap();
        file.replace("ann:new\n").unwrap();
        assert_eq!(std::fs::read_to_string(&file.path).unwrap(), "ann:new\n");
        assert_eq!(
            std::fs::metadata(&file.path).unwrap().mode() & 0o7777,
            0o640
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_new_file_is_readable_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwords");
        PasswordFile::read(&path)
            .unwrap()
            .replace("ann:new\n")
            .unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_link_stays_a_link() {
        let (dir, file) = file("ann:old\n");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file.path, &link).unwrap();
        PasswordFile::read(&link)
            .unwrap()
            .replace("ann:new\n")
            .unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(&file.path).unwrap(), "ann:new\n");
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file() {
        let (dir, file) = file("ann:old\n");
        let gone = PasswordFile {
            path: dir.path().join("gone/passwords"),
            text: String::new(),
            metadata: None,
        };
        let error = gone.replace("x").unwrap_err();
        assert_eq!(error.exit(), Exit::DiskFailed);
        assert_eq!(std::fs::read_to_string(&file.path).unwrap(), "ann:old\n");
    }

    #[test]
    fn names_that_would_break_the_file_are_refused() {
        for user in ["", "#ann", " ann", "a:b", "a\nb"] {
            let arguments = Arguments {
                file: "none".into(),
                user: user.to_owned(),
                delete: true,
            };
            assert_eq!(arguments.run().unwrap_err().exit(), Exit::Usage, "{user:?}");
        }
    }
}
