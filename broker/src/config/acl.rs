//! `[acl]`: who may publish and subscribe to what.

use std::path::PathBuf;

use super::section::section;
use super::value::choice;

choice! {
    /// How the file is written.
    Format {
        /// TOML, the first rule that fits decides.
        Flotte = "flotte",
        /// Lines of `user`, `topic` and `pattern`, as mosquitto's `acl_file`.
        Mosquitto = "mosquitto",
    }
}

choice! {
    /// What a rule says, or what holds where none fits.
    Effect {
        Allow = "allow",
        Deny = "deny",
    }
}

section! {
    /// Who may publish and subscribe to what. Read again by a reload, also for clients that are connected.
    "acl" {
        /// The rules. In Flotte's own format tables `[[rule]]`, of which the first that fits decides: effect ("allow" or
        /// "deny"); user, client, group, ip (all that is given has to fit; `*` and `?` match; user = "" means clients
        /// without a user name; ip may be a network; a group is a list of user names in the table `[groups]`); action
        /// ("publish", "subscribe" or "all"); topics (filters with %u and %c for user name and client identifier; none:
        /// every topic); qos (a list); retain (true or false, publishes only). A wildcard in the first level does not
        /// mean topics that begin with `$`.
        file: Option<PathBuf> = None;
        /// How the file is written: "flotte", or "mosquitto" (its acl_file, with its meaning).
        format: Format = Format::Flotte;
        /// What holds where no rule fits; unset: "deny" with a file, "allow" without one.
        default: Option<Effect> = None;
    }
}

impl Config {
    /// What holds where no rule fits.
    pub fn effective_default(&self) -> Effect {
        self.default.unwrap_or(match self.file {
            Some(_) => Effect::Deny,
            None => Effect::Allow,
        })
    }
}
