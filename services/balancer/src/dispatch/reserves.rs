//! Permits that are kept for some routes' requests. In: which reserve a request may use, what is free. Out: whether it may
//! have a permit. Pure.

/// The reserves of one app: so many permits each, for whoever may use them.
#[derive(Debug, Default)]
pub(super) struct Reserves(Vec<Reserve>);

#[derive(Debug)]
struct Reserve {
    size: u32,
    /// Permits that its requests hold.
    used: u32,
}

impl Reserves {
    pub(super) fn new(sizes: &[u32]) -> Self {
        Self(sizes.iter().map(|size| Reserve { size: *size, used: 0 }).collect())
    }

    /// Other sizes. What is held is still counted where it was taken; a reserve that is not named any more keeps nothing.
    pub(super) fn resize(&mut self, sizes: &[u32]) {
        let missing = sizes.len().saturating_sub(self.0.len());
        self.0.extend(std::iter::repeat_with(|| Reserve { size: 0, used: 0 }).take(missing));
        for (at, reserve) in self.0.iter_mut().enumerate() {
            reserve.size = sizes.get(at).copied().unwrap_or(0);
        }
    }

    /// Whether a request that may use `own` may have one of the `free` permits, of `all` that there are. All reserves
    /// together keep at most half of them, or a cluster that has lost most of its workers would serve nobody else.
    pub(super) fn admit(&self, own: Option<usize>, free: u64, all: u64) -> bool {
        let others = self.0.iter().enumerate().filter(|(at, _)| Some(*at) != own);
        let kept: u64 = others.map(|(_, reserve)| u64::from(reserve.size.saturating_sub(reserve.used))).sum();
        free > kept.min(all / 2)
    }

    pub(super) fn take(&mut self, own: Option<usize>) {
        if let Some(reserve) = own.and_then(|own| self.0.get_mut(own)) {
            reserve.used += 1;
        }
    }

    pub(super) fn give_back(&mut self, own: Option<usize>) {
        if let Some(reserve) = own.and_then(|own| self.0.get_mut(own)) {
            reserve.used = reserve.used.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Reserves;

    #[test]
    fn what_is_kept_for_some_is_not_for_others() {
        let mut reserves = Reserves::new(&[2, 1]);
        assert!(!reserves.admit(None, 3, 10));
        assert!(reserves.admit(None, 4, 10));
        assert!(reserves.admit(Some(0), 2, 10) && !reserves.admit(Some(0), 1, 10), "one is the other's");
        reserves.take(Some(1));
        assert!(reserves.admit(Some(0), 1, 10), "the other one has its own");
        reserves.take(Some(0));
        reserves.take(Some(0));
        reserves.take(Some(0));
        assert!(reserves.admit(None, 1, 10), "all that was kept is in use");
        reserves.give_back(Some(1));
        assert!(!reserves.admit(None, 1, 10));
    }

    #[test]
    fn another_size_forgets_nothing_that_is_held() {
        let mut reserves = Reserves::new(&[2]);
        reserves.take(Some(0));
        reserves.resize(&[3, 1]);
        assert!(!reserves.admit(None, 3, 10) && reserves.admit(None, 4, 10), "2 of the first and 1 of the second");
        reserves.resize(&[]);
        assert!(reserves.admit(None, 1, 10), "none is kept");
        reserves.give_back(Some(0));
        reserves.resize(&[1]);
        assert!(!reserves.admit(None, 1, 10) && reserves.admit(Some(0), 1, 10));
    }

    #[test]
    fn never_more_than_half_is_kept() {
        let reserves = Reserves::new(&[100]);
        assert!(reserves.admit(None, 3, 4) && !reserves.admit(None, 2, 4));
        assert!(reserves.admit(None, 1, 1));
        assert!(Reserves::default().admit(None, 1, 1) && !Reserves::default().admit(None, 0, 1));
    }
}
