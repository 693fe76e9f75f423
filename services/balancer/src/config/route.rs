//! `[[balancer.route]]`. In: its tables. Out: which requests go where, and how they are treated there.

use super::upstream::{self, UpstreamConfig};
use crate::{
    dispatch::{Class, Priority},
    route::{HostPattern, Prefix},
};
use chassis::config::{Reader, TableReader};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// One `[[balancer.route]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    pub host: HostPattern,
    pub prefix: Prefix,
    pub target: RouteTarget,
    pub strip_prefix: bool,
    /// `reserve` counts the reserves of the route's app.
    pub class: Class,
    /// Permits of the app that only this route's requests may use; 0: none.
    pub reserve: u32,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteTarget {
    App(String),
    /// Servers that are no app-servers. Routes with the same ones share them.
    Upstream(Arc<UpstreamConfig>),
    /// An absolute URL, or a path on the same host.
    Redirect(String),
}

impl RouteTarget {
    /// The app that has the route's requests, queue and metrics.
    pub fn app(&self) -> Option<&str> {
        match self {
            Self::App(app) => Some(app),
            Self::Upstream(upstream) => Some(&upstream.name),
            Self::Redirect(_) => None,
        }
    }
}

pub(super) fn read(reader: &mut Reader<'_>) -> Vec<RouteConfig> {
    let mut seen = HashSet::new();
    let mut reserves: BTreeMap<String, usize> = BTreeMap::new();
    let mut upstreams: HashMap<String, Arc<UpstreamConfig>> = HashMap::new();
    let routes = reader.tables("balancer.route", |table| {
        let mut route = read_route(table)?;
        if let RouteTarget::Upstream(upstream) = &mut route.target {
            let first = upstreams.entry(upstream.name.clone()).or_insert_with(|| Arc::clone(upstream));
            if first != upstream {
                let message = "an earlier route has an upstream of this name with other settings: give each a name";
                let key = if table.has("name") { "name" } else { "upstream" };
                table.refuse(key, message);
            }
            *upstream = Arc::clone(first);
        }
        if let (Some(app), 1..) = (route.target.app(), route.reserve) {
            let count = reserves.entry(app.to_owned()).or_default();
            route.class.reserve = Some(*count);
            *count += 1;
        }
        if !seen.insert((route.host.clone(), route.prefix.clone())) {
            let key = if table.has("prefix") { "prefix" } else { "host" };
            table.refuse(key, "clashes: an earlier route has the same host and prefix");
        }
        Some(route)
    });
    routes.into_iter().flatten().collect()
}

/// `None` if something is wrong with it, which the table knows by then.
fn read_route(table: &mut TableReader<'_>) -> Option<RouteConfig> {
    if table.has("directory") {
        table.refuse("directory", "is not supported yet: a route leads to an app, an upstream or a redirect");
    }
    let host = match HostPattern::parse(&table.read("host", String::new())) {
        Ok(host) => Some(host),
        Err(error) => {
            table.refuse("host", error.to_string());
            None
        }
    };
    let prefix = match Prefix::parse(&table.read("prefix", "/".to_owned())) {
        Ok(prefix) => Some(prefix),
        Err(error) => {
            table.refuse("prefix", error.to_string());
            None
        }
    };
    let strip_prefix = table.read("strip_prefix", false);
    let upstream = upstream::read(table);
    let target = match (table.optional::<String>("app"), table.optional::<String>("redirect")) {
        (app, redirect) if table.has("upstream") => {
            let other = [app.map(|_| "app"), redirect.map(|_| "redirect")].into_iter().flatten().next();
            if let Some(other) = other {
                table.refuse(other, "a route leads to an app, an upstream or a redirect, to one of them only");
            }
            upstream.map(|upstream| RouteTarget::Upstream(Arc::new(upstream)))
        }
        (Some(app), None) if is_app_name(&app) => Some(RouteTarget::App(app)),
        (Some(_), None) => {
            table.refuse("app", format!("an app's name is {APP_NAME}"));
            None
        }
        (None, Some(to)) if !is_redirect_target(&to) => {
            table.refuse("redirect", "expected \"https://example.com/path\" or \"/path\", without \"?\" and \"#\"");
            None
        }
        (None, Some(_)) if strip_prefix => {
            table.refuse("strip_prefix", "goes with an app: a redirect always puts its target in the prefix's place");
            None
        }
        (None, Some(to)) => Some(RouteTarget::Redirect(to)),
        (Some(_), Some(_)) => {
            table.refuse("redirect", "a route leads to an app, an upstream or a redirect, to one of them only");
            None
        }
        (None, None) => {
            // A wrong one, or one that is not supported yet, has been reported.
            if !["app", "redirect", "directory"].into_iter().any(|key| table.has(key)) {
                table.refuse("app", "is missing: say which app or upstream the route leads to, or where it redirects");
            }
            None
        }
    };
    let (priority, reserve) = read_class(table);
    if (priority != Priority::Normal || reserve > 0) && matches!(target, Some(RouteTarget::Redirect(_))) {
        table.refuse("redirect", "takes no priority and no reserve: it needs no worker");
    }
    let class = Class { priority, reserve: None };
    Some(RouteConfig { host: host?, prefix: prefix?, target: target?, strip_prefix, class, reserve })
}

/// Which of an app's requests go first, and how many permits are theirs alone.
fn read_class(table: &mut TableReader<'_>) -> (Priority, u32) {
    let priority = match table.read("priority", "normal".to_owned()).as_str() {
        "high" => Priority::High,
        "normal" => Priority::Normal,
        "low" => Priority::Low,
        _ => {
            table.refuse("priority", "expected \"high\", \"normal\" or \"low\"");
            Priority::Normal
        }
    };
    (priority, table.read("reserve", 0))
}

/// Longest name of an app: it is a metrics label and goes with every log line.
const APP_NAME_MAX: usize = 63;

/// Completes "an app's name is ...".
pub(crate) const APP_NAME: &str =
    "1 to 63 lower-case letters, digits, \"-\", \"_\" and \".\", beginning with a letter or digit";

/// It becomes a metrics label, a part of a URI in certificates and a word in log lines.
pub(crate) fn is_app_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= APP_NAME_MAX
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|byte| plain(byte) || b"-_.".contains(&byte))
}

/// The rest of the path, and the query, are put behind it.
fn is_redirect_target(to: &str) -> bool {
    let Ok(uri) = to.parse::<http::Uri>() else { return false };
    let absolute = matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some();
    // "//host" would be another host.
    let path = to.starts_with('/') && !to.starts_with("//");
    (absolute || path) && !to.contains(['?', '#'])
}
