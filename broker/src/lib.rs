//! Flotte, a clustered MQTT broker for fleets of devices.

pub mod admin;
pub mod admission;
pub mod auth;
pub mod cli;
pub mod config;
pub mod connection;
pub mod drain;
pub mod listener;
pub mod local;
pub mod log;
pub mod metrics;
pub mod node;
pub mod rebalance;
pub mod reload;
pub mod router;
pub mod session;
pub mod sys;
pub mod transport;
