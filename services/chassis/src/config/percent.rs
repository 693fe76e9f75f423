//! A share of something, as configuration says it.

use super::Value;

/// A share, 1 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub u8);

impl Percent {
    /// Of these many, rounded down, and at least one.
    pub fn of(self, all: u32) -> u32 {
        u32::try_from(u64::from(all) * u64::from(self.0) / 100).unwrap_or(u32::MAX).max(1)
    }
}

impl Value for Percent {
    const EXPECTED: &'static str = "a share such as \"25%\"";

    fn from_text(text: &str) -> Option<Self> {
        let percent = text.strip_suffix('%')?.parse().ok()?;
        (1..=100).contains(&percent).then_some(Self(percent))
    }
}

#[cfg(test)]
mod tests {
    use super::{Percent, Value as _};

    #[test]
    fn a_share_is_rounded_down_but_never_to_nothing() {
        assert_eq!(Percent(25).of(8), 2);
        assert_eq!(Percent(25).of(7), 1);
        assert_eq!(Percent(1).of(3), 1);
        assert_eq!(Percent(100).of(u32::MAX), u32::MAX);
    }

    #[test]
    fn a_share_has_its_sign_and_is_no_more_than_all() {
        assert_eq!(Percent::from_text("25%"), Some(Percent(25)));
        for wrong in ["25", "0%", "101%", "-1%", "1.5%", "%", ""] {
            assert_eq!(Percent::from_text(wrong), None, "{wrong}");
        }
    }
}
