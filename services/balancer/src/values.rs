//! Field values that we make for one request: its id, its trace. In: their text. Out: values that share blocks of memory, so
//! that most of them cost no allocation, neither made nor cloned. A block is free when the last of its requests is over.

use bytes::BytesMut;
use http::HeaderValue;
use std::cell::RefCell;

/// Some forty requests' worth.
const BLOCK: usize = 4096;

/// Of one core.
#[derive(Debug)]
pub struct Values {
    block: RefCell<BytesMut>,
}

impl Default for Values {
    fn default() -> Self {
        Self { block: RefCell::new(BytesMut::with_capacity(BLOCK)) }
    }
}

impl Values {
    /// `text` is made of visible characters.
    pub fn make(&self, text: &[u8]) -> HeaderValue {
        let mut block = self.block.borrow_mut();
        if block.capacity() < text.len() {
            *block = BytesMut::with_capacity(BLOCK.max(text.len()));
        }
        block.extend_from_slice(text);
        HeaderValue::from_maybe_shared(block.split().freeze()).expect("visible characters are a field value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_many_blocks_stay_what_they_were() {
        let values = Values::default();
        let text = |number: usize| format!("{number:032x}");
        let made: Vec<HeaderValue> = (0..1000).map(|number| values.make(text(number).as_bytes())).collect();
        for (number, value) in made.iter().enumerate() {
            assert_eq!(value, &text(number));
        }
        let long = "x".repeat(BLOCK + 1);
        assert_eq!(values.make(long.as_bytes()), long);
    }
}
