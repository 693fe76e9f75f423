//! Whatever is asked for, a route is found only where its prefix fits, and the longest of a host's that do.
#![no_main]

use balancer::{
    dispatch::Class,
    route::{HostPattern, Prefix, Route, Table, Target},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut lines = text.lines();
    let (host, path) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let routes = lines.take(32).filter_map(|line| {
        let (host, prefix) = line.split_once(' ')?;
        Some(Route {
            host: HostPattern::parse(host).ok()?,
            prefix: Prefix::parse(prefix).ok()?,
            target: Target::Redirect(line.into()),
            strip_prefix: false,
            class: Class::default(),
        })
    });
    let routes: Vec<Route> = routes.collect();
    let Some(found) = Table::new(&routes, &[]).lookup(host, path).cloned() else {
        let any = routes.iter().any(|route| route.host == HostPattern::Any && route.prefix.rest(path).is_some());
        assert!(!any, "a route for any host fits");
        return;
    };
    let rest = found.prefix.rest(path).expect("a route that was found fits");
    assert!(rest.is_empty() || rest.starts_with('/'));
    let longer = |route: &&Route| {
        route.host == found.host
            && route.prefix.as_str().len() > found.prefix.as_str().len()
            && route.prefix.rest(path).is_some()
    };
    assert!(routes.iter().find(longer).is_none());
});
