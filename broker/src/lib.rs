//! Flotte, a clustered MQTT broker for fleets of devices.

pub mod admin;
pub mod auth;
pub mod cli;
pub mod config;
pub mod connection;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod router;
pub mod sys;
