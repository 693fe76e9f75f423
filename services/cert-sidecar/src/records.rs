//! Who may come in and who has: join tokens, enrolled instances, denied instances. Pure apart from the random numbers
//! of a new token; `enrolment` and `control` ask, the store keeps it as one file so that every change is whole.

use crate::config::Right;
use chassis::identity::{JoinToken, RootHash};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, SystemTime},
};
use subtle::ConstantTimeEq as _;

/// The state of trust, as it is stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Records {
    /// By slot: one per role, and per app for app-servers.
    tokens: BTreeMap<String, Token>,
    /// By instance.
    members: BTreeMap<String, Member>,
    /// Instance to the end of its last certificate (seconds since 1970): until then it is kept out.
    denied: BTreeMap<String, u64>,
}

/// A join token.
///
/// Its secret is kept, and not only a hash of it: the file that a process reads must be the same after a restart, and
/// whoever can read this store has the CA's key anyway.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    right: Right,
    id: String,
    secret: String,
    /// The configuration names it, and takes it back when it names it no more.
    #[serde(default)]
    configured: bool,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("right", &self.right).field("id", &self.id).finish_non_exhaustive()
    }
}

/// An instance that has an identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Member {
    pub(crate) right: Right,
    /// End of its newest certificate, seconds since 1970.
    pub(crate) not_after: u64,
}

/// Why somebody stays out. The label is a metric's, the text is for the log and the caller: it tells no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("this is no join token: `servery1.<role>.<root>.<id>.<secret>` is expected")]
    Malformed,
    #[error("this token is of another cluster: its root is not ours")]
    Foreign,
    #[error("this token is unknown or was rotated; get the current one with `servery certs token`")]
    Unknown,
    #[error("this token's secret is wrong")]
    Wrong,
    #[error("this instance is denied")]
    Denied,
}

impl Refusal {
    /// The metric label `result`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed_token",
            Self::Foreign => "foreign_token",
            Self::Unknown => "unknown_token",
            Self::Wrong => "wrong_secret",
            Self::Denied => "denied",
        }
    }
}

/// More instances than this at once are a runaway, not a cluster.
pub(crate) const MAX_MEMBERS: usize = 10_000;
/// One for each role and app.
pub(crate) const MAX_TOKENS: usize = 1_000;

impl Records {
    /// The token text of `right`'s slot, made if there is none; `rotate` replaces it. True if the records changed.
    pub(crate) fn token(&mut self, right: &Right, rotate: bool, root: &RootHash) -> (String, bool) {
        let slot = right.slot();
        let current = self.tokens.get(&slot).filter(|token| !rotate && token.right == *right);
        let changed = current.is_none();
        let token = current.cloned().unwrap_or_else(|| {
            // other prefixes, same secret: the token's file need not be replaced when only the right has changed
            let kept = self.tokens.get(&slot).filter(|_| !rotate);
            let fresh = || (hex::encode(rand::random::<[u8; 8]>()), hex::encode(rand::random::<[u8; 32]>()));
            let (id, secret) = kept.map_or_else(fresh, |token| (token.id.clone(), token.secret.clone()));
            let configured = self.tokens.get(&slot).is_some_and(|token| token.configured);
            Token { right: right.clone(), id, secret, configured }
        });
        let (id, secret) = (token.id.clone(), token.secret.clone());
        self.tokens.insert(slot, token);
        (JoinToken { role: right.role(), root: *root, id, secret }.expose(), changed)
    }

    /// Of the tokens that the configuration has named at some time, keeps those that it names now. True if that
    /// changed anything.
    pub(crate) fn configured(&mut self, slots: &BTreeSet<String>) -> bool {
        let before = self.tokens.len();
        self.tokens.retain(|slot, token| !token.configured || slots.contains(slot));
        let mut changed = before != self.tokens.len();
        for (_, token) in self.tokens.iter_mut().filter(|(slot, _)| slots.contains(*slot)) {
            changed |= !token.configured;
            token.configured = true;
        }
        changed
    }

    /// What the token of a slot gives.
    pub(crate) fn right_of(&self, slot: &str) -> Option<&Right> {
        self.tokens.get(slot).map(|token| &token.right)
    }

    /// How many tokens there are.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// What the bearer of `text` may become.
    ///
    /// # Errors
    /// The token is not one of ours, or not any more.
    pub(crate) fn redeem(&self, text: &str, root: &RootHash) -> Result<Right, Refusal> {
        let JoinToken { role, root: named, id, secret } = JoinToken::parse(text).map_err(|_| Refusal::Malformed)?;
        if named != *root {
            return Err(Refusal::Foreign);
        }
        let token = self.tokens.values().find(|token| token.id == id).ok_or(Refusal::Unknown)?;
        let same: bool = token.secret.as_bytes().ct_eq(secret.as_bytes()).into();
        // the role in the text is for people: what counts is the right that belongs to the secret
        if !same || token.right.role() != role {
            return Err(Refusal::Wrong);
        }
        Ok(token.right.clone())
    }

    /// A name that no instance has: what was asked for, made plain, with a random end.
    pub(crate) fn fresh_name(&self, wanted: &str, suffix: impl Fn() -> [u8; 3]) -> String {
        let plain: String = wanted
            .chars()
            .map(|letter| letter.to_ascii_lowercase())
            .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
            .take(40)
            .collect();
        let plain = plain.trim_matches('-');
        let plain = if plain.is_empty() { "instance" } else { plain };
        loop {
            let name = format!("{plain}-{}", hex::encode(suffix()));
            if !self.members.contains_key(&name) && !self.denied.contains_key(&name) {
                return name;
            }
        }
    }

    /// Remembers who has an identity and until when.
    pub(crate) fn remember(&mut self, instance: &str, right: Right, not_after: SystemTime) {
        self.members.insert(instance.to_owned(), Member { right, not_after: seconds(not_after) });
    }

    pub(crate) fn members(&self) -> &BTreeMap<String, Member> {
        &self.members
    }

    /// Keeps an instance out, for as long as a certificate of it may live. False if it was denied already.
    pub(crate) fn deny(&mut self, instance: &str, now: SystemTime, lifetime: Duration) -> bool {
        let until = self.members.remove(instance).map_or_else(|| seconds(now + lifetime), |member| member.not_after);
        self.denied.insert(instance.to_owned(), until).is_none()
    }

    pub(crate) fn is_denied(&self, instance: &str) -> bool {
        self.denied.contains_key(instance)
    }

    pub(crate) fn denied(&self) -> impl Iterator<Item = &str> {
        self.denied.keys().map(String::as_str)
    }

    /// Forgets what has expired; true if that was anything.
    pub(crate) fn prune(&mut self, now: SystemTime) -> bool {
        let now = seconds(now);
        let before = self.members.len() + self.denied.len();
        self.members.retain(|_, member| member.not_after > now);
        self.denied.retain(|_, until| *until > now);
        before != self.members.len() + self.denied.len()
    }

    /// For a person: everything but the secrets.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let tokens = self.tokens.values().map(|token| serde_json::json!({"id": token.id, "right": token.right}));
        serde_json::json!({
            "tokens": tokens.collect::<Vec<_>>(),
            "instances": self.members,
            "denied": self.denied,
        })
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOT: [u8; 32] = [7; 32];

    fn right(app: &str) -> Right {
        Right::AppServer { app: app.to_owned(), prefixes: vec!["/".to_owned()] }
    }

    #[test]
    fn a_token_gives_its_own_right_and_stays_until_it_is_rotated() {
        let mut records = Records::default();
        let (shop, _) = records.token(&right("shop"), false, &ROOT);
        let (balancer, _) = records.token(&Right::Balancer, false, &ROOT);
        assert_eq!(records.redeem(&shop, &ROOT), Ok(right("shop")));
        assert_eq!(records.redeem(&format!("{balancer}\n"), &ROOT), Ok(Right::Balancer));
        assert_eq!(records.token(&right("shop"), false, &ROOT), (shop.clone(), false));
        let (rotated, changed) = records.token(&right("shop"), true, &ROOT);
        assert!(changed && rotated != shop);
        assert_eq!(records.redeem(&shop, &ROOT), Err(Refusal::Unknown));
        assert_eq!(records.redeem(&rotated, &ROOT), Ok(right("shop")));
    }

    #[test]
    fn new_prefixes_keep_the_token_and_change_its_right() {
        let mut records = Records::default();
        let (before, _) = records.token(&right("shop"), false, &ROOT);
        let wider = Right::AppServer { app: "shop".to_owned(), prefixes: vec!["/a".to_owned(), "/b".to_owned()] };
        assert_eq!(records.token(&wider, false, &ROOT), (before.clone(), true));
        assert_eq!(records.redeem(&before, &ROOT), Ok(wider));
    }

    #[test]
    fn a_token_goes_with_its_configuration_and_one_made_by_hand_stays() {
        let mut records = Records::default();
        let (shop, _) = records.token(&right("shop"), false, &ROOT);
        let (blog, _) = records.token(&right("blog"), false, &ROOT);
        let named = BTreeSet::from([right("shop").slot()]);
        assert!(records.configured(&named) && !records.configured(&named));
        let (rotated, _) = records.token(&right("shop"), true, &ROOT);
        assert_eq!(records.redeem(&rotated, &ROOT), Ok(right("shop")));
        assert!(records.configured(&BTreeSet::new()));
        for gone in [shop, rotated] {
            assert_eq!(records.redeem(&gone, &ROOT), Err(Refusal::Unknown));
        }
        assert_eq!(records.redeem(&blog, &ROOT), Ok(right("blog")));
    }

    #[test]
    fn a_token_that_was_tampered_with_is_refused() {
        let mut records = Records::default();
        let (token, _) = records.token(&right("shop"), false, &ROOT);
        records.token(&Right::Balancer, false, &ROOT);
        let last = if token.ends_with('0') { "1" } else { "0" };
        let wrong = format!("{}{last}", &token[..token.len() - 1]);
        assert_eq!(records.redeem(&wrong, &ROOT), Err(Refusal::Wrong));
        assert_eq!(records.redeem(&token[..token.len() - 1], &ROOT), Err(Refusal::Wrong));
        assert_eq!(records.redeem(&token.replace("app_server", "balancer"), &ROOT), Err(Refusal::Wrong));
        assert_eq!(records.redeem(&token, &[8; 32]), Err(Refusal::Foreign));
        assert_eq!(records.redeem("", &ROOT), Err(Refusal::Malformed));
    }

    #[test]
    fn the_denied_stay_out_until_their_certificates_are_over() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let day = Duration::from_secs(86_400);
        let mut records = Records::default();
        records.remember("node-1", right("shop"), now + day);
        assert!(records.deny("node-1", now, 7 * day));
        assert!(records.is_denied("node-1") && !records.deny("node-1", now, 7 * day));
        records.prune(now + day - Duration::from_secs(1));
        assert!(records.is_denied("node-1"));
        assert!(records.prune(now + 8 * day));
        assert!(!records.is_denied("node-1"));
    }

    #[test]
    fn records_survive_their_file_and_debug_tells_no_secret() {
        let mut records = Records::default();
        let (token, _) = records.token(&right("shop"), false, &ROOT);
        let text = serde_json::to_string(&records).unwrap();
        let read: Records = serde_json::from_str(&text).unwrap();
        assert_eq!(read.redeem(&token, &ROOT), Ok(right("shop")));
        let secret = token.rsplit('.').next().unwrap();
        assert!(!format!("{records:?}").contains(secret) && !records.describe().to_string().contains(secret));
    }

    proptest! {
        #[test]
        fn any_text_is_refused_and_never_panics(text in ".{0,300}") {
            prop_assert!(Records::default().redeem(&text, &ROOT).is_err());
        }

        #[test]
        fn a_name_is_plain_and_new(wanted in ".{0,80}") {
            let records = Records::default();
            let name = records.fresh_name(&wanted, rand::random);
            prop_assert!(name.len() <= 47 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            prop_assert!(!name.starts_with('-'));
        }
    }
}
