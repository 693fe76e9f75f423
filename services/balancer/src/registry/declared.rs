//! Which routes do the nodes' declarations add up to? In: an app's newest declaration. Out: every app's routes, no two
//! for the same host and prefix. Pure; that a configured route beats a declared one is the route table's business.

use super::admission::DeclaredRoute;
use std::collections::BTreeMap;

/// The declared routes of every app that ever had a node. An app keeps them after its last node left, so that its
/// requests wait for the next one instead of finding no route.
#[derive(Debug, Default)]
pub(crate) struct Declared {
    by_app: BTreeMap<String, Vec<DeclaredRoute>>,
}

/// Another app with live nodes has the same host and prefix.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) prefix: String,
    pub(crate) holder: String,
}

impl Declared {
    /// Makes `routes` the routes of `app`: the newest registration speaks for its app. What another app declared is
    /// taken from it, unless that app is `live`: then nothing changes. True if any app's routes are others now.
    pub(crate) fn declare(
        &mut self,
        app: &str,
        routes: Vec<DeclaredRoute>,
        live: impl Fn(&str) -> bool,
    ) -> Result<bool, Taken> {
        if self.by_app.get(app).is_some_and(|known| *known == routes) {
            return Ok(false);
        }
        let same = |one: &DeclaredRoute, other: &DeclaredRoute| one.host == other.host && one.prefix == other.prefix;
        for (holder, held) in self.by_app.iter().filter(|(holder, _)| *holder != app && live(holder)) {
            if let Some(route) = routes.iter().find(|route| held.iter().any(|held| same(held, route))) {
                return Err(Taken { prefix: route.prefix.as_str().to_owned(), holder: holder.clone() });
            }
        }
        for held in self.by_app.values_mut() {
            held.retain(|held| !routes.iter().any(|route| same(held, route)));
        }
        self.by_app.insert(app.to_owned(), routes);
        Ok(true)
    }

    /// Every route and its app.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &DeclaredRoute)> {
        self.by_app.iter().flat_map(|(app, routes)| routes.iter().map(|route| (app.as_str(), route)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{HostPattern, Prefix};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn route(host: &str, prefix: &str) -> DeclaredRoute {
        DeclaredRoute {
            host: HostPattern::parse(host).unwrap(),
            prefix: Prefix::parse(prefix).unwrap(),
            strip_prefix: false,
        }
    }

    fn routes_of(declared: &Declared, app: &str) -> Vec<DeclaredRoute> {
        declared.iter().filter(|(name, _)| *name == app).map(|(_, route)| route.clone()).collect()
    }

    #[test]
    fn a_live_apps_prefix_cannot_be_taken_and_a_dead_ones_can() {
        let mut declared = Declared::default();
        assert_eq!(declared.declare("shop", vec![route("", "/"), route("", "/cart")], |_| true), Ok(true));
        let taken = declared.declare("thief", vec![route("", "/cart")], |app| app == "shop");
        assert_eq!(taken, Err(Taken { prefix: "/cart".to_owned(), holder: "shop".to_owned() }));
        assert_eq!(declared.declare("heir", vec![route("", "/cart")], |_| false), Ok(true));
        assert_eq!(routes_of(&declared, "shop"), [route("", "/")]);
        assert_eq!(routes_of(&declared, "heir"), [route("", "/cart")]);
    }

    #[test]
    fn the_same_prefix_on_another_host_is_another_route() {
        let mut declared = Declared::default();
        assert_eq!(declared.declare("shop", vec![route("shop.example.com", "/")], |_| true), Ok(true));
        assert_eq!(declared.declare("blog", vec![route("blog.example.com", "/")], |_| true), Ok(true));
        assert_eq!(declared.iter().count(), 2);
    }

    #[test]
    fn the_newest_declaration_speaks_for_its_app() {
        let mut declared = Declared::default();
        assert_eq!(declared.declare("demo", vec![route("", "/a"), route("", "/b")], |_| true), Ok(true));
        assert_eq!(declared.declare("demo", vec![route("", "/b"), route("", "/c")], |_| true), Ok(true));
        assert_eq!(routes_of(&declared, "demo"), [route("", "/b"), route("", "/c")]);
        assert_eq!(declared.declare("demo", vec![route("", "/b"), route("", "/c")], |_| true), Ok(false));
    }

    proptest! {
        #[test]
        fn every_route_has_one_app_and_live_apps_lose_nothing(
            steps in prop::collection::vec((0..4_usize, prop::collection::btree_set((0..2_usize, 0..4_usize), 0..4), prop::collection::btree_set(0..4_usize, 0..4)), 0..40),
        ) {
            let apps = ["a", "b", "c", "d"];
            let mut declared = Declared::default();
            for (app, wanted, live) in steps {
                let live: BTreeSet<&str> = live.into_iter().map(|at| apps[at]).collect();
                let wanted: Vec<_> =
                    wanted.into_iter().map(|(host, prefix)| route(["", "example.com"][host], ["/", "/a", "/a/b", "/c"][prefix])).collect();
                let before: Vec<Vec<_>> = apps.iter().map(|app| routes_of(&declared, app)).collect();
                let result = declared.declare(apps[app], wanted.clone(), |app| live.contains(app));
                let after: Vec<Vec<_>> = apps.iter().map(|app| routes_of(&declared, app)).collect();
                // one app per host and prefix
                let mut seen = BTreeSet::new();
                for (_, route) in declared.iter() {
                    let place = format!("{:?} {:?}", route.host, route.prefix);
                    prop_assert!(seen.insert(place));
                }
                // others that live keep what they had
                for (at, other) in apps.iter().enumerate().filter(|(at, other)| *at != app && live.contains(*other)) {
                    prop_assert_eq!(&before[at], &after[at], "{} lost a route", other);
                }
                match result {
                    Ok(changed) => {
                        prop_assert_eq!(&after[app], &wanted);
                        // an app that has never declared anything is not told from one that declares nothing
                        prop_assert!(changed || before == after);
                    }
                    Err(taken) => {
                        prop_assert_eq!(before, after);
                        prop_assert!(live.contains(taken.holder.as_str()) && taken.holder != apps[app]);
                    }
                }
            }
        }
    }
}
