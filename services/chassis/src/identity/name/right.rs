//! An app-server's right to one app: the app's name and the path prefixes its routes may claim.

use std::fmt::Write as _;

/// A metrics label and a word in log lines; as the balancer's routes take it.
const APP_MAX: usize = 63;
const PREFIX_MAX: usize = 1024;
/// One certificate carries all of them in every handshake.
const PREFIXES_MAX: usize = 32;

/// One app that an app-server may serve.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppRight {
    pub app: String,
    /// Sorted, without duplicates, none empty; no trailing slash but for `/` itself.
    pub prefixes: Vec<String>,
}

/// Why a right cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RightError {
    #[error(
        "an app's name is 1 to {APP_MAX} lower-case letters, digits, \"-\", \"_\" and \".\", beginning with a letter or \
         digit; {0:?} is none"
    )]
    App(String),
    #[error("a prefix is a path such as \"/\" or \"/shop\", without \"?\", \"#\", \"//\" or \"..\"; {0:?} is none")]
    Prefix(String),
    #[error("a right names 1 to {PREFIXES_MAX} prefixes, this one {0}")]
    Count(usize),
}

impl AppRight {
    /// Checks the names and brings the prefixes into their one order and spelling.
    pub fn new(app: &str, prefixes: &[String]) -> Result<Self, RightError> {
        if !is_app(app) {
            return Err(RightError::App(app.to_owned()));
        }
        let normal = |text: &String| normal_prefix(text).ok_or_else(|| RightError::Prefix(text.clone()));
        let mut prefixes = prefixes.iter().map(normal).collect::<Result<Vec<_>, _>>()?;
        prefixes.sort_unstable();
        prefixes.dedup();
        if !(1..=PREFIXES_MAX).contains(&prefixes.len()) {
            return Err(RightError::Count(prefixes.len()));
        }
        Ok(Self { app: app.to_owned(), prefixes })
    }

    /// Whether `prefix` equals a named prefix or lies under one on a segment border.
    pub(super) fn covers(&self, prefix: &str) -> bool {
        let Some(prefix) = normal_prefix(prefix) else { return false };
        self.prefixes.iter().any(|named| {
            named == "/" || prefix.strip_prefix(named).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }

    pub(super) fn to_uri(&self, cluster: &str) -> String {
        let mut uri = format!("servery://{cluster}/app/");
        encode(&self.app, &mut uri);
        for (i, prefix) in self.prefixes.iter().enumerate() {
            uri.push_str(if i == 0 { "?prefix=" } else { "&prefix=" });
            encode(prefix, &mut uri);
        }
        uri
    }

    /// The cluster and the right, if `uri` is exactly what [`Self::to_uri`] writes.
    pub(super) fn from_uri(uri: &str) -> Option<(&str, Self)> {
        let (cluster, rest) = uri.strip_prefix("servery://")?.split_once("/app/")?;
        let (app, query) = rest.split_once('?')?;
        let prefixes =
            query.split('&').map(|pair| decode(pair.strip_prefix("prefix=")?)).collect::<Option<Vec<_>>>()?;
        let right = Self::new(&decode(app)?, &prefixes).ok()?;
        (super::is_cluster(cluster) && right.to_uri(cluster) == uri).then_some((cluster, right))
    }
}

fn is_app(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= APP_MAX
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|byte| plain(byte) || b"-_.".contains(&byte))
}

/// `/` or `/a/b`. A segment that is relative once it is decoded is none: it would lie under a prefix in text only.
fn normal_prefix(text: &str) -> Option<String> {
    let segments = text.strip_prefix('/').filter(|_| text.len() <= PREFIX_MAX)?;
    let segments = segments.strip_suffix('/').unwrap_or(segments);
    let good = |segment: &str| {
        let plain = segment.to_ascii_lowercase().replace("%2e", ".");
        !matches!(plain.as_str(), "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\"\\".contains(&byte))
    };
    (segments.is_empty() || segments.split('/').all(good)).then(|| format!("/{segments}"))
}

/// RFC 3986 section 2.1, everything but the unreserved characters and the slash.
fn encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            into.push(char::from(byte));
        } else {
            write!(into, "%{byte:02X}").expect("a String takes everything");
        }
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            u8::try_from(digit(bytes.next()?)? * 16 + digit(bytes.next()?)?).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(decoded).ok()
}
