//! Key, chain and root.
#[derive(Debug)]
pub struct Material;

#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    #[error("damaged")]
    Damaged,
}
