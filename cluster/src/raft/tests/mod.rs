//! The library's storage suite against our log and state machine, and groups of real nodes.
#![allow(clippy::unwrap_used)]

mod groups;
mod nodes;
mod restarts;
mod storage;
