//! What a balancer may be using whose stream is lost. In: what it held, and what the workers say of its connections; out:
//! how much of it has to be kept. The balancer may live and not know yet; then it goes on sending.

use super::{Book, Ledger, tally::Tally};
use std::time::{Duration, Instant};

/// More than that are not remembered: the oldest are taken for dead.
const GHOSTS_MAX: usize = 64;

/// What a worker has not told of its connections so long after the end of a stream has not happened before it.
const TOLD: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Ghost {
    pub(super) balancer: String,
    /// Never 0.
    pub(super) connections: u32,
    pub(super) lost: Instant,
    /// So long it may not know.
    pub(super) unaware: Duration,
    pub(super) held: Tally,
}

impl Ghost {
    /// Takes it out of the books; what it held.
    pub(super) fn release(self, books: &mut [Book]) -> Tally {
        for book in books {
            book.held -= u64::from(self.held.of(book.key));
        }
        self.held
    }

    /// Into new books. What it held of a worker that is gone is gone.
    pub(super) fn rebind(&mut self, books: &mut [Book]) {
        self.held.revise(|worker, held| match books.iter_mut().find(|book| book.key == worker) {
            Some(book) => {
                book.held += u64::from(held);
                held
            }
            None => 0,
        });
    }

    /// Lets go of what it surely does not use any more. `Some`: when to look again.
    fn fade(&mut self, books: &mut [Book], now: Instant) -> Option<Instant> {
        let told = now >= self.lost + TOLD;
        let aware = told && now >= self.lost + self.unaware;
        let connections = self.connections;
        self.held.revise(|worker, held| {
            let Some(book) = books.iter_mut().find(|book| book.key == worker) else { return 0 };
            let presence = book.presence(connections);
            let over = aware || told && presence.connections == 0;
            // a request that runs occupies its slot, whoever asked for it
            let kept = if over { held.min(presence.busy) } else { held };
            book.held -= u64::from(held - kept);
            kept
        });
        let looks = [self.lost + TOLD, self.lost + self.unaware];
        looks.into_iter().filter(|at| *at > now && !self.held.is_empty()).min()
    }
}

impl Ledger {
    pub(super) fn haunt(&mut self, ghost: Ghost) {
        if self.ghosts.len() >= GHOSTS_MAX {
            self.ghosts.remove(0).release(&mut self.books);
        }
        for book in &mut self.books {
            book.held += u64::from(ghost.held.of(book.key));
        }
        self.ghosts.push(ghost);
    }

    /// Forgets what is over. `Some`: when to look again.
    pub(super) fn bury(&mut self, now: Instant) -> Option<Instant> {
        let looks = self.ghosts.iter_mut().filter_map(|ghost| ghost.fade(&mut self.books, now));
        let next = looks.min();
        self.ghosts.retain(|ghost| !ghost.held.is_empty());
        next
    }
}
