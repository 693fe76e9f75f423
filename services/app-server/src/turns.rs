//! How many positions may replace their worker at the same time: comes in a position that wants to, goes out its turn.
//! A fresh worker costs memory and the start of a process; all at once would starve the ones that serve.

use crate::config::Percent;
use std::sync::Arc;
use tokio::sync::watch;

/// Shared by all positions of a node.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    share: Percent,
    taken: Arc<watch::Sender<Taken>>,
}

#[derive(Debug)]
struct Taken {
    turns: u32,
    positions: u32,
}

/// The right to replace, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Turns,
}

impl Turns {
    pub(crate) fn new(share: Percent) -> Self {
        Self { share, taken: Arc::new(watch::Sender::new(Taken { turns: 0, positions: 0 })) }
    }

    /// There are so many positions from now on.
    pub(crate) fn among(&self, positions: u32) {
        self.taken.send_modify(|taken| taken.positions = positions);
    }

    /// Waits for a turn. May be dropped at any point.
    pub(crate) async fn take(&self) -> Turn {
        let mut taken = self.taken.subscribe();
        loop {
            let free = |taken: &Taken| taken.turns < self.share.of(taken.positions);
            // the sender is ours and lives, so this cannot fail
            let _ = taken.wait_for(free).await;
            let got = self.taken.send_if_modified(|taken| {
                let free = free(taken);
                taken.turns += u32::from(free);
                free
            });
            if got {
                return Turn { turns: self.clone() };
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.taken.send_modify(|taken| taken.turns -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::Turns;
    use crate::config::Percent;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn a_share_of_the_positions_have_their_turn_at_once_and_always_one() {
        let turns = Turns::new(Percent(25));
        turns.among(8);
        let (one, two) = (turns.take().await, turns.take().await);
        assert!(turns.take().now_or_never().is_none());
        drop(one);
        let one = turns.take().now_or_never().expect("a free turn");
        turns.among(1);
        drop(one);
        assert!(turns.take().now_or_never().is_none(), "the node has become smaller");
        drop(two);
        assert!(turns.take().now_or_never().is_some());
    }
}
