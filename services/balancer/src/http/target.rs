//! The request target on its way to an app. In: what the client asked for, and the route it took. Out: path and query, with
//! or without the route's prefix. Pure.

use crate::{
    reject::Reject,
    route::{Prefix, Route},
};
use http::{Uri, uri::PathAndQuery};

/// Path and query as the app sees them.
pub(super) fn of_route(uri: &Uri, route: &Route) -> Result<Uri, Reject> {
    let whole = || uri.path_and_query().cloned().ok_or(Reject::BadTarget);
    let target = if route.strip_prefix { without_prefix(uri, &route.prefix)? } else { whole()? };
    Ok(Uri::from(target))
}

fn without_prefix(uri: &Uri, prefix: &Prefix) -> Result<PathAndQuery, Reject> {
    let rest = prefix.rest(uri.path()).ok_or(Reject::BadTarget)?;
    let mut target = String::with_capacity(uri.path().len() + uri.query().map_or(0, str::len) + 2);
    target.push_str(if rest.is_empty() { "/" } else { rest });
    if let Some(query) = uri.query() {
        target.push('?');
        target.push_str(query);
    }
    PathAndQuery::try_from(target).map_err(|_| Reject::BadTarget)
}
