//! A fine share of something, as configuration says it.

use super::{
    document::Toml,
    value::{Mismatch, Value},
};

/// From none to all, in parts of 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction(u64);

impl Fraction {
    pub const ALL: Self = Self(1 << 32);

    /// Whether a number that was drawn evenly is within it.
    pub fn has(self, drawn: u32) -> bool {
        u64::from(drawn) < self.0
    }
}

impl Value for Fraction {
    const EXPECTED: &'static str = "a share from 0 to 1, such as 0.1";

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 2^32")]
    fn from_text(text: &str) -> Option<Self> {
        let share: f64 = text.parse().ok().filter(|share| (0.0..=1.0).contains(share))?;
        // the smallest share is not nothing
        Some(Self((share * 2_f64.powi(32)).ceil() as u64))
    }

    fn from_toml(value: &Toml) -> Result<Self, Mismatch> {
        match value {
            Toml::Text(text) | Toml::Other(text) => Self::from_text(text),
            Toml::Integer(number) => Self::from_text(&number.to_string()),
            _ => None,
        }
        .ok_or_else(|| Mismatch::toml::<Self>(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_its_part_of_what_is_drawn() {
        const STEP: u32 = u32::MAX / 1000;
        let share = |text| Fraction::from_text(text).unwrap();
        let has = |share: Fraction| (0..1000).filter(|part| share.has(part * STEP + STEP / 2)).count();
        assert_eq!((has(share("0")), has(share("0.25")), has(share("1"))), (0, 250, 1000));
        assert!(share("1").has(u32::MAX) && !share("0").has(0));
        assert!(share("1e-12").has(0) && !share("1e-12").has(1));
        assert_eq!(share("1.0"), Fraction::ALL);
    }

    #[test]
    fn a_share_is_a_number_from_none_to_all() {
        assert_eq!(Fraction::from_toml(&Toml::Other("0.5".to_owned())), Ok(Fraction(1 << 31)));
        assert_eq!(Fraction::from_toml(&Toml::Integer(1)), Ok(Fraction::ALL));
        for wrong in ["-0.1", "1.1", "10%", "nan", "inf", ""] {
            assert_eq!(Fraction::from_text(wrong), None, "{wrong}");
        }
        assert!(Fraction::from_toml(&Toml::Integer(2)).is_err());
        assert!(Fraction::from_toml(&Toml::Boolean(true)).is_err());
    }
}
