//! Real processes: single nodes and clusters of three under kill -9, pauses, cut links and bad input.
//!
//! Tests that leave the cluster as they found it share one (`common`); the others start their own.

mod access;
mod barrier;
mod bootstrap;
mod clocks;
mod common;
mod cuts;
mod discovery;
mod drain;
mod founding;
mod goodbyes;
mod hostile;
mod identity;
mod idle;
mod interruptions;
mod joining;
mod large;
mod leavers;
mod limits;
mod links;
mod many_retained;
mod members;
mod messages;
mod minority;
mod mountpoint;
mod node;
mod operators;
mod rebalance;
mod reload;
mod restarts;
mod retained;
mod rolling;
mod shared;
mod sockets;
mod sys;
mod takeover;
mod tls;
#[allow(dead_code)]
#[path = "../faults/upset.rs"]
mod upset;
mod websocket;
mod withdrawn;
mod words;
