//! Bodies.
use bytes::Bytes;
#[derive(Debug)]
pub enum Body { Full(Option<Bytes>) }
impl Body { pub fn full(b: Bytes) -> Self { Self::Full(Some(b)) } }
