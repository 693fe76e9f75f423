use super::*;
use proptest::prelude::*;

fn route(host: &str, prefix: &str, to: &str) -> Route {
    Route {
        host: HostPattern::parse(host).unwrap(),
        prefix: Prefix::parse(prefix).unwrap(),
        target: Target::Redirect(to.into()),
        strip_prefix: false,
        class: Class::default(),
    }
}

fn target(route: &Route) -> &str {
    let Target::Redirect(to) = &route.target else { panic!("these tests only redirect") };
    to
}

fn find<'a>(table: &'a Table, host: &str, path: &str) -> Option<&'a str> {
    table.lookup(host, path).map(|route| target(route))
}

#[test]
fn hosts_are_names_addresses_and_one_leading_star() {
    for good in ["", "*", "localhost", "Example.COM", "*.example.com", "127.0.0.1", "[::1]", "a_b.c"] {
        assert!(HostPattern::parse(good).is_ok(), "{good}");
    }
    for bad in ["a..b", ".a", "a.", "*a.b", "*.*.b", "a:80", "::1", "[1.2.3.4]", "a b", "é.fr", "*.1.2.3.4", "*."] {
        assert!(HostPattern::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(HostPattern::parse("[0:0::1]").unwrap(), HostPattern::Exact("[::1]".into()));
    assert_eq!(HostPattern::parse("Example.COM").unwrap(), HostPattern::Exact("example.com".into()));
}

#[test]
fn prefixes_are_clean_paths() {
    for (text, prefix) in [("/", "/"), ("/a", "/a"), ("/a/", "/a"), ("/a/b", "/a/b"), ("/%41", "/%41")] {
        assert_eq!(Prefix::parse(text).unwrap().as_str(), prefix);
    }
    for bad in ["", "a", "//", "/a//b", "/a/../b", "/.", "/a?b", "/a#b", "/a b", "/é", "/\""] {
        assert!(Prefix::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_prefix_matches_on_segment_borders() {
    let prefix = Prefix::parse("/flask").unwrap();
    assert_eq!(prefix.rest("/flask"), Some(""));
    assert_eq!(prefix.rest("/flask/"), Some("/"));
    assert_eq!(prefix.rest("/flask/a"), Some("/a"));
    assert_eq!(prefix.rest("/flasks"), None);
    assert_eq!(Prefix::parse("/").unwrap().rest("/a"), Some("/a"));
}

#[test]
fn the_most_specific_route_wins() {
    let configured = [route("", "/", "any"), route("", "/a", "any a"), route("*.x.org", "/", "wild")];
    let declared = [route("a.x.org", "/only", "exact"), route("", "/", "declared"), route("", "/a/b", "declared b")];
    let table = Table::new(&configured, &declared);
    assert_eq!(find(&table, "other", "/"), Some("any"));
    assert_eq!(find(&table, "other", "/a/c"), Some("any a"));
    assert_eq!(find(&table, "other", "/a/b"), Some("declared b"));
    assert_eq!(find(&table, "b.x.org", "/a"), Some("wild"));
    assert_eq!(find(&table, "b.b.x.org", "/a"), Some("any a"), "a star is one label");
    assert_eq!(find(&table, "x.org", "/"), Some("any"));
    assert_eq!(find(&table, "a.x.org", "/only/this"), Some("exact"));
    assert_eq!(find(&table, "a.x.org", "/else"), Some("wild"), "falls back");
    assert_eq!(find(&table, "a", "*"), None);
}

/// The rules of the module's comment, said once more without any cleverness.
fn naive<'a>(configured: &'a [Route], declared: &'a [Route], host: &str, path: &str) -> Option<&'a str> {
    let mut best: Option<(u32, usize, usize, &Route)> = None;
    for (order, route) in configured.iter().chain(declared).enumerate() {
        let rank = match &route.host {
            HostPattern::Any => 0,
            HostPattern::Wildcard(parent) => {
                let Some(label) = host.strip_suffix(&format!(".{parent}")) else { continue };
                if label.is_empty() || label.contains('.') {
                    continue;
                }
                1
            }
            HostPattern::Exact(exact) if **exact == *host => 2,
            HostPattern::Exact(_) => continue,
        };
        let prefix = route.prefix.as_str();
        let segments = |path: &str| path.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        if !path.starts_with('/') || !segments(path).starts_with(&segments(prefix)) {
            continue;
        }
        if best.is_none_or(|(r, l, o, _)| (rank, prefix.len(), usize::MAX - order) > (r, l, usize::MAX - o)) {
            best = Some((rank, prefix.len(), order, route));
        }
    }
    best.map(|(.., route)| target(route))
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let host = prop::sample::select(vec!["", "a.x", "b.a.x", "*.x", "*.a.x", "x"]);
    let prefix = prop::sample::select(vec!["/", "/p", "/p/q", "/pq", "/q", "/p/q/r"]);
    prop::collection::vec((host, prefix, 0..1000u32), 0..10)
        .prop_map(|routes| routes.into_iter().map(|(host, prefix, to)| route(host, prefix, &to.to_string())).collect())
}

proptest! {
    #[test]
    fn agrees_with_a_naive_reading(configured in routes(), declared in routes(),
        host in "(b\\.)?(a\\.)?x|y", path in "/|(/(p|q|r|pq)){0,4}") {
        let table = Table::new(&configured, &declared);
        prop_assert_eq!(find(&table, &host, &path), naive(&configured, &declared, &host, &path));
    }
}
