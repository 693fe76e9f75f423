//! What is served out of what there is. In: the operator's own certificates, and those of the cert-sidecar, each
//! renewed by itself. Out: one set. For a name that both cover the operator's own is used.

use crate::{Shared, tls};
use std::sync::{Arc, PoisonError};

#[derive(Debug, Default)]
pub(crate) struct Offers {
    /// In the configuration's order; the first is what clients get that name no host.
    pub(crate) own: Vec<tls::Entry>,
    pub(crate) pushed: Vec<tls::Entry>,
}

impl Offers {
    /// Own ones first: of two entries for one name a set takes the earlier.
    fn set(&self) -> Option<tls::CertificateSet> {
        let entries: Vec<_> = self.own.iter().chain(&self.pushed).cloned().collect();
        (!entries.is_empty()).then(|| tls::CertificateSet::new(entries))
    }
}

impl Shared {
    /// Changes what is offered, and serves with the result from the next handshake on.
    pub(crate) fn offer(&self, change: impl FnOnce(&mut Offers)) {
        // each change is one assignment; the set is put in place under the lock, or an older one might come last
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut offers);
        let Some(set) = offers.set().or_else(self_signed) else { return };
        for entry in set.entries() {
            tracing::info!(name = entry.name, hosts = entry.hosts.join(","), not_after = %entry.not_after, "serving with certificate");
        }
        self.certificates.store(Arc::new(set));
    }
}

/// The last certificate is gone: shake hands with one that nobody trusts rather than not at all.
fn self_signed() -> Option<tls::CertificateSet> {
    tls::CertificateSet::self_signed()
        .inspect_err(|error| tracing::error!(%error, "serving on with certificates that are no longer offered"))
        .ok()
}
