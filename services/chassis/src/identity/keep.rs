//! An identity's life over time: how long to wait for the first, when to ask for the next. In: the clock and what the
//! sidecar says. Out: one log line per reason and half minute, and material in time. Never an end: whoever owns the
//! loop ends it.

use super::{
    EnrolConfig, Identity, IdentityError, JoinToken, Material, enrol,
    enrol::EnrolError,
    files::{Files, FilesError},
};
use crate::{backoff::Backoff, discovery::Discovery};
use std::{
    collections::HashMap,
    fs::File,
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, sleep};

/// Between two tries while nobody has judged us: the sidecar starts, the token's volume is being filled.
const SOON: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// After a refusal; it ends early when the token file changes.
const LATER: Duration = Duration::from_secs(5);
const TOKEN_LOOKED_AT_EVERY: Duration = Duration::from_millis(500);
/// The same reason is not logged again for as long as this.
const LOGGED_EVERY: Duration = Duration::from_secs(30);
/// A predecessor that is being killed lets go of the directory a moment later.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_TRIED_EVERY: Duration = Duration::from_millis(100);
/// The longest sleep before the clock is looked at again: it may have been set, or the machine suspended.
const CLOCK_LOOKED_AT_EVERY: Duration = Duration::from_secs(30);
/// Between two tries to renew, as parts of the identity's life.
const RENEWAL_FIRST: u32 = 1000;
const RENEWAL_CAP: u32 = 100;
const RENEWAL_CAP_MAX: Duration = Duration::from_secs(60);

/// The identity on disk if it is good, otherwise a new one.
pub(super) async fn load_or_enrol(
    config: &EnrolConfig,
    discovery: &Discovery,
    lock: Option<File>,
) -> Result<(Material, Files), IdentityError> {
    let files = match lock {
        Some(lock) => Files::inherited(&config.data, lock),
        None => open(config).await?,
    };
    match files.load(config.role, &config.cluster)? {
        Some(material) if material.peer().not_after > SystemTime::now() => {
            if material.not_before() > SystemTime::now() {
                tracing::warn!("the identity is not valid yet: is this machine's clock right?");
            }
            return Ok((material, files));
        }
        Some(material) => {
            tracing::warn!(instance = material.peer().instance, "the identity has expired: enrolling anew");
        }
        None => {}
    }
    let material = enrol_patiently(config, discovery, &files).await?;
    Ok((material, files))
}

async fn open(config: &EnrolConfig) -> Result<Files, FilesError> {
    let since = Instant::now();
    loop {
        match Files::open(&config.data) {
            Err(FilesError::InUse(_)) if since.elapsed() < LOCK_PATIENCE => sleep(LOCK_TRIED_EVERY).await,
            opened => return opened,
        }
    }
}

/// Ends only with an identity, or with a disk that cannot keep one.
async fn enrol_patiently(
    config: &EnrolConfig,
    discovery: &Discovery,
    files: &Files,
) -> Result<Material, IdentityError> {
    let mut backoff = Backoff::new(SOON.0, SOON.1);
    let mut complaints = Complaints::default();
    loop {
        let tried = enrol::read_token(config).ok();
        let error = match enrol::enrol(config, discovery, files).await {
            Ok(material) => {
                tracing::info!(instance = material.peer().instance, sidecar = %config.sidecar, "enrolled");
                return Ok(material);
            }
            Err(EnrolError::Files(error)) => return Err(error.into()),
            Err(error) => error,
        };
        complaints.log("no identity yet", &error);
        if error.is_verdict() {
            later(config, tried).await;
        } else {
            let pause = backoff.next(&mut rand::rng());
            sleep(pause).await;
        }
    }
}

/// Waits, but not for longer than the token file stays as it was.
async fn later(config: &EnrolConfig, tried: Option<JoinToken>) {
    let until = Instant::now() + LATER;
    while Instant::now() < until && enrol::read_token(config).ok() == tried {
        sleep(TOKEN_LOOKED_AT_EVERY).await;
    }
}

/// Renews the identity each time it is due; enrols anew if it expired meanwhile.
pub(super) async fn keep_renewed(identity: &Identity, files: &Files, config: &EnrolConfig, discovery: &Discovery) {
    let mut complaints = Complaints::default();
    // What was on disk may be overdue. What has just been issued is not, however far back its first day was put for
    // the sake of clocks that are behind.
    let mut due = identity.material().renewal_due();
    loop {
        until(due).await;
        let life = identity.material().lifetime();
        let cap = (life / RENEWAL_CAP).min(RENEWAL_CAP_MAX);
        let mut backoff = Backoff::new((life / RENEWAL_FIRST).min(cap), cap.max(SOON.0));
        loop {
            let now = SystemTime::now();
            if identity.peer().not_after <= now {
                tracing::error!("the identity has expired while the cert-sidecar was away: enrolling anew");
                match enrol_patiently(config, discovery, files).await {
                    Ok(material) => identity.replace(material),
                    Err(error) => {
                        tracing::error!(%error, "no new identity");
                        sleep(LATER).await;
                        continue;
                    }
                }
                break;
            }
            match enrol::renew(identity, config, discovery, files).await {
                Ok(material) => {
                    tracing::debug!(instance = material.peer().instance, "identity renewed");
                    identity.replace(material);
                    break;
                }
                Err(error) => {
                    complaints.log("the identity is not renewed", &error);
                    let pause = backoff.next(&mut rand::rng());
                    sleep(if error.is_verdict() { pause.max(LATER.min(life / RENEWAL_CAP)) } else { pause }).await;
                }
            }
        }
        due = identity.material().renewal_due_from(SystemTime::now());
    }
}

/// Until the wall clock shows `due`.
async fn until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        sleep(left.min(CLOCK_LOOKED_AT_EVERY)).await;
    }
}

/// Says each thing once in a while.
#[derive(Debug, Default)]
struct Complaints(HashMap<String, Instant>);

impl Complaints {
    fn log(&mut self, what: &'static str, error: &EnrolError) {
        let now = Instant::now();
        self.0.retain(|_, last| now.duration_since(*last) < LOGGED_EVERY);
        let text = error.to_string();
        if self.0.contains_key(&text) {
            return;
        }
        let advice = error.advice();
        if error.is_verdict() {
            tracing::error!(error = text, advice, "{what}");
        } else {
            tracing::info!(error = text, advice, "{what}");
        }
        self.0.insert(text, now);
    }
}
