//! Every app of the balancer, by name. In: names from the configuration and from registrations. Out: the one app of each.

use super::{App, Limits};
use arc_swap::ArcSwap;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Between two looks at what only time changes.
const TURN: Duration = Duration::from_millis(100);

/// Every app this balancer has ever heard of, from its configuration or a registration.
#[derive(Debug)]
pub struct Apps {
    /// Held while an app is put in and while all are told of others, so that none is forgotten.
    tuning: Mutex<Tuning>,
    /// Swapped whole: apps are made rarely and looked up often.
    by_name: ArcSwap<BTreeMap<Arc<str>, Arc<App>>>,
}

/// What every app is made with.
#[derive(Debug)]
struct Tuning {
    limits: Limits,
    /// Of the apps that have some: permits that only some routes' requests may use.
    reserves: BTreeMap<String, Vec<u32>>,
}

impl Tuning {
    fn reserves_of(&self, app: &str) -> &[u32] {
        self.reserves.get(app).map_or(&[][..], Vec::as_slice)
    }
}

impl Apps {
    pub fn new(limits: Limits) -> Arc<Self> {
        Self::with_reserves(limits, BTreeMap::new())
    }

    /// `reserves`: by app, as `Class::reserve` counts them.
    pub fn with_reserves(limits: Limits, reserves: BTreeMap<String, Vec<u32>>) -> Arc<Self> {
        Arc::new(Self { tuning: Mutex::new(Tuning { limits, reserves }), by_name: ArcSwap::default() })
    }

    /// Other limits and reserves, for the apps that there are and for those that come.
    pub fn retune(&self, limits: Limits, reserves: BTreeMap<String, Vec<u32>>) {
        let mut tuning = self.tuning();
        *tuning = Tuning { limits, reserves };
        for app in self.by_name.load().values() {
            app.retune(tuning.limits, tuning.reserves_of(app.name()));
        }
    }

    /// Does for ever what only time brings about: ejected endpoints come back, late requests are turned away.
    pub async fn keep_turning(&self) {
        loop {
            tokio::time::sleep(TURN).await;
            for app in self.by_name.load().values() {
                app.turn(Instant::now());
            }
        }
    }

    /// The app of that name, made if there is none yet.
    pub fn obtain(&self, name: &str) -> Arc<App> {
        if let Some(app) = self.find(name) {
            return app;
        }
        let tuning = self.tuning();
        let new = Arc::new(App::new(name, tuning.limits, tuning.reserves_of(name)));
        self.by_name.rcu(|apps| {
            let mut apps = BTreeMap::clone(apps);
            apps.entry(Arc::clone(&new.name)).or_insert_with(|| Arc::clone(&new));
            apps
        });
        drop(tuning);
        self.find(name).expect("it was just put in, and apps are never removed")
    }

    fn tuning(&self) -> MutexGuard<'_, Tuning> {
        // plain data, replaced whole
        self.tuning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn find(&self, name: &str) -> Option<Arc<App>> {
        self.by_name.load().get(name).cloned()
    }

    /// In the order of their names.
    pub fn all(&self) -> Vec<Arc<App>> {
        self.by_name.load().values().cloned().collect()
    }
}
