//! What the configuration can say of the access log. In: text. Out: where it goes, and how a line is written, whose
//! values cannot be wrong.

use chassis::config::{Fraction, Value};
use std::path::PathBuf;

/// Where the lines go, for as long as the process lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Off,
    Stdout,
    File(PathBuf),
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    /// nginx's and Apache's.
    Combined,
}

/// How the line of one request is written, and whether.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    pub format: Format,
    /// With the query string, which may hold secrets.
    pub query: bool,
    /// Of the requests that nothing was wrong with.
    pub sample: Fraction,
}

impl Value for Place {
    const EXPECTED: &'static str = "\"stdout\", \"off\" or an absolute path such as \"/var/log/servery/access.log\"";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "off" => Some(Self::Off),
            // the second as an app-server's
            "stdout" | "-" => Some(Self::Stdout),
            path => Some(PathBuf::from(path)).filter(|path| path.is_absolute()).map(Self::File),
        }
    }
}

impl Value for Format {
    const EXPECTED: &'static str = "\"json\" or \"combined\"";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "json" => Some(Self::Json),
            "combined" => Some(Self::Combined),
            _ => None,
        }
    }
}
