//! The laws that hold whatever happens, in whatever order, however late.

use super::{UNAWARE, ms, worker};
use crate::ledger::{Demand, Ledger, Presence, Worker, WorkerKey};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What may happen to a node.
#[derive(Clone, Copy, Debug)]
enum Step {
    Open(u8),
    /// It has let go of everything.
    Leave(u8),
    /// Its process dies: the workers see their connections close.
    Die(u8),
    /// Only its stream breaks, and it does not know.
    Cut(u8),
    Report(u8),
    /// The balancer gets the oldest report on its way, acts on it, and says so.
    Deliver(u8),
    /// The node hears the oldest acknowledgement on its way.
    Hear(u8),
    Want(u8, u8, u8),
    /// Requests fill all that the balancer believes in, ...
    Run(u8),
    /// ... and end: what is over a lowered grant is given back.
    Finish(u8),
    /// The balancer gives back a permit of this worker, if it has one that it does not use.
    Yield(u8, u8),
    /// The worker at the position is replaced.
    Replace(u8),
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0_u8..4).prop_map(Step::Open),
        1 => (0_u8..4).prop_map(Step::Leave),
        1 => (0_u8..4).prop_map(Step::Die),
        1 => (0_u8..4).prop_map(Step::Cut),
        6 => (0_u8..4).prop_map(Step::Report),
        6 => (0_u8..4).prop_map(Step::Deliver),
        6 => (0_u8..4).prop_map(Step::Hear),
        4 => (0_u8..4, 0_u8..6, 0_u8..255).prop_map(|(n, wanted, age)| Step::Want(n, wanted, age)),
        2 => (0_u8..4).prop_map(Step::Run),
        2 => (0_u8..4).prop_map(Step::Finish),
        4 => (0_u8..4, 0_u8..3).prop_map(|(n, position)| Step::Yield(n, position)),
        1 => (0_u8..3).prop_map(Step::Replace),
        4 => (0_u16..200).prop_map(Step::Pass),
    ]
}

/// What a balancer says.
#[derive(Clone, Debug)]
enum Word {
    Acknowledged(u64, Vec<(WorkerKey, u32)>),
    Yielded(u64, WorkerKey),
}

/// One balancer process of the model: what is on its way to it and back, and what it believes.
#[derive(Default)]
struct Process {
    number: u32,
    reports: Vec<(u64, BTreeMap<WorkerKey, u32>)>,
    /// In order, as a stream keeps it.
    words: Vec<Word>,
    /// The newest report it has.
    newest: u64,
    believes: BTreeMap<WorkerKey, u32>,
    /// Its requests.
    running: BTreeMap<WorkerKey, u32>,
    /// It has no stream, and does not know before then.
    cut: Option<Instant>,
}

impl Process {
    /// What it may use.
    fn uses(&self, key: WorkerKey) -> u32 {
        let of = |numbers: &BTreeMap<WorkerKey, u32>| numbers.get(&key).copied().unwrap_or(0);
        of(&self.believes).max(of(&self.running))
    }

    fn acknowledge(&mut self) {
        let granted = |key: &WorkerKey| self.believes.get(key).copied();
        let over = self.running.iter().filter(|(key, running)| granted(key).is_some_and(|granted| **running > granted));
        let over = over.map(|(key, running)| (*key, *running)).collect();
        self.words.push(Word::Acknowledged(self.newest, over));
    }
}

/// The node and everybody around it.
struct Model {
    ledger: Ledger,
    now: Instant,
    sequence: u64,
    numbers: u32,
    capacity: u32,
    keys: Vec<WorkerKey>,
    /// With a stream.
    balancers: BTreeMap<u8, Process>,
    /// Without one.
    strays: Vec<Process>,
    /// What each said last.
    wants: BTreeMap<u8, u32>,
}

impl Model {
    fn new(capacity: u32) -> Self {
        Self {
            ledger: Ledger::new(3),
            now: Instant::now(),
            sequence: 0,
            numbers: 0,
            capacity,
            keys: (0..3).map(|position| (position, 1)).collect(),
            balancers: BTreeMap::new(),
            strays: Vec::new(),
            wants: BTreeMap::new(),
        }
    }

    /// Every process that believes in something has a connection, and all of its slots busy where it has no stream.
    fn look(&mut self) {
        let presences: Vec<Vec<Presence>> = self.keys.iter().map(|key| self.presences(*key)).collect();
        let workers: Vec<Worker<'_>> = self
            .keys
            .iter()
            .zip(&presences)
            .map(|(key, presences)| Worker { presences, ..worker(*key, self.capacity) })
            .collect();
        self.ledger.observe(&workers);
        self.ledger.plan(self.now);
    }

    fn presences(&self, key: WorkerKey) -> Vec<Presence> {
        let strays = self.strays.iter().map(|stray| (stray, stray.uses(key)));
        let others = self.balancers.values().map(|balancer| (balancer, 0));
        let all = strays.chain(others);
        all.map(|(process, busy)| Presence { balancer: process.number, connections: 1, busy, orphaned: 0 }).collect()
    }

    fn report(&mut self, n: u8) {
        self.sequence += 1;
        let grants = self.ledger.report(&n.to_string(), self.sequence, self.now);
        let grants = self.keys.iter().copied().zip(grants).collect();
        if let Some(balancer) = self.balancers.get_mut(&n) {
            balancer.reports.push((self.sequence, grants));
        }
    }

    fn deliver(&mut self, n: u8) {
        if let Some(balancer) = self.balancers.get_mut(&n).filter(|balancer| !balancer.reports.is_empty()) {
            let (sequence, grants) = balancer.reports.remove(0);
            (balancer.newest, balancer.believes) = (sequence, grants);
            balancer.acknowledge();
        }
    }

    fn hear(&mut self, n: u8) {
        let Some(balancer) = self.balancers.get_mut(&n).filter(|balancer| !balancer.words.is_empty()) else { return };
        match balancer.words.remove(0) {
            Word::Acknowledged(sequence, over) => {
                self.ledger.acknowledge(&n.to_string(), sequence, &over, self.now);
            }
            Word::Yielded(sequence, worker) => self.ledger.yielded(&n.to_string(), sequence, worker, 1, self.now),
        }
    }

    /// Gives back what it believes in and does not use.
    fn give_back(&mut self, n: u8, position: u8) {
        let key = self.keys[usize::from(position)];
        let Some(balancer) = self.balancers.get_mut(&n) else { return };
        let running = balancer.running.get(&key).copied().unwrap_or(0);
        if let Some(believes) = balancer.believes.get_mut(&key).filter(|believes| **believes > running) {
            *believes -= 1;
            balancer.words.push(Word::Yielded(balancer.newest, key));
        }
    }

    fn want(&mut self, n: u8, wanted: u32, wait: Duration) {
        self.wants.insert(n, wanted);
        let sequence = self.balancers.get(&n).map_or(0, |balancer| balancer.newest);
        self.ledger.demand(&n.to_string(), Demand { waiting: wanted, wanted, wait, sequence }, self.now);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open(n) => {
                if self.balancers.contains_key(&n) {
                    return;
                }
                self.numbers += 1;
                self.ledger.open(&n.to_string());
                self.ledger.welcome(&n.to_string(), self.numbers);
                if n % 2 == 0 {
                    self.ledger.lets_yield(&n.to_string());
                }
                self.balancers.insert(n, Process { number: self.numbers, ..Process::default() });
            }
            Step::Leave(n) => {
                self.ledger.close(&n.to_string());
                self.balancers.remove(&n);
            }
            Step::Die(n) => {
                self.ledger.lose(&n.to_string(), UNAWARE, self.now);
                self.balancers.remove(&n);
            }
            Step::Cut(n) => {
                self.ledger.lose(&n.to_string(), UNAWARE, self.now);
                if let Some(process) = self.balancers.remove(&n) {
                    self.strays.push(Process { cut: Some(self.now + UNAWARE), ..process });
                }
            }
            Step::Report(n) => self.report(n),
            Step::Deliver(n) => self.deliver(n),
            Step::Hear(n) => self.hear(n),
            Step::Want(n, wanted, age) => self.want(n, wanted.into(), ms(age.into())),
            Step::Run(n) => {
                if let Some(balancer) = self.balancers.get_mut(&n) {
                    for (key, believes) in &balancer.believes {
                        let running = balancer.running.entry(*key).or_default();
                        *running = (*running).max(*believes);
                    }
                }
            }
            Step::Finish(n) => self.finish(n),
            Step::Yield(n, position) => self.give_back(n, position),
            Step::Replace(position) => self.keys[usize::from(position)].1 += 1,
            Step::Pass(time) => {
                self.now += ms(time.into());
                // what it notices, it lets go of
                let now = self.now;
                self.strays.retain(|stray| stray.cut.is_some_and(|until| until > now));
            }
        }
        self.look();
    }

    fn believed(&self, key: WorkerKey) -> u32 {
        let all = self.balancers.values().chain(&self.strays);
        all.map(|process| process.uses(key)).sum()
    }

    fn believes(&self, n: u8, position: u8) -> u32 {
        let key = self.keys[usize::from(position)];
        self.balancers.get(&n).and_then(|balancer| balancer.believes.get(&key).copied()).unwrap_or(0)
    }

    fn finish(&mut self, n: u8) {
        if let Some(balancer) = self.balancers.get_mut(&n) {
            balancer.running.clear();
            balancer.acknowledge();
        }
    }

    /// Nothing more happens, and what is on its way arrives; the rounds it takes.
    fn come_to_rest(&mut self) -> usize {
        let names: Vec<u8> = self.balancers.keys().copied().collect();
        for n in &names {
            self.finish(*n);
            while self.balancers.get(n).is_some_and(|b| !(b.reports.is_empty() && b.words.is_empty())) {
                self.deliver(*n);
                self.hear(*n);
            }
        }
        self.look();
        for round in 0..100 {
            let stale: Vec<u8> = names.iter().copied().filter(|n| self.ledger.is_stale(&n.to_string())).collect();
            if stale.is_empty() {
                return round;
            }
            for n in stale {
                let lack = self.ledger.lack(&n.to_string(), self.now).permits;
                self.report(n);
                self.deliver(n);
                self.hear(n);
                // who wants nothing gives what the others lack, from wherever it is
                let gives = if self.wants.get(&n).is_none_or(|wanted| *wanted == 0) { lack } else { 0 };
                let has = |model: &Self, position: u8| model.believes(n, position) > 0;
                for _ in 0..gives {
                    if let Some(position) = (0..3).find(|position| has(self, *position)) {
                        self.give_back(n, position);
                        self.hear(n);
                    }
                }
            }
            self.look();
        }
        panic!("no rest: {:?}", self.ledger);
    }

    /// All strays have noticed, and nobody remembers them.
    fn forget_strays(&mut self) {
        self.strays.clear();
        self.now += UNAWARE;
        self.look();
        assert!(!self.ledger.is_haunted());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn balancers_together_never_believe_in_more_than_there_is(
        steps in prop::collection::vec(step(), 1..300), capacity in 1_u32..20,
    ) {
        let mut model = Model::new(capacity);
        model.look();
        for step in steps {
            model.step(step);
            for key in model.keys.clone() {
                let believed = model.believed(key);
                prop_assert!(believed <= capacity, "{believed} of {capacity} after {step:?}");
            }
        }
        // left alone, everything is given to somebody
        model.forget_strays();
        for n in 0..4 {
            model.want(n, 0, Duration::ZERO);
        }
        model.come_to_rest();
        if !model.balancers.is_empty() {
            for key in model.keys.clone() {
                prop_assert_eq!(model.believed(key), capacity);
            }
        }
        prop_assert!(model.ledger.books.iter().all(|book| book.held <= u64::from(capacity)));
    }

    #[test]
    fn where_nobody_ever_wanted_anything_all_have_equal_shares(
        steps in prop::collection::vec(step().prop_filter("no demand", |step| !matches!(step, Step::Want(..))), 1..100),
        capacity in 1_u32..20,
    ) {
        let mut model = Model::new(capacity);
        model.look();
        for step in steps {
            model.step(step);
        }
        model.forget_strays();
        model.come_to_rest();
        for key in &model.keys {
            let grants: Vec<u32> = model.balancers.values().map(|balancer| balancer.believes.get(key).copied().unwrap_or(0)).collect();
            if let (Some(most), Some(least)) = (grants.iter().max(), grants.iter().min()) {
                prop_assert!(most - least <= 1);
            }
        }
        prop_assert_eq!(model.ledger.moves(), 0);
    }

    /// Whatever was before: when it is said who wants how much, it is served from what others do not use within a few
    /// rounds, and nothing moves after that.
    #[test]
    fn nobody_keeps_what_he_does_not_want_while_another_one_wants_it(
        steps in prop::collection::vec(step(), 1..100), capacity in 1_u32..20,
        wants in prop::collection::vec((any::<bool>(), 1_u32..40), 4),
    ) {
        let mut model = Model::new(capacity);
        model.look();
        for step in steps {
            model.step(step);
        }
        model.forget_strays();
        for n in 0..4 {
            model.want(n, 0, Duration::ZERO);
        }
        model.come_to_rest();
        // what it believes of a worker that is gone helps nobody
        let of = |model: &Model, n: u8, key: &WorkerKey| model.balancers[&n].believes.get(key).copied().unwrap_or(0);
        let has = |model: &Model, n: u8| model.keys.iter().map(|key| of(model, n, key)).sum::<u32>();
        let names: Vec<u8> = model.balancers.keys().copied().collect();
        let mut goals = BTreeMap::new();
        for &n in &names {
            let (wants, wanted) = wants[usize::from(n)];
            if wants {
                goals.insert(n, has(&model, n) + wanted);
            }
        }
        for (n, goal) in &goals {
            let wanted = goal - has(&model, *n);
            model.want(*n, wanted, Duration::ZERO);
        }
        model.look();
        let rounds = model.come_to_rest();
        prop_assert!(rounds <= 8, "{rounds} rounds");
        let left: u32 = names.iter().filter(|n| !goals.contains_key(n)).map(|n| has(&model, *n)).sum();
        let hungry = goals.iter().any(|(n, goal)| has(&model, *n) < *goal);
        prop_assert!(!hungry || left == 0, "{left} are left to those that want nothing");

        // more than there is for all of them, equally long: once they have it all, nothing is exchanged
        let mut moves = None;
        for round in 0..20 {
            for n in goals.keys() {
                model.want(*n, 200, ms(100 + round % 3));
            }
            model.look();
            model.come_to_rest();
            model.now += ms(19);
            let before = *moves.get_or_insert_with(|| model.ledger.moves());
            prop_assert_eq!(model.ledger.moves(), before);
        }
    }
}
