//! Configuration of every role.

use std::{path::{Path, PathBuf}, net::SocketAddr};

mod problem;
mod value;
mod reader;

pub use bytesize::ByteSize;
pub use problem::{Problem, Problems};
pub use reader::{Reader, TableReader};
pub use value::{HostPort, Mismatch, Network, Toml, Value};

/// File, variables and flags.
#[derive(Debug)]
pub struct Layers {}

impl Layers {
    pub fn load(
        _file: Option<&Path>,
        _variables: impl IntoIterator<Item = (String, String)>,
        _flags: Vec<(String, String)>,
    ) -> Result<Self, Problems> {
        unimplemented!()
    }

    /// As `load`, from text in memory (tests).
    pub fn from_text(
        _name: &str,
        _text: &str,
        _variables: impl IntoIterator<Item = (String, String)>,
        _flags: Vec<(String, String)>,
    ) -> Self {
        unimplemented!()
    }
}

/// What every role reads from the top of the file.
#[derive(Clone, Debug)]
pub struct Shared {
    pub cluster: String,
    pub data: PathBuf,
    pub token_file: PathBuf,
    pub sidecar: HostPort,
    pub nameservers: Vec<SocketAddr>,
}

impl Shared {
    pub fn read(_reader: &mut Reader<'_>) -> Self {
        unimplemented!()
    }
}
