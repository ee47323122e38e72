//! The password file: lines of `user:hash`, read as a whole into a table. It verifies nothing itself but what it remembers to
//! have been verified before.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use hashbrown::HashMap;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::hash::{Hash, HashError, hash_new};

/// About a million users; more belong into a database.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The longest user name of MQTT.
const USER_BYTES_MAX: usize = 65_535;
/// How many errors of a file are told.
const PROBLEMS_MAX: usize = 10;
/// A longer password is verified each time: hashing it for a comparison with what is remembered would hold up a worker.
const REMEMBERED_PASSWORD_BYTES_MAX: usize = 1024;

/// The users of a password file. Replaced as a whole by a reload, with all that it remembers.
pub struct PasswordTable {
    users: Vec<User>,
    by_name: HashMap<Arc<str>, u32, foldhash::quality::RandomState>,
    /// Keys the digests of what is remembered; of this table alone.
    secret: [u8; 32],
}

struct User {
    name: Arc<str>,
    hash: Hash,
    /// The keyed digest of the password that was verified last, so that clients that come back in numbers do not each pay
    /// for a slow hash.
    verified: OnceLock<[u8; 32]>,
}

/// A user, or who stands in for one that does not exist, so that both cost the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    at: u32,
    known: bool,
}

/// Why a password file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PasswordFileError {
    #[error("password file {}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("password file {}: {}", path.display(), shown(problems))]
    Malformed {
        path: PathBuf,
        problems: Vec<Problem>,
    },
    #[error("no random numbers: {0}")]
    Random(String),
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    pub why: ProblemKind,
}

/// What can be wrong with a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProblemKind {
    #[error("not a `user:hash` line")]
    NoColon,
    #[error("no user name, or one that is too long")]
    UserName,
    #[error("the user stands in line {0} already")]
    Twice(usize),
    #[error("{0}")]
    Hash(#[from] HashError),
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "line {}: {}", self.line, self.why)
    }
}

fn shown(problems: &[Problem]) -> String {
    let shown: Vec<String> = problems.iter().map(Problem::to_string).collect();
    shown.join("; ")
}

impl PasswordTable {
    /// Reads a file; blocks.
    pub fn read(path: &Path) -> Result<Self, PasswordFileError> {
        let unreadable = |reason: String| PasswordFileError::Unreadable {
            path: path.to_owned(),
            reason,
        };
        let file = std::fs::File::open(path).map_err(|error| unreadable(error.to_string()))?;
        let mut text = String::new();
        let len = file
            .take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(|error| unreadable(error.to_string()))?;
        if u64::try_from(len).map_or(true, |len| len > FILE_BYTES_MAX) {
            return Err(unreadable(format!("larger than {FILE_BYTES_MAX} bytes")));
        }
        // Some editors begin a file with a mark of its encoding.
        match parse(text.strip_prefix('\u{feff}').unwrap_or(&text)) {
            Ok(users) => Self::new(users),
            Err(problems) => Err(PasswordFileError::Malformed {
                path: path.to_owned(),
                problems,
            }),
        }
    }

    fn new(mut users: Vec<User>) -> Result<Self, PasswordFileError> {
        let by_name = (0..)
            .zip(&users)
            .map(|(at, user)| (Arc::clone(&user.name), at))
            .collect();
        if users.is_empty() {
            // Someone has to stand in for users that do not exist.
            let text = hash_new(&rand::random::<[u8; 32]>())
                .map_err(|error| PasswordFileError::Random(error.to_string()))?;
            let hash =
                Hash::parse(&text).map_err(|error| PasswordFileError::Random(error.to_string()))?;
            users.push(User {
                name: "".into(),
                hash,
                verified: OnceLock::new(),
            });
        }
        Ok(Self {
            users,
            by_name,
            secret: rand::random(),
        })
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is no user.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Whether there is such a user.
    pub fn knows(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Who is to be verified for `name`. A name that is not there gets a stand-in, always the same, with a hash as costly as
    /// those of the others.
    pub fn candidate(&self, name: &str) -> Candidate {
        // Made in any case, so that it does not show who is known.
        let digest = self.digest(name.as_bytes());
        match self.by_name.get(name) {
            Some(at) => Candidate {
                at: *at,
                known: true,
            },
            None => {
                let number = u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]);
                let users = u32::try_from(self.users.len()).unwrap_or(u32::MAX);
                Candidate {
                    at: number % users.max(1),
                    known: false,
                }
            }
        }
    }

    /// The user's name, when this very password was verified before; fast.
    pub fn remembered(&self, candidate: Candidate, password: &[u8]) -> Option<Arc<str>> {
        if password.len() > REMEMBERED_PASSWORD_BYTES_MAX {
            return None;
        }
        let user = self.users.get(candidate.at as usize)?;
        // Made in any case, too.
        let digest = self.digest(password);
        let verified = user.verified.get().filter(|_| candidate.known)?;
        bool::from(digest.ct_eq(verified)).then(|| Arc::clone(&user.name))
    }

    /// The user's name when the password is right; slow, and as slow when it is wrong.
    pub fn verify(&self, candidate: Candidate, password: &[u8]) -> Option<Arc<str>> {
        let user = self.users.get(candidate.at as usize)?;
        let right = user.hash.verify(password);
        if !(right && candidate.known) {
            return None;
        }
        if password.len() <= REMEMBERED_PASSWORD_BYTES_MAX {
            // Another thread may have been first with the same password.
            let _ = user.verified.set(self.digest(password));
        }
        Some(Arc::clone(&user.name))
    }

    fn digest(&self, password: &[u8]) -> [u8; 32] {
        Sha256::new()
            .chain_update(self.secret)
            .chain_update(password)
            .finalize()
            .into()
    }
}

/// Whether a line holds no user: it is empty or a comment.
pub fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

fn parse(text: &str) -> Result<Vec<User>, Vec<Problem>> {
    let mut users = Vec::new();
    let mut problems = Vec::new();
    let mut lines_by_name: HashMap<&str, usize, foldhash::quality::RandomState> =
        HashMap::default();
    for (line, content) in (1..)
        .zip(text.lines())
        .filter(|(_, content)| !is_blank(content))
    {
        let entry =
            parse_line(content).and_then(|(name, hash)| match lines_by_name.insert(name, line) {
                Some(first) => Err(ProblemKind::Twice(first)),
                None => Ok(User {
                    name: name.into(),
                    hash,
                    verified: OnceLock::new(),
                }),
            });
        match entry {
            Ok(user) => users.push(user),
            Err(why) => problems.push(Problem { line, why }),
        }
        if problems.len() >= PROBLEMS_MAX {
            break;
        }
    }
    if problems.is_empty() {
        Ok(users)
    } else {
        Err(problems)
    }
}

fn parse_line(content: &str) -> Result<(&str, Hash), ProblemKind> {
    let (name, hash) = content.split_once(':').ok_or(ProblemKind::NoColon)?;
    if !(1..=USER_BYTES_MAX).contains(&name.len()) {
        return Err(ProblemKind::UserName);
    }
    Ok((name, Hash::parse(hash.trim_end())?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sha512(password: &str) -> String {
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;
        let hash = sha2::Sha512::new()
            .chain_update(password)
            .chain_update(b"salt")
            .finalize();
        format!("$6${}${}", STANDARD.encode(b"salt"), STANDARD.encode(hash))
    }

    fn table(text: &str) -> PasswordTable {
        PasswordTable::new(parse(text).map_err(|problems| shown(&problems)).unwrap()).unwrap()
    }

    #[test]
    fn comments_and_empty_lines_are_skipped() {
        let table = table(&format!(
            "# users\n\nann:{}\r\n  \nbob:{}\n",
            sha512("a"),
            sha512("b")
        ));
        assert_eq!(table.len(), 2);
        let ann = table.candidate("ann");
        assert_eq!(table.verify(ann, b"a").as_deref(), Some("ann"));
        assert_eq!(table.verify(ann, b"b"), None);
    }

    #[test]
    fn a_verified_password_is_remembered_and_no_other_is() {
        let table = table(&format!("ann:{}\n", sha512("a")));
        let ann = table.candidate("ann");
        assert_eq!(table.remembered(ann, b"a"), None);
        table.verify(ann, b"wrong");
        assert_eq!(table.remembered(ann, b"wrong"), None);
        table.verify(ann, b"a");
        assert_eq!(table.remembered(ann, b"a").as_deref(), Some("ann"));
        assert_eq!(table.remembered(ann, b"wrong"), None);
    }

    #[test]
    fn a_long_password_is_verified_each_time() {
        let long = "x".repeat(REMEMBERED_PASSWORD_BYTES_MAX + 1);
        let table = table(&format!("ann:{}\n", sha512(&long)));
        let ann = table.candidate("ann");
        assert!(table.verify(ann, long.as_bytes()).is_some());
        assert_eq!(table.remembered(ann, long.as_bytes()), None);
    }

    #[test]
    fn a_stand_in_is_verified_like_a_user_and_never_succeeds() {
        let table = table(&format!("ann:{}\n", sha512("a")));
        let nobody = table.candidate("nobody");
        assert_eq!(nobody, table.candidate("nobody"));
        assert_eq!(
            nobody,
            Candidate {
                at: 0,
                known: false
            }
        );
        // Even with the password of the user who stands in.
        assert_eq!(table.verify(nobody, b"a"), None);
        table.verify(table.candidate("ann"), b"a");
        assert_eq!(table.remembered(nobody, b"a"), None);
    }

    #[test]
    fn an_empty_file_knows_nobody() {
        let table = table("");
        assert!(table.is_empty());
        assert_eq!(table.verify(table.candidate(""), b""), None);
    }

    #[test]
    fn every_wrong_line_is_named_with_why() {
        let good = sha512("a");
        let text = format!("ann:{good}\nnothing\n:{good}\nann:{good}\nbob:plain\ncarl:$6$x\n");
        let problems = parse(&text).err().unwrap();
        assert_eq!(
            shown(&problems),
            "line 2: not a `user:hash` line; line 3: no user name, or one that is too long; \
             line 4: the user stands in line 1 already; \
             line 5: not a hash of a known kind: known are $argon2id$, $2a$, $2b$ and $2y$ (bcrypt), $6$ and $7$ (mosquitto_passwd); \
             line 6: a $6$ hash that is not well-formed"
        );
    }

    #[test]
    fn a_file_of_garbage_is_not_told_in_full() {
        assert_eq!(
            parse(&"garbage\n".repeat(1000)).err().unwrap().len(),
            PROBLEMS_MAX
        );
    }
}
