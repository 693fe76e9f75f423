//! Routes: host and path prefix -> app or redirect. In: what is configured and what nodes declare. Out: an immutable
//! table with one question, `lookup`. Pure: no clock, no task, no I/O.
//!
//! The most specific route wins: an exact host before a wildcard before any host, then the longest prefix, then a
//! configured route before a declared one. A host whose routes do not fit the path falls back to the next pattern.

use crate::{app::App, dispatch::Class};
use std::{
    collections::HashMap,
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};
use thiserror::Error;

/// RFC 1035, section 2.3.4.
const HOST_LENGTH: usize = 253;

/// Which `Host` a route is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    Any,
    /// Lower case, no port; an IPv6 address in brackets, in its shortest form.
    Exact(Box<str>),
    /// `*.example.com`, kept as `example.com`: exactly one label before it.
    Wildcard(Box<str>),
}

impl HostPattern {
    /// "" or "*": any; "*.example.com"; "example.com"; addresses ("127.0.0.1", "[::1]").
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        let refused = || RouteError::Host(text.to_owned());
        let lower = text.to_ascii_lowercase();
        if lower.is_empty() || lower == "*" {
            return Ok(Self::Any);
        }
        if let Some(address) = lower.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address: Ipv6Addr = address.parse().map_err(|_| refused())?;
            return Ok(Self::Exact(format!("[{address}]").into()));
        }
        let (name, wildcard) = lower.strip_prefix("*.").map_or((lower.as_str(), false), |name| (name, true));
        if !is_name(name) || (wildcard && name.parse::<Ipv4Addr>().is_ok()) {
            return Err(refused());
        }
        Ok(if wildcard { Self::Wildcard(name.into()) } else { Self::Exact(name.into()) })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(host) => f.write_str(host),
            Self::Wildcard(host) => write!(f, "*.{host}"),
        }
    }
}

/// Labels of letters, digits, hyphens and underscores: underscores are no DNS host names, but container names.
fn is_name(name: &str) -> bool {
    name.len() <= HOST_LENGTH
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'))
        })
}

/// A path prefix that matches on segment borders: "/" or "/a/b", without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(Box<str>);

impl Prefix {
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        let refused = || RouteError::Prefix(text.to_owned());
        if text == "/" {
            return Ok(Self("/".into()));
        }
        let segments = text.strip_prefix('/').ok_or_else(refused)?;
        let segments = segments.strip_suffix('/').unwrap_or(segments);
        let good = segments.split('/').all(|segment| {
            !matches!(segment, "" | "." | "..")
                && segment.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'"' | b'\\'))
        });
        if good { Ok(Self(format!("/{segments}").into())) } else { Err(refused()) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is left of `path` behind this prefix: empty, or something that begins with "/". `None`: not under it.
    pub fn rest<'a>(&self, path: &'a str) -> Option<&'a str> {
        if &*self.0 == "/" {
            return path.starts_with('/').then_some(path);
        }
        path.strip_prefix(&*self.0).filter(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RouteError {
    #[error(
        "{0:?} is no host name: expected a name such as \"example.com\", \"*.example.com\", an address, or nothing for any"
    )]
    Host(String),
    #[error(
        "{0:?} is no path prefix: expected \"/\" or something like \"/app\", without \"?\", \"#\", \"//\" or \"..\""
    )]
    Prefix(String),
}

/// Where a route leads.
#[derive(Clone, Debug)]
pub enum Target {
    App(Arc<App>),
    /// To this URL, or path on the same host, with the rest of the path behind the prefix and the query appended.
    Redirect(Box<str>),
}

#[derive(Clone, Debug)]
pub struct Route {
    pub host: HostPattern,
    pub prefix: Prefix,
    pub target: Target,
    /// The app sees the path without the prefix, and the prefix in `X-Forwarded-Prefix`.
    pub strip_prefix: bool,
    /// How its requests are treated beside those of the app's other routes.
    pub class: Class,
}

/// An immutable view of every route.
#[derive(Debug, Default)]
pub struct Table {
    exact: HashMap<Box<str>, Vec<Arc<Route>>>,
    wildcard: HashMap<Box<str>, Vec<Arc<Route>>>,
    any: Vec<Arc<Route>>,
}

impl Table {
    /// Of two routes with the same host and prefix the configured one wins, then the earlier.
    pub fn new(configured: &[Route], declared: &[Route]) -> Self {
        let mut table = Self::default();
        for route in configured.iter().chain(declared) {
            let routes = match &route.host {
                HostPattern::Any => &mut table.any,
                HostPattern::Exact(host) => table.exact.entry(host.clone()).or_default(),
                HostPattern::Wildcard(host) => table.wildcard.entry(host.clone()).or_default(),
            };
            if !routes.iter().any(|other| other.prefix == route.prefix) {
                routes.push(Arc::new(route.clone()));
            }
        }
        let lists = table.exact.values_mut().chain(table.wildcard.values_mut()).chain([&mut table.any]);
        for routes in lists {
            // the longest first: then the first that fits is the answer
            routes.sort_by_key(|route| std::cmp::Reverse(route.prefix.as_str().len()));
        }
        table
    }

    /// `host` in lower case without its port; `path` without its query.
    pub fn lookup(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        let fits = |routes: &'_ Vec<Arc<Route>>| routes.iter().position(|route| route.prefix.rest(path).is_some());
        let first = |routes: Option<&'_ Vec<Arc<Route>>>| routes.and_then(fits);
        let exact = self.exact.get(host);
        if let (Some(routes), Some(at)) = (exact, first(exact)) {
            return routes.get(at);
        }
        let parent =
            if self.wildcard.is_empty() { None } else { host.split_once('.').filter(|(label, _)| !label.is_empty()) };
        let wildcard = parent.and_then(|(_, parent)| self.wildcard.get(parent));
        if let (Some(routes), Some(at)) = (wildcard, first(wildcard)) {
            return routes.get(at);
        }
        self.any.get(fits(&self.any)?)
    }

    /// Nothing is configured, and no node has declared anything yet.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty() && self.any.is_empty()
    }

    /// In no particular order.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.exact.values().chain(self.wildcard.values()).flatten().chain(&self.any)
    }
}

#[cfg(test)]
mod tests;
