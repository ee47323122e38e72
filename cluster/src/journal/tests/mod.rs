//! The suite that the journal must pass.
