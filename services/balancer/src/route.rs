//! Routes: host and path prefix -> app or redirect. Pure: no clock, no task, no I/O.

use crate::app::App;
use std::sync::Arc;
use thiserror::Error;

/// Which `Host` a route is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    Any,
    /// Lower case, no port.
    Exact(Box<str>),
    /// `*.example.com`, kept without the star: exactly one label before it.
    Wildcard(Box<str>),
}

impl HostPattern {
    /// "" or "*": any; "*.example.com"; "example.com"; addresses ("127.0.0.1", "[::1]").
    pub fn parse(_text: &str) -> Result<Self, RouteError> {
        unimplemented!()
    }
}

/// A path prefix that matches on segment borders: "/" or "/a/b", without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(Box<str>);

impl Prefix {
    pub fn parse(_text: &str) -> Result<Self, RouteError> {
        unimplemented!()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RouteError {
    #[error("{0:?} is no host name: expected a name such as \"example.com\", \"*.example.com\", an address, or nothing for any")]
    Host(String),
    #[error("{0:?} is no path prefix: expected \"/\" or something like \"/app\", without \"?\", \"#\", \"//\" or \"..\"")]
    Prefix(String),
}

#[derive(Clone, Debug)]
pub enum Target {
    App(Arc<App>),
    /// 308 to this URL with the rest of the path after the prefix, and the query, appended.
    Redirect(Box<str>),
}

#[derive(Clone, Debug)]
pub struct Route {
    pub host: HostPattern,
    pub prefix: Prefix,
    pub target: Target,
    pub strip_prefix: bool,
}

/// An immutable view of every route.
#[derive(Debug, Default)]
pub struct Table {}

impl Table {
    /// Of two routes with the same host and prefix the configured one wins, then the earlier.
    pub fn new(_configured: &[Route], _declared: &[Route]) -> Self {
        unimplemented!()
    }

    /// `host` in lower case without its port; `path` without its query.
    pub fn lookup(&self, _host: &str, _path: &str) -> Option<&Arc<Route>> {
        unimplemented!()
    }
}
