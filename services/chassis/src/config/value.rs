//! What a configuration value can be. In: text of a variable or flag, or a value of the file. Out: the typed value,
//! or what was expected. A unit is part of the text: `10` is no duration and no size.

use super::{
    document::{Toml, quoted},
    {HostPort, Network},
};
use crate::listen::ListenAddr;
use bytesize::ByteSize;
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// The longest duration that is believed: longer ones overflow clocks and are meant as "never" by nobody.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A type that configuration can hold. A type whose values are strings in the file needs [`Self::EXPECTED`] and
/// [`Self::from_text`] only.
pub trait Value: Sized {
    /// Completes "expected ...", with an example.
    const EXPECTED: &'static str;

    /// From a variable, a flag or a string of the file.
    fn from_text(text: &str) -> Option<Self>;

    /// From the file.
    fn from_toml(value: &Toml) -> Result<Self, Mismatch> {
        match value {
            Toml::Text(text) => Self::from_text(text),
            _ => None,
        }
        .ok_or_else(|| Mismatch::toml::<Self>(value))
    }

    /// As [`Self::EXPECTED`]; lists name their elements.
    fn expected() -> String {
        Self::EXPECTED.to_owned()
    }
}

/// Another value than the key takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub expected: String,
    pub found: String,
    /// Where it is not the line of the key: an element of a list.
    pub line: Option<usize>,
}

impl Mismatch {
    pub(super) fn text<T: Value>(text: &str) -> Self {
        Self { expected: T::expected(), found: quoted(text), line: None }
    }

    /// What [`Value::from_toml`] says of another value of the file.
    pub fn toml<T: Value>(value: &Toml) -> Self {
        Self { expected: T::expected(), found: value.to_string(), line: None }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, found {}", self.expected, self.found)
    }
}

impl std::error::Error for Mismatch {}

// === impl Value ===

impl Value for String {
    const EXPECTED: &'static str = "text in quotes";

    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Value for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_toml(value: &Toml) -> Result<Self, Mismatch> {
        match value {
            Toml::Boolean(boolean) => Ok(*boolean),
            _ => Err(Mismatch::toml::<Self>(value)),
        }
    }
}

macro_rules! whole_number {
    ($type:ty, $expected:literal) => {
        impl Value for $type {
            const EXPECTED: &'static str = $expected;

            fn from_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }

            fn from_toml(value: &Toml) -> Result<Self, Mismatch> {
                match value {
                    Toml::Integer(number) => Self::try_from(*number).ok(),
                    _ => None,
                }
                .ok_or_else(|| Mismatch::toml::<Self>(value))
            }
        }
    };
}

whole_number!(u16, "a whole number up to 65535");
whole_number!(u32, "a whole number up to 4294967295");
whole_number!(u64, "a whole number");
whole_number!(usize, "a whole number");

impl Value for Duration {
    const EXPECTED: &'static str = "a duration with its unit, such as \"250ms\", \"10s\", \"5m\" or \"7d\"";

    fn from_text(text: &str) -> Option<Self> {
        // humantime takes a bare "0".
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        humantime::parse_duration(text).ok().filter(|duration| *duration <= LONGEST)
    }
}

impl Value for ByteSize {
    const EXPECTED: &'static str = "a size with its unit, such as \"64KiB\", \"10MB\" or \"1GiB\"";

    fn from_text(text: &str) -> Option<Self> {
        // bytesize takes a bare number, and its "0.5" of nothing.
        if !text.ends_with(|last: char| last.is_ascii_alphabetic()) {
            return None;
        }
        text.parse().ok()
    }
}

impl Value for PathBuf {
    const EXPECTED: &'static str = "a path in quotes";

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::from(text))
    }
}

impl Value for ListenAddr {
    const EXPECTED: &'static str = "\":8080\" (every address), \"127.0.0.1:8080\", \"[::1]:8080\" or \"off\"";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_toml(value: &Toml) -> Result<Self, Mismatch> {
        match value {
            Toml::Text(text) => Self::from_text(text),
            Toml::Integer(port) => u16::try_from(*port).ok().map(Self::All),
            _ => None,
        }
        .ok_or_else(|| Mismatch::toml::<Self>(value))
    }
}

impl Value for HostPort {
    const EXPECTED: &'static str = "\"name:7400\", \"10.0.0.5:7400\", \"[fd00::5]:7400\", or a name with SRV records";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for Network {
    const EXPECTED: &'static str = "a network such as \"10.0.0.0/8\" or \"fd00::/8\", or an address";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for SocketAddr {
    const EXPECTED: &'static str = "an address and a port, such as \"10.0.0.2:53\" or \"[fd00::2]:53\"";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for IpAddr {
    const EXPECTED: &'static str = "an address such as \"10.0.0.2\" or \"fd00::2\"";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// A list in the file, or a lone value as a list of one; comma-separated in variables and flags.
impl<T: Value> Value for Vec<T> {
    const EXPECTED: &'static str = "a list";

    fn from_text(text: &str) -> Option<Self> {
        if text.trim().is_empty() {
            return Some(Self::new());
        }
        text.split(',').map(|item| T::from_text(item.trim())).collect()
    }

    fn from_toml(value: &Toml) -> Result<Self, Mismatch> {
        let Toml::List(items) = value else {
            return T::from_toml(value).map(|item| vec![item]).map_err(|_| Mismatch::toml::<Self>(value));
        };
        items
            .iter()
            .map(|item| {
                T::from_toml(&item.value)
                    .map_err(|mismatch| Mismatch { line: mismatch.line.or(Some(item.line)), ..mismatch })
            })
            .collect()
    }

    fn expected() -> String {
        format!("a list, each of it {}", T::expected())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_need_a_unit() {
        for (text, wanted) in [
            ("250ms", Some(Duration::from_millis(250))),
            ("10s", Some(Duration::from_secs(10))),
            ("5m", Some(Duration::from_secs(300))),
            ("7d", Some(Duration::from_secs(7 * 86_400))),
            ("1h 30m", Some(Duration::from_secs(5400))),
            ("0s", Some(Duration::ZERO)),
            ("10", None),
            ("0", None),
            ("", None),
            ("-1s", None),
            ("11y", None),
            ("soon", None),
        ] {
            assert_eq!(Duration::from_text(text), wanted, "{text}");
        }
        assert!(Duration::from_toml(&Toml::Integer(10)).is_err());
    }

    #[test]
    fn sizes_need_a_unit() {
        for (text, wanted) in [
            ("1GiB", Some(1 << 30)),
            ("10MB", Some(10_000_000)),
            ("64 KiB", Some(65_536)),
            ("512B", Some(512)),
            ("1024", None),
            ("", None),
            ("GiB", None),
            ("10 parsecs", None),
        ] {
            assert_eq!(ByteSize::from_text(text).map(|size| size.as_u64()), wanted, "{text}");
        }
    }

    #[test]
    fn numbers_stay_in_their_range() {
        assert_eq!(u16::from_toml(&Toml::Integer(65_535)), Ok(65_535));
        assert!(u16::from_toml(&Toml::Integer(65_536)).is_err());
        assert!(u32::from_toml(&Toml::Integer(-1)).is_err());
        assert!(u32::from_toml(&Toml::Text("1".to_owned())).is_err());
        assert_eq!(u32::from_text("12"), Some(12));
    }

    #[test]
    fn a_list_is_comma_separated_in_text_and_may_be_a_lone_value_in_the_file() {
        assert_eq!(Vec::<u16>::from_text("1, 2,3"), Some(vec![1, 2, 3]));
        assert_eq!(Vec::<u16>::from_text(""), Some(vec![]));
        assert_eq!(Vec::<u16>::from_text("1,,2"), None);
        assert_eq!(Vec::<String>::from_toml(&Toml::Text("a,b".to_owned())), Ok(vec!["a,b".to_owned()]));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_value_panic(text in "\\PC{0,24}") {
            let _ = Duration::from_text(&text);
            let _ = ByteSize::from_text(&text);
            let _ = ListenAddr::from_text(&text);
            let _ = Network::from_text(&text);
            let _ = HostPort::from_text(&text);
            let _ = Vec::<SocketAddr>::from_text(&text);
        }

        #[test]
        fn a_duration_reads_back_as_it_was_written(seconds in 0_u64..100_000_000) {
            let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
            prop_assert_eq!(Duration::from_text(&text), Some(Duration::from_secs(seconds)));
        }
    }
}
