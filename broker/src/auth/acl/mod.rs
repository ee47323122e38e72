//! Who may publish, subscribe to, and get what. [`Acl`] holds the rules in force; they are replaced as a whole by a reload,
//! and whoever remembers a decision remembers with it which rules made it.
//!
//! Without rules every check is one branch. With rules a publisher remembers what it may ([`Rights`]), and deliveries are
//! judged only for sessions with a subscription that is granted in part.

mod file;
mod flotte;
mod mosquitto;
mod pattern;
mod rights;
mod rules;
mod subject;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::RwLock;

use crate::config;
use crate::config::acl::{Effect, Format};

pub use file::{AclFileError, Problem};
pub use rights::Rights;
pub use rules::{Granted, Rules};
pub use subject::Subject;

/// The rules of this node.
#[derive(Debug, Default)]
pub struct Acl {
    /// None = everyone may do everything.
    in_force: Option<InForce>,
}

#[derive(Debug)]
struct InForce {
    /// None = only the default.
    file: Option<(PathBuf, Format)>,
    default: Effect,
    /// The lock guards only the pointer.
    rules: RwLock<Arc<Rules>>,
    /// Of `rules`; changes right after them.
    generation: AtomicU32,
}

impl Acl {
    /// Reads the file, if one is configured; blocks.
    pub fn new(config: &config::acl::Config) -> Result<Self, AclFileError> {
        let default = config.effective_default();
        if config.file.is_none() && default == Effect::Allow {
            return Ok(Self::default());
        }
        let file = config.file.clone().map(|path| (path, config.format));
        let rules = read(file.as_ref(), default)?.numbered(1);
        let in_force = InForce {
            file,
            default,
            rules: RwLock::new(Arc::new(rules)),
            generation: AtomicU32::new(1),
        };
        Ok(Self {
            in_force: Some(in_force),
        })
    }

    /// The rules, if there are any.
    pub fn rules(&self) -> Option<Arc<Rules>> {
        let in_force = self.in_force.as_ref()?;
        Some(Arc::clone(&in_force.rules.read()))
    }

    /// Whether there are rules; never changes.
    pub fn is_on(&self) -> bool {
        self.in_force.is_some()
    }

    /// Which rules are in force; 0 where there are none.
    pub fn generation(&self) -> u32 {
        let generation = |in_force: &InForce| in_force.generation.load(Ordering::Acquire);
        self.in_force.as_ref().map_or(0, generation)
    }

    /// Reads the file again; blocks and changes nothing. None = there is no file.
    pub fn read_again(&self) -> Result<Option<Rules>, AclFileError> {
        match &self.in_force {
            Some(in_force) if in_force.file.is_some() => {
                read(in_force.file.as_ref(), in_force.default).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Puts other rules in force. What was granted under the former ones is to be judged again.
    pub fn replace(&self, rules: Rules) {
        let Some(in_force) = &self.in_force else {
            return;
        };
        let mut current = in_force.rules.write();
        // Never 0, which stands for no rules.
        let generation = current.generation().checked_add(1).unwrap_or(1);
        *current = Arc::new(rules.numbered(generation));
        in_force.generation.store(generation, Ordering::Release);
    }
}

fn read(file: Option<&(PathBuf, Format)>, default: Effect) -> Result<Rules, AclFileError> {
    match file {
        Some((path, format)) => file::read(path, *format, default),
        None => Ok(Rules::new(Vec::new(), default, rules::Wide::Refused)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_and_a_default_there_are_no_rules() {
        let acl = Acl::new(&config::acl::Config::default()).unwrap();
        assert!(!acl.is_on() && acl.rules().is_none());
        assert_eq!(acl.generation(), 0);
        assert!(acl.read_again().unwrap().is_none());
    }

    #[test]
    fn a_default_alone_is_a_rule() {
        let config = config::acl::Config {
            default: Some(Effect::Deny),
            ..Default::default()
        };
        let acl = Acl::new(&config).unwrap();
        assert!(acl.rules().unwrap().is_empty() && acl.read_again().unwrap().is_none());
    }

    #[test]
    fn a_reload_replaces_all_rules_and_a_broken_file_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acl.toml");
        std::fs::write(&path, "[[rule]]\neffect = \"allow\"\n").unwrap();
        let config = config::acl::Config {
            file: Some(path.clone()),
            ..Default::default()
        };
        let acl = Acl::new(&config).unwrap();
        assert_eq!((acl.generation(), acl.rules().unwrap().len()), (1, 1));
        std::fs::write(&path, "[[rule]]\n").unwrap();
        assert!(acl.read_again().is_err());
        assert_eq!((acl.generation(), acl.rules().unwrap().len()), (1, 1));
        std::fs::write(&path, "").unwrap();
        acl.replace(acl.read_again().unwrap().unwrap());
        assert_eq!((acl.generation(), acl.rules().unwrap().len()), (2, 0));
        assert_eq!(acl.rules().unwrap().generation(), 2);
    }
}
