//! Reads again, without dropping a connection, what may change while a node runs: users, rules, certificates, the log level.
//!
//! Every part is read before any is put in force, and is put in force as a whole or not at all; one that cannot be read stays
//! as it was, and does not hold up the others. Changes of other keys of the configuration are named: they need a restart.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::{error, info, warn};

use crate::cli::ctl::model::{Reload, ReloadedPart};
use crate::config::log::Level;
use crate::config::{Config, Effective, Sources};
use crate::connection::Shared;
use crate::log;
use crate::session::Wake;

/// Puts in force what was read.
pub type Apply = Box<dyn FnOnce() -> Result<(), String> + Send>;

/// Reads a part again and changes nothing yet. It gets the configuration, where that could be read.
pub type Read = Box<dyn Fn(Option<&Config>) -> Result<Apply, String> + Send + Sync>;

/// Something that can be read again.
pub struct Part {
    name: &'static str,
    /// The keys of the configuration that it puts in force: one by name, or all that begin with it when it ends with a dot.
    keys: &'static str,
    read: Read,
}

/// Reads again all that may change; one for the node.
pub struct Reloader {
    sources: Sources,
    /// As the node was started.
    effective: Vec<Effective>,
    parts: Vec<Part>,
    log: log::Handle,
    /// Held by a reload: one at a time.
    turn: Mutex<()>,
}

impl Part {
    /// A part that is read first and put in force by what that gives.
    pub fn new(
        name: &'static str,
        read: impl Fn(Option<&Config>) -> Result<Apply, String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            keys: "",
            read: Box::new(read),
        }
    }

    /// The same part, which puts these keys of the configuration in force.
    pub fn with_keys(self, keys: &'static str) -> Self {
        Self { keys, ..self }
    }

    fn puts_in_force(&self, key: &str) -> bool {
        key == self.keys || self.keys.ends_with('.') && key.starts_with(self.keys)
    }

    /// A part that reads and checks all it needs before it changes anything, in one step.
    pub fn in_one_step(
        name: &'static str,
        reload: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        let reload = Arc::new(reload);
        Self::new(name, move |_| {
            let reload = Arc::clone(&reload);
            Ok(Box::new(move || reload()))
        })
    }
}

impl Reloader {
    /// What the node itself reads again, and more: `others`.
    pub fn new(
        shared: &Arc<Shared>,
        (sources, effective): (Sources, Vec<Effective>),
        log: log::Handle,
        others: Vec<Part>,
    ) -> Arc<Self> {
        let mut parts = vec![log_level(log.clone()), limits(Arc::clone(shared))];
        if shared.auth.has_passwords() {
            parts.push(users(Arc::clone(shared)));
        }
        if shared.config.acl.file.is_some() {
            parts.push(rules(Arc::clone(shared)));
        }
        parts.extend(others);
        Arc::new(Self {
            sources,
            effective,
            parts,
            log,
            turn: Mutex::new(()),
        })
    }

    /// Reads all again and says what became of it; blocks.
    pub fn reload(&self) -> Reload {
        let _turn = self.turn.lock();
        let loaded = Config::load(&self.sources);
        let config = loaded.as_ref().ok().map(|loaded| &loaded.config);
        let failed = loaded.as_ref().err().map(|errors| {
            let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
            shown.join("; ")
        });
        let mut report = Reload {
            parts: vec![reloaded("configuration", failed.map_or(Ok(()), Err))],
            restart: loaded
                .as_ref()
                .map_or_else(|_| Vec::new(), |loaded| self.changed(&loaded.effective)),
        };
        let read = self
            .parts
            .iter()
            .map(|part| (part.name, (part.read)(config)));
        let read: Vec<_> = read.collect();
        for (name, read) in read {
            let applied = read.and_then(|apply| apply());
            report.parts.push(reloaded(name, applied));
        }
        tell(&report);
        report
    }

    /// Logs from now on at this level, until a reload sets that of the configuration.
    pub fn set_log_level(&self, level: &Level) -> Result<(), log::Error> {
        self.log.set_level(level)
    }

    /// The keys whose value is not that of the start and stays without effect.
    fn changed(&self, now: &[Effective]) -> Vec<String> {
        let by_key = |values: &'_ [Effective]| -> BTreeMap<String, Option<String>> {
            let pairs = values
                .iter()
                .map(|one| (one.key.clone(), one.value.clone()));
            pairs.collect()
        };
        let (then, now) = (by_key(&self.effective), by_key(now));
        let keys = then
            .keys()
            .chain(now.keys().filter(|key| !then.contains_key(*key)));
        let stays = |key: &&String| {
            let mut parts = self.parts.iter();
            then.get(*key) != now.get(*key) && !parts.any(|part| part.puts_in_force(key))
        };
        keys.filter(stays).cloned().collect()
    }
}

fn log_level(log: log::Handle) -> Part {
    Part::new("log level", move |config| {
        let config = config.ok_or("the configuration cannot be read")?;
        let (log, level) = (log.clone(), config.log.level.clone());
        log::check(&level).map_err(|error| error.to_string())?;
        Ok(Box::new(move || {
            log.set_level(&level).map_err(|error| error.to_string())
        }))
    })
    .with_keys("log.level")
}

fn limits(shared: Arc<Shared>) -> Part {
    Part::new("limits", move |config| {
        let config = config.ok_or("the configuration cannot be read")?;
        let (shared, limits) = (Arc::clone(&shared), config.limits.clone());
        Ok(Box::new(move || {
            shared.admission.set(&limits);
            Ok(())
        }))
    })
    .with_keys("limits.")
}

/// Users. Clients whose user is gone are closed (0x87); others stay, also when their password changed.
fn users(shared: Arc<Shared>) -> Part {
    Part::new("users", move |_| {
        let table = shared
            .auth
            .read_again()
            .map_err(|error| error.to_string())?;
        let shared = Arc::clone(&shared);
        Ok(Box::new(move || {
            if let Some(table) = table {
                shared.auth.replace(table);
                close_unknown(&shared);
            }
            Ok(())
        }))
    })
}

fn close_unknown(shared: &Shared) {
    for session in shared.registry.all() {
        let gone = session.client_info().is_some_and(|info| {
            !shared
                .auth
                .still_takes(info.username.as_deref(), info.proof)
        });
        if gone {
            let _ = session.close(Wake::UNAUTHORIZED, Box::new(|| ()));
        }
    }
}

/// Rules. Publishes are judged by the new ones at once, and so is what subscriptions deliver.
fn rules(shared: Arc<Shared>) -> Part {
    Part::new("acl", move |_| {
        let acl = shared.router.acl();
        let rules = acl.read_again().map_err(|error| error.to_string())?;
        let shared = Arc::clone(&shared);
        Ok(Box::new(move || {
            if let Some(rules) = rules {
                shared.router.acl().replace(rules);
                shared.router.rules_changed(&shared.registry.all());
            }
            Ok(())
        }))
    })
}

fn reloaded(name: &str, result: Result<(), String>) -> ReloadedPart {
    ReloadedPart {
        name: name.to_owned(),
        ok: result.is_ok(),
        error: result.err(),
    }
}

fn tell(report: &Reload) {
    for part in &report.parts {
        match &part.error {
            None => info!(part = part.name, "reloaded"),
            Some(error) => error!(part = part.name, error, "not reloaded"),
        }
    }
    for key in &report.restart {
        warn!(key, "changed; it needs a restart");
    }
}
