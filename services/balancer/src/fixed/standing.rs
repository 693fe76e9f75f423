//! What checks say of one address. In: how each one ended. Out: whether the address may be used. Pure.

/// Failures in a row that take an address out.
const FAILURES: u32 = 2;
/// Answers in a row that take it in again.
const ANSWERS: u32 = 2;

/// Of one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nobody has asked it yet.
    #[default]
    Unknown,
    Well {
        /// In a row.
        failures: u32,
    },
    Ill {
        /// In a row.
        answers: u32,
    },
}

impl Standing {
    /// Nobody asks it.
    pub(super) const UNCHECKED: Self = Self::Well { failures: 0 };

    /// A check has ended. The first one decides by itself: until then the address takes nothing.
    pub(super) fn observe(&mut self, answered: bool) {
        *self = match (*self, answered) {
            (Self::Unknown | Self::Well { .. }, true) => Self::Well { failures: 0 },
            (Self::Unknown | Self::Ill { .. }, false) => Self::Ill { answers: 0 },
            (Self::Well { failures }, false) if failures + 1 < FAILURES => Self::Well { failures: failures + 1 },
            (Self::Well { .. }, false) => Self::Ill { answers: 0 },
            (Self::Ill { answers }, true) if answers + 1 < ANSWERS => Self::Ill { answers: answers + 1 },
            (Self::Ill { .. }, true) => Self::Well { failures: 0 },
        };
    }

    pub(super) fn is_well(self) -> bool {
        matches!(self, Self::Well { .. })
    }
}

/// Whether every one of them is used, well or not: when all fail, it may as well be the check that is wrong, and with nothing
/// in use nobody is served for certain.
pub(super) fn is_desperate(standings: impl IntoIterator<Item = Standing>) -> bool {
    let mut any = false;
    standings.into_iter().all(|standing| {
        any = true;
        matches!(standing, Standing::Ill { .. })
    }) && any
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(checks: &[bool]) -> Standing {
        let mut standing = Standing::default();
        checks.iter().for_each(|answered| standing.observe(*answered));
        standing
    }

    #[test]
    fn the_first_check_decides_and_then_two_in_a_row() {
        for (checks, well) in [
            (&[][..], false),
            (&[true], true),
            (&[false], false),
            (&[true, false], true),
            (&[true, false, true, false], true),
            (&[true, false, false], false),
            (&[true, false, false, true], false),
            (&[true, false, false, true, false, true], false),
            (&[true, false, false, true, true], true),
            (&[false, true, true, false], true),
        ] {
            assert_eq!(after(checks).is_well(), well, "{checks:?}");
        }
    }

    #[test]
    fn when_all_are_ill_all_are_used_but_not_before_all_are_known() {
        let (unknown, well, ill) = (after(&[]), after(&[true]), after(&[false]));
        for (standings, desperate) in [
            (&[][..], false),
            (&[ill, ill], true),
            (&[ill, well], false),
            (&[ill, unknown], false),
            (&[unknown], false),
            (&[well], false),
        ] {
            assert_eq!(is_desperate(standings.iter().copied()), desperate, "{standings:?}");
        }
    }
}
