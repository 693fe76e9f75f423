//! Control socket.
use std::path::Path;

use chassis::identity::Role;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("unimplemented")]
    Unimplemented,
}

pub async fn root(_data: &Path) -> Result<String, ControlError> {
    Err(ControlError::Unimplemented)
}
pub async fn token(
    _data: &Path,
    _role: Role,
    _app: Option<String>,
    _prefixes: Vec<String>,
    _rotate: bool,
) -> Result<String, ControlError> {
    Err(ControlError::Unimplemented)
}
pub async fn deny(_data: &Path, _instance: &str) -> Result<(), ControlError> {
    Err(ControlError::Unimplemented)
}
pub async fn list(_data: &Path) -> Result<serde_json::Value, ControlError> {
    Err(ControlError::Unimplemented)
}
