//! When a certificate is renewed: its life in, a moment out. Pure.

use std::time::{Duration, SystemTime};

/// At two thirds of its life, so that a third is left for whatever goes wrong.
pub(crate) fn renew_at(not_after: SystemTime, lifetime: Duration) -> SystemTime {
    not_after - lifetime / 3
}

/// The own identity of the sidecar is renewed like everybody's: at a seventh of its life.
pub(crate) fn renew_identity_at(not_after: SystemTime, lifetime: Duration) -> SystemTime {
    not_after - lifetime * 6 / 7
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn renewal_is_inside_the_life(start in 0_u64..4_000_000_000, life in 1_u64..400_000_000) {
            let start = SystemTime::UNIX_EPOCH + Duration::from_secs(start);
            let life = Duration::from_secs(life);
            for moment in [renew_at(start + life, life), renew_identity_at(start + life, life)] {
                prop_assert!(start < moment && moment < start + life);
            }
        }
    }
}
