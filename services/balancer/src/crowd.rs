//! How many connections each client has open, on all cores together. In: a client that comes. Out: a guard that counts it
//! for as long as it lives, or nothing where it has enough. It keeps an entry for who is here and none for who was.

use crate::client::Client;
use std::{
    collections::{HashMap, hash_map::Entry},
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Debug, Default)]
pub struct Crowd {
    /// Never 0.
    open: Mutex<HashMap<Client, usize>>,
}

/// One connection of a client.
#[derive(Debug)]
pub struct Guest {
    crowd: Arc<Crowd>,
    client: Client,
}

impl Crowd {
    /// `None`: this client has `most` open already.
    pub fn enter(self: &Arc<Self>, client: Client, most: NonZeroUsize) -> Option<Guest> {
        let mut open = self.lock();
        let count = open.entry(client).or_default();
        // there is no entry of 0, so one that is full was there before
        if *count >= most.get() {
            return None;
        }
        *count += 1;
        drop(open);
        Some(Guest { crowd: Arc::clone(self), client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Client, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.crowd.lock().entry(self.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn client(number: u8) -> Client {
        IpAddr::from(Ipv4Addr::new(192, 0, 2, number)).into()
    }

    proptest! {
        #[test]
        fn each_client_has_as_many_as_it_may_and_leaves_nothing_behind(
            steps in prop::collection::vec((0..4_u8, any::<bool>()), 0..200), most in 1..4_usize,
        ) {
            let crowd = Arc::new(Crowd::default());
            let mut guests: Vec<(u8, Guest)> = Vec::new();
            for (number, comes) in steps {
                let here = guests.iter().filter(|(other, _)| *other == number).count();
                if comes {
                    let guest = crowd.enter(client(number), NonZeroUsize::new(most).unwrap());
                    prop_assert_eq!(guest.is_some(), here < most);
                    guests.extend(guest.map(|guest| (number, guest)));
                } else if let Some(at) = guests.iter().position(|(other, _)| *other == number) {
                    guests.swap_remove(at);
                }
            }
            drop(guests);
            prop_assert!(crowd.lock().is_empty());
        }
    }
}
