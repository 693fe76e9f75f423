//! The queue of requests that wait for a permit: first in, first out, and whoever leaves is out in O(1).
//! A doubly linked list in a vector, so that a long queue of short patience leaves no tombstones. Pure.

/// A waiter's place, for leaving. Worthless once its waiter is out: a number is used only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    index: usize,
    number: u64,
}

#[derive(Debug)]
struct Entry<W> {
    /// `None` in a free entry.
    waiter: Option<W>,
    number: u64,
    before: Option<usize>,
    after: Option<usize>,
}

#[derive(Debug)]
pub struct Queue<W> {
    entries: Vec<Entry<W>>,
    free: Vec<usize>,
    head: Option<usize>,
    tail: Option<usize>,
    len: usize,
    numbers: u64,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new(), head: None, tail: None, len: 0, numbers: 0 }
    }
}

impl<W> Queue<W> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// At the end: a newcomer.
    pub fn push_back(&mut self, waiter: W) -> Ticket {
        let index = self.place(waiter, self.tail, None);
        match self.tail.replace(index) {
            Some(tail) => self.entries[tail].after = Some(index),
            None => self.head = Some(index),
        }
        self.ticket(index)
    }

    /// At the head: a request that had a permit already and so is older than everyone here.
    pub fn push_front(&mut self, waiter: W) -> Ticket {
        let index = self.place(waiter, None, self.head);
        match self.head.replace(index) {
            Some(head) => self.entries[head].before = Some(index),
            None => self.tail = Some(index),
        }
        self.ticket(index)
    }

    /// Takes the waiter out; `None` when it is out already.
    pub fn remove(&mut self, ticket: Ticket) -> Option<W> {
        let entry = self.entries.get_mut(ticket.index).filter(|entry| entry.number == ticket.number)?;
        let waiter = entry.waiter.take()?;
        let (before, after) = (entry.before, entry.after);
        match before {
            Some(before) => self.entries[before].after = after,
            None => self.head = after,
        }
        match after {
            Some(after) => self.entries[after].before = before,
            None => self.tail = before,
        }
        self.free.push(ticket.index);
        self.len -= 1;
        Some(waiter)
    }

    pub fn get(&self, ticket: Ticket) -> Option<&W> {
        let entry = self.entries.get(ticket.index).filter(|entry| entry.number == ticket.number)?;
        entry.waiter.as_ref()
    }

    /// From the tail to the head.
    pub fn iter_back(&self) -> impl Iterator<Item = (Ticket, &W)> {
        self.walk(self.tail, |entry| entry.before)
    }

    /// From the head to the tail.
    pub fn iter(&self) -> impl Iterator<Item = (Ticket, &W)> {
        self.walk(self.head, |entry| entry.after)
    }

    fn walk(&self, from: Option<usize>, on: impl Fn(&Entry<W>) -> Option<usize>) -> impl Iterator<Item = (Ticket, &W)> {
        let mut next = from;
        std::iter::from_fn(move || {
            let index = next?;
            next = on(&self.entries[index]);
            let waiter = self.entries[index].waiter.as_ref().expect("a linked entry holds a waiter");
            Some((self.ticket(index), waiter))
        })
    }

    fn place(&mut self, waiter: W, before: Option<usize>, after: Option<usize>) -> usize {
        self.len += 1;
        self.numbers += 1;
        let entry = Entry { waiter: Some(waiter), number: self.numbers, before, after };
        match self.free.pop() {
            Some(index) => {
                self.entries[index] = entry;
                index
            }
            None => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
        }
    }

    fn ticket(&self, index: usize) -> Ticket {
        Ticket { index, number: self.entries[index].number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[derive(Clone, Debug)]
    enum Step {
        Back,
        Front,
        Leave(usize),
        Again(usize),
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_deque(steps in prop::collection::vec(prop_oneof![
            Just(Step::Back), Just(Step::Front), any::<usize>().prop_map(Step::Leave), any::<usize>().prop_map(Step::Again),
        ], 0..200)) {
            let mut queue = Queue::default();
            let mut model: VecDeque<(Ticket, u32)> = VecDeque::new();
            let mut gone = Vec::new();
            for (number, step) in (0u32..).zip(steps) {
                match step {
                    Step::Back => model.push_back((queue.push_back(number), number)),
                    Step::Front => model.push_front((queue.push_front(number), number)),
                    Step::Leave(at) if !model.is_empty() => {
                        let (ticket, waiter) = model.remove(at % model.len()).unwrap();
                        prop_assert_eq!(queue.remove(ticket), Some(waiter));
                        gone.push(ticket);
                    }
                    Step::Again(at) if !gone.is_empty() => prop_assert_eq!(queue.remove(gone[at % gone.len()]), None),
                    Step::Leave(_) | Step::Again(_) => {}
                }
                prop_assert_eq!(queue.len(), model.len());
                let order: Vec<u32> = queue.iter().map(|(_, waiter)| *waiter).collect();
                prop_assert_eq!(&order, &model.iter().map(|(_, waiter)| *waiter).collect::<Vec<_>>());
                let back: Vec<u32> = queue.iter_back().map(|(_, waiter)| *waiter).collect();
                prop_assert!(order.iter().rev().eq(&back));
                prop_assert!(model.iter().all(|(ticket, waiter)| queue.get(*ticket) == Some(waiter)));
                prop_assert!(gone.iter().all(|ticket| queue.get(*ticket).is_none()));
            }
            // what was left is used again: the vector is no longer than the queue ever was
            prop_assert!(queue.entries.len() == queue.len() + queue.free.len());
        }
    }
}
