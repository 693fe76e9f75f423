//! The one cryptography provider of the tests, chosen explicitly: nothing depends on a process-wide default.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// aws-lc-rs, as the product uses.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
