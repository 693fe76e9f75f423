//! The public certificates at hand. In: the sidecar's manifest, and the bodies behind its hashes. Out: for every entry
//! "accepted" or why not, and the set to serve with. A refused entry leaves what was there under its name. Pure.

use crate::tls;
use aws_lc_rs::digest;
use proto::certificates::{Certificate, Entry, EntryResult, Manifest};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::collections::{HashMap, HashSet};
use time::OffsetDateTime;

const ENTRIES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 255;
const HOSTS_MAX: usize = 256;
const CHAIN_MAX: usize = 16;
/// A refusal's reason goes over the wire and into logs.
const REASON_CHARS_MAX: usize = 512;

/// What was fetched, by hash: the body, or why there is none.
pub(crate) type Bodies = HashMap<Vec<u8>, Result<Certificate, String>>;

/// One certificate in use. Not `Debug`: it holds a key.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) wanted: Entry,
    pub(crate) body: Certificate,
    pub(crate) entry: tls::Entry,
}

/// In the manifest's order; the first is the default.
#[derive(Default)]
pub(crate) struct Shelf {
    held: Vec<Held>,
}

impl Shelf {
    pub(crate) fn of(held: &[Held]) -> Self {
        Self { held: held.to_vec() }
    }

    pub(crate) fn held(&self) -> &[Held] {
        &self.held
    }

    /// To serve with.
    pub(crate) fn entries(&self) -> Vec<tls::Entry> {
        self.held.iter().map(|held| held.entry.clone()).collect()
    }

    /// The set to serve with; `None` while there is not one certificate.
    #[cfg(test)]
    pub(crate) fn set(&self) -> Option<tls::CertificateSet> {
        let entries = self.entries();
        (!entries.is_empty()).then(|| tls::CertificateSet::new(entries))
    }

    /// The hashes of the bodies that `manifest` wants and that are not here, each once.
    pub(crate) fn missing(&self, manifest: &Manifest) -> Vec<Vec<u8>> {
        let here: HashSet<&[u8]> = self.held.iter().map(|held| held.wanted.sha256.as_slice()).collect();
        let mut asked = HashSet::new();
        let wanted = manifest.entries.iter().take(ENTRIES_MAX).map(|entry| &entry.sha256);
        wanted.filter(|hash| !here.contains(hash.as_slice()) && asked.insert(*hash)).cloned().collect()
    }

    /// Brings the shelf in line with the manifest. What it does not list is gone; an entry that cannot be taken keeps
    /// its last good certificate. The results are the manifest's entries, in its order.
    pub(crate) fn settle(&mut self, manifest: &Manifest, bodies: &Bodies, now: OffsetDateTime) -> Vec<EntryResult> {
        let mut names = HashSet::new();
        let mut settled: Vec<Held> = Vec::with_capacity(manifest.entries.len().min(ENTRIES_MAX));
        let mut results = Vec::with_capacity(manifest.entries.len());
        for (at, wanted) in manifest.entries.iter().enumerate() {
            let old = self.held.iter().find(|held| held.wanted.name == wanted.name);
            let taken = if at >= ENTRIES_MAX {
                Err(format!("it is one of more than {ENTRIES_MAX} entries"))
            } else if !names.insert(wanted.name.as_str()) {
                Err("an earlier entry has the same name".to_owned())
            } else {
                match old.filter(|old| old.wanted == *wanted) {
                    Some(old) => Ok(old.clone()),
                    None => self.take(wanted, bodies, now),
                }
            };
            let reason = match taken {
                Ok(held) => {
                    settled.push(held);
                    String::new()
                }
                Err(reason) => {
                    // A second entry of the same name must not bring the first one's predecessor back.
                    let named = |held: &Held| held.wanted.name == wanted.name;
                    if let Some(old) = old.filter(|_| !settled.iter().any(named)) {
                        settled.push(old.clone());
                    }
                    reason.chars().take(REASON_CHARS_MAX).collect()
                }
            };
            let (name, sha256) = (wanted.name.clone(), wanted.sha256.clone());
            results.push(EntryResult { name, sha256, accepted: reason.is_empty(), reason });
        }
        self.held = settled;
        results
    }

    /// A certificate that is good at `now`, or why it is not.
    fn take(&self, wanted: &Entry, bodies: &Bodies, now: OffsetDateTime) -> Result<Held, String> {
        if wanted.name.is_empty() || wanted.name.len() > NAME_BYTES_MAX {
            return Err(format!("its name has {} bytes", wanted.name.len()));
        }
        if wanted.hosts.is_empty() || wanted.hosts.len() > HOSTS_MAX {
            return Err(format!("it is for {} hosts", wanted.hosts.len()));
        }
        let here = self.held.iter().find(|held| held.wanted.sha256 == wanted.sha256).map(|held| &held.body);
        let body = match (here, bodies.get(&wanted.sha256)) {
            (Some(body), _) | (None, Some(Ok(body))) => body,
            (None, Some(Err(reason))) => return Err(reason.clone()),
            (None, None) => return Err("its body was not fetched".to_owned()),
        };
        if sha256_of(body) != wanted.sha256 {
            return Err("the body does not have the hash that the manifest names".to_owned());
        }
        if body.chain.len() > CHAIN_MAX {
            return Err(format!("its chain has {} certificates", body.chain.len()));
        }
        let chain = body.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(body.key.clone()));
        let entry = tls::certified_key(&wanted.name, chain, key, &wanted.hosts, now).map_err(|e| e.to_string())?;
        Ok(Held { wanted: wanted.clone(), body: body.clone(), entry })
    }
}

/// Of the chain and the key, one behind the other.
pub(crate) fn sha256_of(body: &Certificate) -> Vec<u8> {
    let mut hash = digest::Context::new(&digest::SHA256);
    for part in body.chain.iter().chain([&body.key]) {
        hash.update(part);
    }
    hash.finish().as_ref().to_vec()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use time::Duration;

    pub(crate) const DAY: Duration = Duration::days(1);

    /// A certificate for `hosts` that is good until `not_after`, and the entry that offers it.
    pub(crate) fn offer(name: &str, hosts: &[&str], not_after: OffsetDateTime) -> (Entry, Certificate) {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts.clone()).unwrap();
        params.not_before = not_after - DAY * 90;
        params.not_after = not_after;
        let chain = vec![params.self_signed(&key).unwrap().der().to_vec()];
        let body = Certificate { chain, key: key.serialize_der() };
        let entry = Entry { name: name.to_owned(), hosts, sha256: sha256_of(&body), source: "internal".to_owned() };
        (entry, body)
    }

    pub(crate) fn bodies(offers: &[&(Entry, Certificate)]) -> Bodies {
        offers.iter().map(|(entry, body)| (entry.sha256.clone(), Ok(body.clone()))).collect()
    }

    fn manifest(entries: &[&Entry]) -> Manifest {
        Manifest { version: 1, entries: entries.iter().map(|entry| (*entry).clone()).collect(), denied: Vec::new() }
    }

    fn names(shelf: &Shelf) -> Vec<(&str, &[u8])> {
        shelf.held.iter().map(|held| (held.entry.name.as_str(), held.wanted.sha256.as_slice())).collect()
    }

    #[test]
    fn good_entries_are_accepted_and_those_not_listed_are_gone() {
        let now = OffsetDateTime::now_utc();
        let (a, b) =
            (offer("a", &["a.example.com"], now + DAY), offer("b", &["b.example.com", "127.0.0.1"], now + DAY));
        let mut shelf = Shelf::default();
        assert!(shelf.set().is_none());
        let both = manifest(&[&a.0, &b.0]);
        assert_eq!(shelf.missing(&both), [a.0.sha256.clone(), b.0.sha256.clone()]);
        let results = shelf.settle(&both, &bodies(&[&a, &b]), now);
        assert!(results.iter().all(|result| result.accepted && result.reason.is_empty()), "{results:?}");
        assert_eq!(shelf.set().unwrap().entries().len(), 2);
        assert_eq!(shelf.missing(&both), [[0; 0]; 0]);

        // Nothing is fetched again for an entry that stays.
        let results = shelf.settle(&manifest(&[&b.0]), &Bodies::new(), now);
        assert!(results[0].accepted);
        assert_eq!(names(&shelf), [("b", b.0.sha256.as_slice())]);
    }

    #[test]
    fn a_refused_entry_leaves_the_last_good_one() {
        let now = OffsetDateTime::now_utc();
        let good = offer("a", &["a.example.com"], now + DAY);
        let expired = offer("a", &["a.example.com"], now - DAY);
        let mut other_hosts = offer("a", &["a.example.com"], now + DAY);
        other_hosts.0.hosts = vec!["b.example.com".to_owned()];
        let mut wrong_key = offer("a", &["a.example.com"], now + DAY);
        wrong_key.1.key = KeyPair::generate().unwrap().serialize_der();
        wrong_key.0.sha256 = sha256_of(&wrong_key.1);
        let mut wrong_hash = offer("a", &["a.example.com"], now + DAY);
        wrong_hash.1.chain.push(vec![1, 2, 3]);
        let mut no_chain = offer("a", &["a.example.com"], now + DAY);
        no_chain.1.chain.clear();
        no_chain.0.sha256 = sha256_of(&no_chain.1);

        let mut shelf = Shelf::default();
        assert!(shelf.settle(&manifest(&[&good.0]), &bodies(&[&good]), now)[0].accepted);
        for (bad, word) in [
            (&expired, "expired"),
            (&other_hosts, "cover"),
            (&wrong_key, "key"),
            (&wrong_hash, "hash"),
            (&no_chain, "chain"),
        ] {
            let results = shelf.settle(&manifest(&[&bad.0]), &bodies(&[bad]), now);
            assert!(!results[0].accepted && results[0].reason.contains(word), "{results:?}");
            assert_eq!(names(&shelf), [("a", good.0.sha256.as_slice())]);
        }
        let gone = Bodies::from([(expired.0.sha256.clone(), Err("it is no longer offered".to_owned()))]);
        assert_eq!(shelf.settle(&manifest(&[&expired.0]), &gone, now)[0].reason, "it is no longer offered");
        assert_eq!(names(&shelf), [("a", good.0.sha256.as_slice())]);
    }

    #[test]
    fn the_second_entry_of_a_name_is_refused_and_changes_nothing() {
        let now = OffsetDateTime::now_utc();
        let (first, second) = (offer("a", &["a.example.com"], now + DAY), offer("a", &["b.example.com"], now + DAY));
        let mut shelf = Shelf::default();
        let results = shelf.settle(&manifest(&[&first.0, &second.0]), &bodies(&[&first, &second]), now);
        assert_eq!(results.iter().map(|result| result.accepted).collect::<Vec<_>>(), [true, false]);
        assert_eq!(names(&shelf), [("a", first.0.sha256.as_slice())]);
    }

    #[test]
    fn other_hosts_for_the_same_certificate_need_no_new_body() {
        let now = OffsetDateTime::now_utc();
        let (mut entry, body) = offer("a", &["a.example.com", "b.example.com"], now + DAY);
        let mut shelf = Shelf::default();
        shelf.settle(&manifest(&[&entry]), &bodies(&[&(entry.clone(), body)]), now);
        entry.hosts.pop();
        assert!(shelf.missing(&manifest(&[&entry])).is_empty());
        assert!(shelf.settle(&manifest(&[&entry]), &Bodies::new(), now)[0].accepted);
        assert_eq!(shelf.held[0].entry.hosts, ["a.example.com"]);
    }
}
