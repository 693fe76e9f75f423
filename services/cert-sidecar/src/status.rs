//! What the cert-sidecar shows: `/status`, `servery certs list`, the series that end with what they describe.

use crate::{push::Watchers, trust::Trust};
use serde_json::{Value, json};
use std::{fmt::Write as _, time::SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Name, hosts, end, issuer and source of every public certificate.
pub(crate) fn certificates(trust: &Trust) -> Value {
    let each = trust.certificates().into_iter().map(|(name, hosts, not_after)| {
        json!({
            "name": name,
            "names": hosts,
            "not_after": OffsetDateTime::from(not_after).format(&Rfc3339).unwrap_or_default(),
            "issuer": "internal",
            "source": "internal",
        })
    });
    each.collect()
}

/// The parts of `/status` that are this role's own.
pub(crate) fn streams(watchers: &Watchers) -> Value {
    let each = watchers.each().into_iter();
    each.map(|(peer, version)| json!({"peer": peer, "state": "watching", "acknowledged_version": version})).collect()
}

/// `certificate_not_after_seconds{name}`.
pub(crate) fn render(trust: &Trust, out: &mut String) {
    out.push_str("# TYPE servery_cert_sidecar_certificate_not_after_seconds gauge\n");
    for (name, _, not_after) in trust.certificates() {
        let seconds = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        // writing to a String cannot fail; the configuration allows no character in a name that needs an escape
        let _ = writeln!(out, "servery_cert_sidecar_certificate_not_after_seconds{{name=\"{name}\"}} {seconds}");
    }
}
