//! Enrolment.
use std::path::PathBuf;

use super::Role;
use crate::config::HostPort;

#[derive(Clone, Debug)]
pub struct EnrolConfig {
    pub cluster: String,
    pub role: Role,
    pub data: PathBuf,
    pub token_file: PathBuf,
    pub sidecar: HostPort,
    pub name: String,
}
