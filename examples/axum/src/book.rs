//! The guest book itself: come in entries, go out the latest ones. It knows nothing of HTTP, and it is bounded, because
//! anybody may write into it.

use serde::Serialize;
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

/// Entries that are kept; older ones make room.
const KEPT: usize = 100;

/// Characters of one entry.
const LONGEST: usize = 500;

/// The book of one worker.
#[derive(Debug, Default)]
pub(crate) struct Book {
    entries: Mutex<VecDeque<Entry>>,
}

/// What one client wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Entry {
    client: String,
    text: String,
}

/// Why an entry was not written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Empty,
    TooLong,
}

impl Book {
    pub(crate) fn write(&self, client: &str, text: &str) -> Result<(), Refused> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Refused::Empty);
        }
        if text.chars().count() > LONGEST {
            return Err(Refused::TooLong);
        }
        // a panic elsewhere cannot leave the list half changed
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back(Entry { client: client.to_owned(), text: text.to_owned() });
        Ok(())
    }

    /// Oldest first.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Book, KEPT};

    #[test]
    fn the_book_never_holds_more_than_it_has_pages() {
        let book = Book::default();
        for number in 0..KEPT + 5 {
            book.write("192.0.2.1", &number.to_string()).unwrap();
        }
        let entries = book.entries();
        assert_eq!((entries.len(), entries[0].text.as_str()), (KEPT, "5"));
    }
}
