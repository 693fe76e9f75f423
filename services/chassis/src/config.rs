//! Configuration. In: one TOML file, `SERVERY_*` variables, flags. Out: typed values, or every mistake of all three
//! at once, each with the place to correct it. It never prints a value that did not fail to parse, and it is the only
//! module that looks at the file or at those variables.
//!
//! One name serves all three layers: the key `balancer.queue_deadline` is `queue_deadline` in the file's section
//! `[balancer]`, the variable `SERVERY_BALANCER__QUEUE_DEADLINE` and, where there is one, the flag `--queue-deadline`.
//! A flag beats a variable, a variable beats the file, the file beats the default. A wrong value is reported even
//! where a higher layer overrides it: it is a mistake that waits for the day the override goes.

mod address;
mod document;
mod fraction;
mod percent;
mod problem;
mod reader;
mod shared;
mod suggest;
mod value;

pub use address::{HostPort, Network};
pub use bytesize::ByteSize;
pub use document::{Located, Toml};
pub use fraction::Fraction;
pub use percent::Percent;
pub use problem::{Location, Problem, Problems};
pub use reader::{Reader, TableReader};
pub use shared::Shared;
pub use value::{Mismatch, Value};

use document::Document;
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

/// Where the file is looked for when neither `--config` nor `SERVERY_CONFIG` names one.
const DEFAULT_FILE: &str = "/etc/servery/servery.toml";

/// More than any sane configuration; a wrong path such as `/dev/zero` must not eat the memory.
const FILE_LIMIT: u64 = 4 * 1024 * 1024;

/// The three layers, parsed but not yet judged: a [`Reader`] does that.
#[derive(Debug)]
pub struct Layers {
    document: Document,
    /// Only those that begin with `SERVERY_`.
    variables: BTreeMap<String, String>,
    /// By key. A flag that was given several times is one comma-separated text.
    flags: BTreeMap<String, String>,
}

impl Layers {
    /// Reads the file (`file`, else what `SERVERY_CONFIG` names, else `/etc/servery/servery.toml` if it is there) and
    /// puts the other layers over it. `flags` are pairs of key and text.
    ///
    /// Fails only if the file cannot be read. Syntax errors wait for [`Reader::finish`], which reports them together
    /// with everything else.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        flags: Vec<(String, String)>,
    ) -> Result<Self, Problems> {
        let variables = ours(variables);
        let named_by_variable = variables.get("SERVERY_CONFIG").filter(|name| !name.is_empty()).map(PathBuf::from);
        let (path, location) = match (file, named_by_variable) {
            (Some(path), _) => (path.to_owned(), Location::Flag("--config".to_owned())),
            (None, Some(path)) => (path, Location::Variable("SERVERY_CONFIG".to_owned())),
            (None, None) => (PathBuf::from(DEFAULT_FILE), Location::Nowhere),
        };
        let name = path.display().to_string();
        let text = match read_bounded(&path) {
            Ok(text) => text,
            Err(error) if location == Location::Nowhere && error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                let message = format!("cannot read the configuration file {name}: {error}");
                return Err(Problems::one(Problem { location, key: None, message }));
            }
        };
        Ok(Self::from_text(&name, &text, variables, flags))
    }

    /// As [`Self::load`], from a file's text that is already here.
    pub fn from_text(
        name: &str,
        text: &str,
        variables: impl IntoIterator<Item = (String, String)>,
        flags: Vec<(String, String)>,
    ) -> Self {
        let mut by_key = BTreeMap::<String, String>::new();
        for (key, text) in flags {
            by_key
                .entry(key)
                .and_modify(|all| {
                    all.push(',');
                    all.push_str(&text);
                })
                .or_insert(text);
        }
        Self { document: Document::parse(name, text), variables: ours(variables), flags: by_key }
    }
}

fn ours(variables: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    variables.into_iter().filter(|(name, _)| name.starts_with("SERVERY_")).collect()
}

fn read_bounded(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_LIMIT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_LIMIT {
        return Err(io::Error::other(format!("it is longer than {FILE_LIMIT} bytes")));
    }
    Ok(text)
}

/// `balancer.queue_deadline` is `SERVERY_BALANCER__QUEUE_DEADLINE`.
fn variable_name(key: &str) -> String {
    format!("SERVERY_{}", key.to_ascii_uppercase().replace('.', "__"))
}

/// `balancer.queue_deadline` is `--queue-deadline`: a command has the flags of one section only.
fn flag_name(key: &str) -> String {
    let last = key.rsplit('.').next().unwrap_or(key);
    format!("--{}", last.replace('_', "-"))
}

#[cfg(test)]
mod tests;
