//! A newer configuration beside the one in force. In: both. Out: the newer one, as it can be put in force while the
//! process runs. Pure.

use super::{Config, RouteConfig};
use std::collections::{BTreeMap, BTreeSet};

impl Config {
    /// Keeps what only a start can change as it is in `old`; the result names those keys that would have changed.
    pub(crate) fn keep_what_is_bound(&mut self, old: &Self) -> Vec<&'static str> {
        let mut kept = Vec::new();
        keep("balancer.http", &mut self.http, &old.http, &mut kept);
        keep("balancer.https", &mut self.https, &old.https, &mut kept);
        keep("balancer.control", &mut self.control, &old.control, &mut kept);
        keep("balancer.admin", &mut self.admin, &old.admin, &mut kept);
        keep("balancer.threads", &mut self.threads, &old.threads, &mut kept);
        keep("balancer.access_log", &mut self.access_log, &old.access_log, &mut kept);
        keep("balancer.start_hold", &mut self.start_hold, &old.start_hold, &mut kept);
        keep("balancer.cache_certificates", &mut self.cache_certificates, &old.cache_certificates, &mut kept);
        kept
    }

    /// Counts the reserves of an app as `old` did where their routes are the same, so that a permit goes back to where it
    /// was taken. Others get the numbers that are left: what a route that is gone still holds may count there until it ends.
    pub(crate) fn carry_reserves_over(&mut self, old: &Self) {
        let known: BTreeMap<_, usize> =
            old.routes.iter().filter_map(|route| Some((place(route)?, route.class.reserve?))).collect();
        let mut taken: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        let reserved = || self.routes.iter().enumerate().filter(|(_, route)| route.class.reserve.is_some());
        let mut numbers = BTreeMap::new();
        for (at, route) in reserved() {
            if let Some(place) = place(route)
                && let Some(number) = known.get(&place)
            {
                taken.entry(place.0).or_default().insert(*number);
                numbers.insert(at, *number);
            }
        }
        for (at, route) in reserved() {
            if let (Some((app, ..)), false) = (place(route), numbers.contains_key(&at)) {
                let taken = taken.entry(app).or_default();
                let number = (0..).find(|number| !taken.contains(number)).unwrap_or_default();
                taken.insert(number);
                numbers.insert(at, number);
            }
        }
        for (at, number) in numbers {
            self.routes[at].class.reserve = Some(number);
        }
    }
}

fn keep<T: PartialEq + Clone>(key: &'static str, new: &mut T, old: &T, kept: &mut Vec<&'static str>) {
    if new != old {
        new.clone_from(old);
        kept.push(key);
    }
}

/// What makes it the same route of the same app: app, host, prefix.
fn place(route: &RouteConfig) -> Option<(String, String, String)> {
    Some((route.target.app()?.to_owned(), route.host.to_string(), route.prefix.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use chassis::config::{Layers, Reader};

    fn config(text: &str) -> Config {
        let layers = Layers::from_text("test", text, [], Vec::new());
        let mut reader = Reader::new(&layers);
        let config = Config::read(&mut reader);
        reader.finish().unwrap();
        config
    }

    #[test]
    fn what_is_bound_stays_and_is_named() {
        let old = config("[balancer]\nhttp = \":1080\"\nthreads = 2\ndrain = \"5s\"\n");
        let mut new = config(
            "[balancer]\nhttp = \":1081\"\nthreads = 3\ndrain = \"6s\"\ncache_certificates = true\naccess_log = \"off\"\n",
        );
        let kept = new.keep_what_is_bound(&old);
        assert_eq!(kept, ["balancer.http", "balancer.threads", "balancer.access_log", "balancer.cache_certificates"]);
        assert_eq!((new.http, new.threads, new.cache_certificates), (old.http, 2, false));
        assert_eq!(new.drain.as_secs(), 6);
        assert_eq!(new.clone().keep_what_is_bound(&old), Vec::<&str>::new());
    }

    fn routes(routes: &[(&str, &str, u32)]) -> Config {
        let table = |(app, prefix, reserve): &(&str, &str, u32)| {
            format!("[[balancer.route]]\nprefix = \"{prefix}\"\napp = \"{app}\"\nreserve = {reserve}\n")
        };
        config(&routes.iter().map(table).collect::<String>())
    }

    #[test]
    fn a_reserve_keeps_its_number_as_long_as_its_route_stays() {
        let old = routes(&[("a", "/one", 1), ("a", "/two", 2), ("b", "/b", 3)]);
        assert_eq!(old.reserves(), [("a".to_owned(), vec![1, 2]), ("b".to_owned(), vec![3])].into());
        let mut new = routes(&[("a", "/new", 7), ("a", "/plain", 0), ("a", "/two", 5), ("b", "/b", 0)]);
        new.carry_reserves_over(&old);
        assert_eq!(new.reserves(), [("a".to_owned(), vec![7, 5])].into());
        // a hundred other files later there are no more numbers than reserves
        for round in 0..100 {
            let mut newer = routes(&[("a", &format!("/round{round}"), 7), ("a", "/two", 5)]);
            newer.carry_reserves_over(&new);
            assert_eq!(newer.reserves(), [("a".to_owned(), vec![7, 5])].into());
            new = newer;
        }
        let mut only = routes(&[("a", "/two", 5)]);
        only.carry_reserves_over(&new);
        assert_eq!(only.reserves(), [("a".to_owned(), vec![0, 5])].into());
    }
}
