//! Everything the cert-sidecar knows, behind one lock: the CA, the records, the catalogue, and the word that something
//! has changed. The services and the control socket are views of this; nothing here awaits.

use crate::{
    catalogue::{Catalogue, CatalogueError},
    config::{Config, Right, RightError, TokenConfig},
    internal_ca::{InternalCa, IssueError, IssuedChain},
    records::{MAX_MEMBERS, MAX_TOKENS, Records, Refusal},
    store::{Store, StoreError, write_private},
};
use chassis::{
    config::Shared,
    identity::{AppRight, PeerId, Role},
};
use proto::certificates::{Certificate, Manifest};
use std::{
    fs,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};
use tokio::sync::watch;

/// The one state of the process. Its lock is held for the microseconds of a signature or the write of a small file.
pub(crate) struct Trust {
    config: Config,
    cluster: String,
    store: Store,
    state: Mutex<State>,
    manifests: watch::Sender<Manifest>,
}

struct State {
    ca: InternalCa,
    records: Records,
    catalogue: Catalogue,
}

/// Why an instance gets no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrolError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Right(#[from] RightError),
    #[error("there are {MAX_MEMBERS} instances already")]
    Full,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A fresh identity.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) instance: String,
    pub(crate) issued: IssuedChain,
    pub(crate) root: Vec<u8>,
}

/// Why the cert-sidecar cannot start or carry on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

impl Trust {
    /// Opens the store, makes what is missing, writes the configured tokens to their files.
    pub(crate) fn open(config: Config, shared: &Shared, now: SystemTime) -> Result<Self, TrustError> {
        let store = Store::open(&shared.data)?;
        let ca = InternalCa::open(&store, &shared.cluster, now)?;
        let records = match store.read("records.json")? {
            Some(text) => serde_json::from_str(&text).map_err(|error| store.damaged("records.json", error))?,
            // Empty ones would let in again whoever is denied. Only what is made after the first records shows that
            // there have been some: without it, the first start was cut off.
            None if store.contains("certificates") || store.contains("tokens") => {
                return Err(store.damaged("records.json", "it is missing, though this store was in use").into());
            }
            None => Records::default(),
        };
        let state = State { ca, records, catalogue: Catalogue::default() };
        let manifests = watch::Sender::new(Manifest::default());
        let trust = Self { config, cluster: shared.cluster.clone(), store, state: Mutex::new(state), manifests };
        trust.save(&trust.state().records)?;
        trust.maintain(now)?;
        Ok(trust)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // a panic cannot leave the state torn: every change is made on a copy or is one insertion
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What falls due with time: intermediate, public certificates, expired records, token files that have vanished.
    pub(crate) fn maintain(&self, now: SystemTime) -> Result<(), TrustError> {
        let mut state = self.state();
        let State { ca, records, catalogue } = &mut *state;
        ca.renew_intermediate(&self.store, &self.cluster, now)?;
        let mut next = records.clone();
        let mut changed = next.prune(now);
        let mut files = Vec::new();
        for TokenConfig { right, file } in &self.config.tokens {
            let (text, new) = next.token(right, false, &ca.root_hash());
            changed |= new;
            files.push((file.clone().unwrap_or_else(|| self.token_file(right)), text, right));
        }
        changed |= next.configured(&self.config.tokens.iter().map(|token| token.right.slot()).collect());
        // In this order: a token that somebody reads is one that we know after a power cut.
        if changed {
            self.save(&next)?;
            *records = next;
        }
        for (file, text, right) in files {
            if fs::read_to_string(&file).ok().as_deref() != Some(text.as_str()) {
                write_private(&file, &text)?;
                tracing::info!(file = %file.display(), right = right.slot(), "wrote a join token");
            }
        }
        catalogue.refresh(&self.config.certificates, ca, &self.store, now)?;
        self.announce(&mut state, now);
        Ok(())
    }

    fn token_file(&self, right: &Right) -> PathBuf {
        self.store.path().join("tokens").join(right.slot())
    }

    fn save(&self, records: &Records) -> Result<(), StoreError> {
        // plain maps of plain values always make JSON
        let text = serde_json::to_string_pretty(records).map_err(|error| self.store.damaged("records.json", error))?;
        self.store.write("records.json", &text)
    }

    /// Tells every balancer, if there is anything to tell.
    fn announce(&self, state: &mut State, now: SystemTime) {
        self.manifests.send_if_modified(|newest| {
            let manifest = state.catalogue.manifest(state.records.denied());
            let changed = manifest.entries != newest.entries || manifest.denied != newest.denied;
            if changed {
                *newest = Manifest { version: next_version(newest.version, now), ..manifest };
            }
            changed
        });
    }

    /// The first identity of an instance, for a token.
    pub(crate) fn enrol(
        &self,
        token: &str,
        csr: &[u8],
        wanted: &str,
        now: SystemTime,
    ) -> Result<(Issued, Role), EnrolError> {
        let mut state = self.state();
        let right = state.records.redeem(token, &state.ca.root_hash())?;
        if state.records.members().len() >= MAX_MEMBERS {
            return Err(EnrolError::Full);
        }
        let instance = state.records.fresh_name(wanted, rand::random);
        let role = right.role();
        Ok((self.issue(&mut state, instance, right, csr, now)?, role))
    }

    /// The next identity of an instance that proved its current one: same name, same rights.
    pub(crate) fn renew(&self, peer: &PeerId, csr: &[u8], now: SystemTime) -> Result<Issued, EnrolError> {
        let mut state = self.state();
        if state.records.is_denied(&peer.instance) {
            return Err(Refusal::Denied.into());
        }
        let app = peer.apps.first();
        let right = match (peer.role, app) {
            (Role::Balancer, None) => Right::Balancer,
            (Role::AppServer, Some(right)) => {
                Right::AppServer { app: right.app.clone(), prefixes: right.prefixes.clone() }
            }
            // we never issued such a thing
            (Role::Balancer | Role::AppServer | Role::CertSidecar, _) => return Err(Refusal::Unknown.into()),
        };
        self.issue(&mut state, peer.instance.clone(), right, csr, now)
    }

    fn issue(
        &self,
        state: &mut State,
        instance: String,
        right: Right,
        csr: &[u8],
        now: SystemTime,
    ) -> Result<Issued, EnrolError> {
        let apps = right.apps()?;
        let issued = state.ca.identity(csr, &self.name(right.role(), &instance, apps, now), now)?;
        let mut records = state.records.clone();
        records.remember(&instance, right, issued.not_after);
        // on disk before it is given away: who has an identity can always be denied
        self.save(&records)?;
        state.records = records;
        Ok(Issued { instance, issued, root: state.ca.root().to_vec() })
    }

    fn name(&self, role: Role, instance: &str, apps: Vec<AppRight>, now: SystemTime) -> PeerId {
        let not_after = now + self.config.identity_lifetime;
        PeerId { cluster: self.cluster.clone(), role, instance: instance.to_owned(), apps, not_after }
    }

    /// The sidecar's own identity: what every other process expects to find here.
    pub(crate) fn own_identity(&self, csr: &[u8], now: SystemTime) -> Result<Issued, IssueError> {
        let state = self.state();
        let instance = format!("cert-sidecar-{}", hex::encode(&state.ca.root_hash()[..3]));
        let issued = state.ca.identity(csr, &self.name(Role::CertSidecar, &instance, Vec::new(), now), now)?;
        Ok(Issued { instance, issued, root: state.ca.root().to_vec() })
    }

    /// The current token of a right, made or rotated on request; a configured token's file follows. With
    /// `any_prefixes` the right of a token that is there already is taken as it is.
    ///
    /// A token's right never changes under those who hold it: other prefixes need `rotate`, and those of a configured
    /// token are the configuration's alone.
    pub(crate) fn token(
        &self,
        right: &Right,
        any_prefixes: bool,
        rotate: bool,
        now: SystemTime,
    ) -> Result<String, TokenError> {
        let slot = right.slot();
        let configured = self.config.tokens.iter().map(|token| &token.right).find(|right| right.slot() == slot);
        let text = {
            let mut state = self.state();
            let mut records = state.records.clone();
            let right = match (configured, records.right_of(&slot)) {
                (Some(there), _) if any_prefixes || there == right => there.clone(),
                (Some(there), _) => return Err(TokenError::Configured(there.clone())),
                (None, Some(there)) if any_prefixes => there.clone(),
                (None, Some(there)) if there != right && !rotate => return Err(TokenError::OtherRight(there.clone())),
                (None, _) => right.clone(),
            };
            let (text, changed) = records.token(&right, rotate, &state.ca.root_hash());
            if records.tokens() > MAX_TOKENS {
                return Err(TokenError::Full);
            }
            if changed {
                self.save(&records)?;
                state.records = records;
            }
            text
        };
        if rotate {
            self.maintain(now)?;
        }
        Ok(text)
    }

    /// Shuts an instance out: no renewal from now on, and every balancer is told.
    pub(crate) fn deny(&self, instance: &str, now: SystemTime) -> Result<(), StoreError> {
        let mut state = self.state();
        let mut records = state.records.clone();
        records.deny(instance, now, self.config.identity_lifetime);
        self.save(&records)?;
        state.records = records;
        self.announce(&mut state, now);
        Ok(())
    }

    pub(crate) fn is_denied(&self, instance: &str) -> bool {
        self.state().records.is_denied(instance)
    }

    /// Whether an instance of this name has been given an identity.
    pub(crate) fn knows(&self, instance: &str) -> bool {
        self.state().records.members().contains_key(instance)
    }

    /// The newest manifest, and every one after it.
    pub(crate) fn manifests(&self) -> watch::Receiver<Manifest> {
        self.manifests.subscribe()
    }

    pub(crate) fn body(&self, sha256: &[u8]) -> Option<Certificate> {
        self.state().catalogue.body(sha256)
    }

    pub(crate) fn root_pem(&self) -> String {
        self.state().ca.root_pem().to_owned()
    }

    /// For a person: tokens without secrets, instances, what is denied.
    pub(crate) fn describe(&self) -> serde_json::Value {
        self.state().records.describe()
    }

    /// Name, hosts and end of every public certificate.
    pub(crate) fn certificates(&self) -> Vec<(String, Vec<String>, SystemTime)> {
        let state = self.state();
        let each = state.catalogue.each();
        each.map(|(name, hosts, not_after)| (name.to_owned(), hosts.to_vec(), not_after)).collect()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }
}

/// A version that grows, also over a restart: the clock's milliseconds, or one more than the last.
fn next_version(last: u64, now: SystemTime) -> u64 {
    let clock = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(clock).unwrap_or(u64::MAX).max(last + 1)
}

/// Why there is no token to print.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("there are {MAX_TOKENS} tokens already")]
    Full,
    #[error("the configuration gives this token {0}; change it there ([[cert_sidecar.token]])")]
    Configured(Right),
    #[error("there is a token for {0}; with --rotate it is replaced by one for other prefixes")]
    OtherRight(Right),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Trust(#[from] TrustError),
}
