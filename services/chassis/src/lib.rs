//! What every Servery process has, and no service's logic: configuration, telemetry, the admin listener, the
//! phases of a process's life, its mTLS identity, discovery of its peers.

pub mod admin;
pub mod backoff;
pub mod config;
pub mod discovery;
pub mod durable;
pub mod identity;
pub mod lifecycle;
pub mod listen;
pub mod log_file;
pub mod telemetry;
