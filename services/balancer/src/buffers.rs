//! How much one core may keep in memory for clients that are slower than the workers: an equal part of the process's
//! `buffers`. Whoever keeps something has a share; what is kept counts until its share gives it back. A part that has
//! come is kept in any case, but not a large buffer for a small part. Nobody asks for more once it is used up: then bodies
//! stream from one side to the other.

use bytes::Bytes;
use std::{cell::Cell, rc::Rc};

/// How much of one body is kept.
pub(crate) const PER_BODY: u64 = 1024 * 1024;
/// What a part costs besides its bytes: a body in parts of one byte is mostly this.
const PART: u64 = 64;
/// A part below this is copied when it is kept beside others: hyper reads each into a buffer of 8 KiB at least, and a body that
/// comes byte by byte would keep as many of them.
const SMALL: usize = 4096;

#[derive(Debug)]
pub(crate) struct Buffers {
    size: Cell<u64>,
    used: Cell<u64>,
}

/// What one body keeps.
#[derive(Debug)]
pub(crate) struct Share {
    buffers: Rc<Buffers>,
    bytes: u64,
    parts: u64,
}

impl Buffers {
    pub(crate) fn new(size: u64) -> Rc<Self> {
        Rc::new(Self { size: Cell::new(size), used: Cell::new(0) })
    }

    /// What is kept already stays.
    pub(crate) fn resize(&self, size: u64) {
        self.size.set(size);
    }

    pub(crate) fn share(self: &Rc<Self>) -> Share {
        Share { buffers: Rc::clone(self), bytes: 0, parts: 0 }
    }
}

impl Share {
    /// No more should be kept: this body has its most, or all of them together have.
    pub(crate) fn is_used_up(&self) -> bool {
        let whole = self.bytes >= PER_BODY || self.parts * PART >= PER_BODY;
        whole || self.buffers.used.get() >= self.buffers.size.get()
    }

    /// Nothing of this body is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts == 0
    }

    /// What is to be kept of a part.
    pub(crate) fn keep(&mut self, part: Bytes) -> Bytes {
        let alone = self.is_empty();
        self.set(self.bytes + part.len() as u64, self.parts + 1);
        if alone || part.len() >= SMALL { part } else { Bytes::copy_from_slice(&part) }
    }

    pub(crate) fn give_back(&mut self, part: &[u8]) {
        self.set(self.bytes - part.len() as u64, self.parts - 1);
    }

    fn set(&mut self, bytes: u64, parts: u64) {
        let others = self.buffers.used.get() - self.bytes - self.parts * PART;
        self.buffers.used.set(others + bytes + parts * PART);
        (self.bytes, self.parts) = (bytes, parts);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_counts_until_it_is_given_back_or_its_body_is_gone() {
        let buffers = Buffers::new(10_000);
        let (mut one, mut two) = (buffers.share(), buffers.share());
        one.keep(Bytes::from_static(&[0; 6000]));
        assert!(!one.is_used_up() && !two.is_used_up());
        two.keep(Bytes::from_static(&[0; 6000]));
        assert!(one.is_used_up() && two.is_used_up(), "all of it together");
        two.give_back(&[0; 6000]);
        assert!(two.is_empty() && !one.is_used_up());
        drop(one);
        assert_eq!(buffers.used.get(), 0);
    }

    #[test]
    fn one_body_gets_no_more_than_its_most_and_small_parts_cost_more_than_their_bytes() {
        let buffers = Buffers::new(10 * PER_BODY);
        let mut share = buffers.share();
        let parts = (0..PER_BODY).take_while(|_| {
            let room = !share.is_used_up();
            share.keep(Bytes::from_static(b"x"));
            room
        });
        assert!(parts.count() < 20_000);
    }

    #[test]
    fn a_small_part_beside_others_does_not_keep_the_buffer_that_it_came_in() {
        let buffer = Bytes::from(vec![7; 8192]);
        let is_in_buffer = |part: &Bytes| buffer.as_ptr_range().contains(&part.as_ptr());
        let mut share = Buffers::new(u64::MAX).share();
        let first = share.keep(buffer.slice(..10));
        let second = share.keep(buffer.slice(10..20));
        let large = share.keep(buffer.slice(20..20 + SMALL));
        assert!(is_in_buffer(&first), "most bodies come in one part, which needs no copy");
        assert!(!is_in_buffer(&second) && second == [7; 10][..]);
        assert!(is_in_buffer(&large));
    }
}
