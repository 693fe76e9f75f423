//! Seats sorted by a small number (permits held), to find one of the lowest at random. Pure.

use rand::{Rng, RngExt};

#[derive(Debug, Default)]
pub struct Levels {
    /// By level, which seats; as long as the highest level ever used.
    buckets: Vec<Vec<u32>>,
    /// One bit per bucket that is not empty, so that 10,000 permits held do not make a pick slow.
    occupied: Vec<u64>,
    /// By seat, its level and its place in the bucket.
    places: Vec<Option<(u32, u32)>>,
    len: usize,
}

impl Levels {
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts a seat on a level, or takes it out.
    pub fn place(&mut self, seat: u32, level: Option<u32>) {
        if self.places.len() <= seat as usize {
            self.places.resize(seat as usize + 1, None);
        }
        if self.places[seat as usize].map(|(level, _)| level) == level {
            return;
        }
        if let Some((level, at)) = self.places[seat as usize].take() {
            let bucket = &mut self.buckets[level as usize];
            bucket.swap_remove(at as usize);
            if let Some(moved) = bucket.get(at as usize) {
                self.places[*moved as usize] = Some((level, at));
            } else if bucket.is_empty() {
                self.occupied[level as usize / 64] &= !(1 << (level % 64));
            }
            self.len -= 1;
        }
        if let Some(level) = level {
            if self.buckets.len() <= level as usize {
                self.buckets.resize_with(level as usize + 1, Vec::new);
                self.occupied.resize(level as usize / 64 + 1, 0);
            }
            let bucket = &mut self.buckets[level as usize];
            let at =
                u32::try_from(bucket.len()).expect("a bucket holds at most all seats, which are counted in 32 bits");
            bucket.push(seat);
            self.places[seat as usize] = Some((level, at));
            self.occupied[level as usize / 64] |= 1 << (level % 64);
            self.len += 1;
        }
    }

    /// A seat of the lowest level that has one which `fits`.
    pub fn pick(&self, rng: &mut impl Rng, fits: impl Fn(u32) -> bool) -> Option<u32> {
        self.occupied().find_map(|bucket| {
            let start = if bucket.len() == 1 { 0 } else { rng.random_range(0..bucket.len()) };
            // the first one always fits unless something is excluded
            bucket[start..].iter().chain(&bucket[..start]).copied().find(|seat| fits(*seat))
        })
    }

    pub fn any(&self, fits: impl Fn(u32) -> bool) -> bool {
        self.occupied().flatten().any(|seat| fits(*seat))
    }

    /// The buckets that are not empty, from the lowest.
    fn occupied(&self) -> impl Iterator<Item = &Vec<u32>> {
        (0..).step_by(64).zip(&self.occupied).flat_map(move |(base, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                rest &= rest - 1;
                Some(&self.buckets[base + bit])
            })
        })
    }
}
