//! What the access log will say in the client's own words. In: a request's head. Out: its path, and the fields that a line
//! has, copied into one small piece of memory: a slice of the head would keep all of it for as long as the answer takes, and
//! with HTTP/2 a client decides how large the one is and how long the other.

use crate::accesslog::{Format, Style, TEXT};
use http::{header, request::Parts};

/// Room for a host, which is looked at later; a longer one is copied again.
const HOST: usize = 64;

#[derive(Clone, Copy, Debug)]
enum Word {
    Path,
    Query,
    Host,
    Referer,
    UserAgent,
}

/// Each is cut where the log cuts it.
#[derive(Debug, Default)]
pub(crate) struct Words {
    text: Vec<u8>,
    /// Where each begins and ends.
    places: [Option<(u16, u16)>; 5],
}

impl Words {
    /// All but the host.
    pub(crate) fn of(head: &Parts, style: Style) -> Self {
        let field = |name| head.headers.get(name).filter(|_| style.format == Format::Combined);
        let words = [
            (Word::Path, Some(head.uri.path().as_bytes())),
            (Word::Query, head.uri.query().filter(|_| style.query).map(str::as_bytes)),
            (Word::Referer, field(header::REFERER).map(http::HeaderValue::as_bytes)),
            (Word::UserAgent, field(header::USER_AGENT).map(http::HeaderValue::as_bytes)),
        ];
        let length: usize = words.iter().map(|(_, value)| value.map_or(0, |value| value.len().min(TEXT))).sum();
        let mut all = Self { text: Vec::with_capacity(length + HOST), places: [None; 5] };
        for (word, value) in words {
            if let Some(value) = value {
                all.put(word, value);
            }
        }
        all
    }

    pub(crate) fn put_host(&mut self, host: &[u8]) {
        self.put(Word::Host, host);
    }

    fn put(&mut self, word: Word, value: &[u8]) {
        let begin = self.text.len();
        self.text.extend_from_slice(&value[..value.len().min(TEXT)]);
        let place = |at: usize| u16::try_from(at).expect("five times the longest text fits");
        self.places[word as usize] = Some((place(begin), place(self.text.len())));
    }

    fn get(&self, word: Word) -> Option<&[u8]> {
        self.places[word as usize].map(|(begin, end)| &self.text[begin.into()..end.into()])
    }

    pub(crate) fn path(&self) -> &[u8] {
        self.get(Word::Path).unwrap_or_default()
    }

    pub(crate) fn query(&self) -> Option<&[u8]> {
        self.get(Word::Query)
    }

    pub(crate) fn host(&self) -> Option<&[u8]> {
        self.get(Word::Host)
    }

    pub(crate) fn referer(&self) -> Option<&[u8]> {
        self.get(Word::Referer)
    }

    pub(crate) fn user_agent(&self) -> Option<&[u8]> {
        self.get(Word::UserAgent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chassis::config::Fraction;

    #[test]
    fn only_what_the_line_has_is_kept_and_cut_where_the_line_cuts_it() {
        let long = "x".repeat(9000);
        let request =
            http::Request::get(format!("/a?{long}")).header("user-agent", &long).header("referer", "r").body(());
        let (head, ()) = request.unwrap().into_parts();
        for (format, query) in [(Format::Json, false), (Format::Json, true), (Format::Combined, true)] {
            let mut words = Words::of(&head, Style { format, query, sample: Fraction::ALL });
            words.put_host(long.as_bytes());
            assert_eq!(words.path(), b"/a");
            assert_eq!(words.query().map(<[u8]>::len), query.then_some(TEXT));
            let combined = format == Format::Combined;
            assert_eq!(words.user_agent().map(<[u8]>::len), combined.then_some(TEXT));
            assert_eq!(words.referer(), combined.then_some(&b"r"[..]));
            assert_eq!(words.host().map(<[u8]>::len), Some(TEXT));
            assert!(words.text.capacity() < 5 * TEXT);
        }
    }
}
