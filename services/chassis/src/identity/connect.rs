//! Dialling.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("timed out")]
    TimedOut,
}
