//! The laws of the dispatcher, in any interleaving.

use super::*;
use crate::{
    client::Client,
    dispatch::seat::{Seat, Tally},
};
use proptest::prelude::*;
use std::collections::HashMap;

#[derive(Clone, Debug)]
enum Step {
    Arrive {
        from: u8,
        class: Class,
    },
    ComeBack(usize),
    End(usize, Ended),
    /// The permit is dropped while its slot may be busy.
    Abort(usize),
    /// The node names what is owed, or will be.
    Name(usize),
    NameEarly(usize),
    Leave(usize),
    Report {
        node: u8,
        workers: Vec<WorkerView>,
        new_stream: bool,
    },
    /// Other balancers lack something there.
    Lack {
        node: u8,
        permits: u32,
        wait: u64,
    },
    Drain(u8),
    Remove(u8),
    Wait(u64),
}

fn classes() -> impl Strategy<Value = Class> {
    let priority = prop::sample::select(Priority::ALL.to_vec());
    (priority, prop::option::weighted(0.2, 0..2_usize)).prop_map(|(priority, reserve)| Class { priority, reserve })
}

fn ends() -> impl Strategy<Value = Ended> {
    let answered = (1..50_u64).prop_map(|ms| Ended::Answered(Duration::from_millis(ms)));
    prop_oneof![4 => answered, 1 => Just(Ended::Unjudged), 1 => Just(Ended::Busy), 3 => Just(Ended::Failed)]
}

fn views() -> impl Strategy<Value = Vec<WorkerView>> {
    let state = prop_oneof![4 => Just(WorkerState::Ready), 1 => prop::sample::select(WorkerState::ALL.to_vec())];
    let view = (0..3_u32, 0..2_u64, 0..4_u32, state, any::<bool>(), 0..2_u32).prop_map(
        |(position, generation, grant, state, fast, orphaned)| WorkerView {
            generation,
            state,
            capacity: 3,
            orphaned,
            service: fast.then(|| Duration::from_millis(1)),
            ..worker(position, grant)
        },
    );
    let distinct = |views: Vec<WorkerView>| {
        let mut seen = HashSet::new();
        views.into_iter().filter(|view| seen.insert((view.position, view.generation))).collect()
    };
    prop::collection::vec(view, 0..5).prop_map(distinct)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..3_u8, classes()).prop_map(|(from, class)| Step::Arrive { from, class }),
        2 => any::<usize>().prop_map(Step::ComeBack),
        4 => (any::<usize>(), ends()).prop_map(|(at, ended)| Step::End(at, ended)),
        2 => any::<usize>().prop_map(Step::Abort),
        2 => any::<usize>().prop_map(Step::Name),
        1 => any::<usize>().prop_map(Step::NameEarly),
        2 => any::<usize>().prop_map(Step::Leave),
        2 => (0..3_u8, views(), prop::bool::weighted(0.2))
            .prop_map(|(node, workers, new_stream)| Step::Report { node, workers, new_stream }),
        2 => (0..3_u8, 0..4_u32, 0..10_000_u64).prop_map(|(node, permits, wait)| Step::Lack { node, permits, wait }),
        1 => (0..3_u8).prop_map(Step::Drain),
        1 => (0..3_u8).prop_map(Step::Remove),
        2 => (0..8_000_u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..120)
}

const NAMES: [&str; 3] = ["a", "b", "c"];
const RESERVES: [u32; 2] = [1, 2];

/// A request with a permit.
struct Holder {
    request: u32,
    endpoint: Arc<Endpoint>,
    held: Held,
    /// Of its connection.
    number: u64,
}

/// A request that waits.
struct Waits {
    request: u32,
    from: u8,
    ticket: Ticket,
    class: Class,
    exclude: Vec<EndpointId>,
}

/// What should be so, as far as it can be said simply.
struct Model {
    dispatch: Dispatch<u32>,
    rng: SmallRng,
    now: Instant,
    streams: Vec<Arc<Node>>,
    holders: Vec<Holder>,
    waiting: Vec<Waits>,
    owed: Vec<(u64, String)>,
    tried: HashMap<u32, Vec<EndpointId>>,
    of: HashMap<u32, (u8, Class)>,
    requests: u32,
    numbers: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            dispatch: Dispatch::new(Room { all: 5, client: 2 }, &RESERVES),
            rng: SmallRng::seed_from_u64(seed),
            now: Instant::now(),
            streams: NAMES.iter().map(|name| node(name)).collect(),
            holders: Vec::new(),
            waiting: Vec::new(),
            owed: Vec::new(),
            tried: HashMap::new(),
            of: HashMap::new(),
            requests: 0,
            numbers: 0,
        }
    }

    fn hold(&mut self, request: u32, endpoint: Arc<Endpoint>, held: Held) {
        self.numbers += 1;
        self.holders.push(Holder { request, endpoint, held, number: self.numbers });
    }

    /// Whether one of the last permits would go to such a request, and for whom it counts then.
    fn counts(&self, from: u8) -> Option<Client> {
        let (free, limit) = self.free_and_limit();
        (limit >= 64 && free * 4 <= limit).then(|| client(from))
    }

    fn free_and_limit(&self) -> (u32, u32) {
        let free = self.dispatch.seats.all().map(|seat| seat.limit().saturating_sub(seat.held)).sum();
        (free, self.dispatch.seats.all().map(Seat::limit).sum())
    }

    /// Whether something that is free, or a deck, is there for such a request, counted by hand.
    fn is_there(&self, from: u8, class: Class, exclude: &[EndpointId]) -> bool {
        let seats: Vec<_> = self.dispatch.seats.all().collect();
        let usable = |id: &EndpointId| seats.iter().any(|seat| seat.endpoint.id == *id && seat.limit() > 0);
        let others = seats.iter().any(|seat| seat.limit() > 0 && !exclude.contains(&seat.endpoint.id));
        let barred = |seat: &&&Seat| others && exclude.iter().any(|id| *id == seat.endpoint.id && usable(id));
        let (free, limit) = self.free_and_limit();
        let out: Vec<&Held> =
            self.holders.iter().map(|holder| &holder.held).chain(self.dispatch.owing.held()).collect();
        let mut used = [0; 2];
        for reserve in out.iter().filter_map(|held| held.class.reserve) {
            used[reserve] += 1;
        }
        let own = self.counts(from).map(|client| out.iter().filter(|held| held.counted == Some(client)).count());
        let is_full = own.is_some_and(|own| own >= (limit * 3 / 16) as usize);
        let kept: u32 = (0..2)
            .filter(|reserve| class.reserve != Some(*reserve))
            .map(|reserve| RESERVES[reserve].saturating_sub(used[reserve]))
            .sum();
        let has = seats.iter().filter(|seat| !barred(seat)).any(|seat| seat.held < seat.limit());
        let deck = seats.iter().filter(|seat| !barred(seat)).any(|seat| seat.deck_level().is_some());
        has && !is_full && free > kept.min(limit / 2) || free == 0 && deck
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Arrive { from, class } => {
                self.requests += 1;
                self.of.insert(self.requests, (from, class));
                self.ask(self.requests, false)?;
            }
            Step::ComeBack(at) if !self.holders.is_empty() => {
                let Holder { request, endpoint, held, .. } = self.holders.swap_remove(at % self.holders.len());
                let tried = self.tried.entry(request).or_default();
                if !tried.contains(&endpoint.id) {
                    tried.push(endpoint.id);
                }
                self.dispatch.release(held, Ended::Failed, self.now);
                self.hand_over()?;
                self.ask(request, true)?;
            }
            Step::End(at, ended) if !self.holders.is_empty() => {
                let Holder { held, .. } = self.holders.swap_remove(at % self.holders.len());
                self.dispatch.release(held, ended, self.now);
            }
            Step::Abort(at) if !self.holders.is_empty() => {
                let Holder { held, number, endpoint, .. } = self.holders.swap_remove(at % self.holders.len());
                self.owed.push((number, endpoint.node.instance.clone()));
                self.dispatch.unsettle(held, number, Ended::Unjudged, self.now);
            }
            Step::Name(at) if !self.owed.is_empty() => {
                let (number, instance) = self.owed.swap_remove(at % self.owed.len());
                let stranger = NAMES.into_iter().find(|name| *name != instance).unwrap();
                let before = self.dispatch.unsettled();
                self.dispatch.settle(stranger, &[number], self.now);
                prop_assert_eq!(self.dispatch.unsettled(), before, "another node's word counted");
                self.dispatch.settle(&instance, &[number], self.now);
                prop_assert!(self.dispatch.owing.get(number).is_none());
            }
            Step::NameEarly(at) if !self.holders.is_empty() => {
                let at = at % self.holders.len();
                let (number, instance) = (self.holders[at].number, self.holders[at].endpoint.node.instance.clone());
                self.dispatch.settle(&instance, &[number], self.now);
                prop_assert_eq!(self.dispatch.owing.get(number).map(|held| held.id), None);
            }
            Step::Leave(at) if !self.waiting.is_empty() => {
                let waits = self.waiting.remove(at % self.waiting.len());
                prop_assert_eq!(self.dispatch.leave(waits.ticket), Some(waits.request));
                prop_assert_eq!(self.dispatch.leave(waits.ticket), None);
            }
            Step::Report { node: at, workers, new_stream } => {
                if new_stream {
                    self.streams[at as usize] = node(NAMES[at as usize]);
                }
                self.dispatch.apply(&self.streams[at as usize], &workers, self.now);
            }
            Step::Lack { node, permits, wait } => {
                let instance = NAMES[node as usize];
                // what was given back before
                self.dispatch.take_yielded(instance);
                let before = self.dispatch.seats.sum();
                self.dispatch.lack(instance, permits, Duration::from_millis(wait), self.now);
                let given = self.dispatch.take_yielded(instance).len() as u64;
                prop_assert!(given <= permits.into());
                // less where health allows less than is granted
                prop_assert!(before.free - self.dispatch.seats.sum().free <= given);
            }
            Step::Drain(at) => self.dispatch.drain_node(NAMES[at as usize]),
            Step::Remove(at) => self.dispatch.remove_node(NAMES[at as usize]),
            Step::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.dispatch.turn(self.now);
                while let Some(shed) = self.dispatch.shed(self.now) {
                    self.waiting.retain(|waits| waits.request != shed);
                }
            }
            _ => {}
        }
        self.hand_over()
    }

    /// Picks, or waits.
    fn ask(&mut self, request: u32, comes_back: bool) -> Result<(), TestCaseError> {
        let (from, class) = self.of[&request];
        let tried = self.tried.get(&request).cloned().unwrap_or_default();
        let (is_there, counts) = (self.is_there(from, class, &tried), self.counts(from));
        let free = self.dispatch.seats.sum().free;
        let client = client(from);
        if let Some((endpoint, held, why)) = self.dispatch.pick(client, class, &tried, self.now, &mut self.rng) {
            prop_assert!(is_there);
            prop_assert_eq!(why == Why::OnDeck, free == 0, "on deck where something is free");
            prop_assert_eq!(held.counted, counts);
            self.hold(request, endpoint, held);
            return Ok(());
        }
        prop_assert!(!is_there, "turned away from a free permit");
        let deadline = self.now + Duration::from_secs(5);
        let waits = Request { waiter: request, client, class, tried: &tried, comes_back, deadline };
        match self.dispatch.enqueue(waits, self.now) {
            Ok(Queued { ticket, displaced }) => {
                if let Some(NoRoom::Client(out) | NoRoom::Late(out) | NoRoom::Queue(out)) = displaced {
                    prop_assert!(!comes_back);
                    let known = self.waiting.iter().position(|waits| waits.request == out);
                    self.waiting.remove(known.expect("who waits is displaced"));
                }
                self.waiting.push(Waits { request, from, ticket, class, exclude: tried });
                let newcomers = self.waiting.iter().filter(|waits| waits.exclude.is_empty()).count();
                prop_assert!(newcomers <= 5, "the queue is bounded");
            }
            Err(_) => prop_assert!(!comes_back, "who comes back is let in"),
        }
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), TestCaseError> {
        loop {
            let counts = [0, 1, 2].map(|from| self.counts(from));
            let Some((request, endpoint, held)) = self.dispatch.handover(self.now, &mut self.rng) else {
                return Ok(());
            };
            let at = self.waiting.iter().position(|waits| waits.request == request);
            let waits = self.waiting.remove(at.expect("handed to someone who waits"));
            prop_assert_eq!(held.counted, counts[waits.from as usize]);
            self.hold(request, endpoint, held);
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        // permits are conserved
        let unsettled = self.dispatch.unsettled();
        prop_assert_eq!(self.dispatch.held(), self.holders.len() as u64 + unsettled);
        prop_assert_eq!(self.dispatch.owing.held().count() as u64, unsettled);
        let mut sum = Tally::default();
        for seat in self.dispatch.seats.all() {
            let requests = self.holders.iter().filter(|holder| holder.endpoint.id == seat.endpoint.id).count();
            prop_assert_eq!(seat.held as usize, requests + seat.unsettled.len());
            prop_assert_eq!(seat.endpoint.is_gone(), !seat.listed);
            sum.replace(Tally::default(), seat.tally());
        }
        prop_assert_eq!(self.dispatch.seats.sum(), sum);
        for name in NAMES {
            let expected = self.holders.iter().filter(|holder| holder.endpoint.node.instance == name).count();
            prop_assert_eq!(self.dispatch.in_flight(name) as usize, expected);
        }
        // nobody is lost
        let mut known: Vec<u32> = self.waiting.iter().map(|waits| waits.request).collect();
        let mut there: Vec<u32> = self.dispatch.line.next(false).map(|(_, waiter)| waiter.waiter).collect();
        known.sort_unstable();
        there.sort_unstable();
        prop_assert_eq!(known, there);
        prop_assert_eq!(self.dispatch.queue_depth(), self.waiting.len());
        // never a free permit beside a request that may use it
        for waits in &self.waiting {
            prop_assert!(
                !self.is_there(waits.from, waits.class, &waits.exclude),
                "a permit is free while a request waits"
            );
        }
        Ok(())
    }
}

/// Each step so many times.
fn run(steps: Vec<(Step, usize)>, seed: u64) -> Result<(), TestCaseError> {
    let mut model = Model::new(seed);
    for (step, times) in steps {
        for _ in 0..times {
            model.step(step.clone())?;
        }
        model.check()?;
    }
    // all ends well: nothing stays behind
    for name in NAMES {
        model.dispatch.remove_node(name);
    }
    for holder in std::mem::take(&mut model.holders) {
        model.dispatch.release(holder.held, Ended::Unjudged, model.now);
    }
    model.dispatch.turn(model.now + Duration::from_secs(10));
    prop_assert_eq!((model.dispatch.held(), model.dispatch.unsettled()), (0, 0));
    prop_assert!(model.dispatch.seats.is_vacant() && !model.dispatch.may_free_more());
    Ok(())
}

/// The same where each worker has so many times as many slots, and many come and go at once.
fn enlarged(step: Step, times: usize) -> (Step, usize) {
    const SLOTS: u32 = 16;
    match step {
        Step::Report { node, workers, new_stream } => {
            let more =
                |view: WorkerView| WorkerView { grant: view.grant * SLOTS, capacity: view.capacity * SLOTS, ..view };
            (Step::Report { node, workers: workers.into_iter().map(more).collect(), new_stream }, 1)
        }
        Step::Arrive { .. } => (step, times),
        Step::ComeBack(_) | Step::End(..) | Step::Abort(_) | Step::Name(_) => (step, times / 3),
        _ => (step, 1),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_laws_hold_in_any_interleaving(steps in steps(), seed in any::<u64>()) {
        run(steps.into_iter().map(|step| (step, 1)).collect(), seed)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_laws_hold_where_there_are_many_permits(
        steps in steps(),
        times in prop::collection::vec(1..60_usize, 120),
        seed in any::<u64>(),
    ) {
        run(steps.into_iter().zip(times).map(|(step, times)| enlarged(step, times)).collect(), seed)?;
    }
}
