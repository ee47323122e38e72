//! The library's storage suite against our log and state machine, and groups of real nodes.

mod storage;
