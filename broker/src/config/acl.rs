//! `[acl]`: who may publish and subscribe to what. Not available in this version: everyone may do everything.

use std::path::PathBuf;

use super::section::section;
use super::value::choice;

choice! {
    /// How the file is written.
    Format {
        Flotte = "flotte",
    }
    later { "mosquitto" }
}

choice! {
    /// What holds where no rule matches.
    Effect {
        Allow = "allow",
    }
    later { "deny" }
}

section! {
    /// Who may publish and subscribe to what.
    "acl" {}
    later {
        /// The rules.
        "file": Option<PathBuf> = None;
        /// How the file is written: "flotte" or "mosquitto".
        "format": Format = Format::Flotte;
        /// What holds where no rule matches: "deny", or "allow" when there is no file.
        "default": Effect = Effect::Allow;
    }
}
