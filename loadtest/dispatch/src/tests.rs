//! What holds of every run, and what theory says of some.

use crate::{
    outcome::Outcome,
    policy::PolicyName,
    scenario::{Messages, Scenario},
};
use std::time::Duration;

/// Few enough requests for a debug build.
fn seconds(duration: u64) -> Scenario {
    Scenario { duration: Duration::from_secs(duration), warmup: Duration::from_millis(500), ..Scenario::default() }
}

#[test]
fn the_same_seed_gives_the_same_result_and_another_one_another() {
    let lossy = Messages { loss: 0.001, ..Messages::default() };
    let scenario = Scenario { messages: lossy, ..seconds(2) };
    for name in PolicyName::ALL {
        let one = name.run(&scenario);
        assert!(one == name.run(&scenario), "{name}");
        assert!(one != name.run(&Scenario { seed: 2, ..scenario.clone() }), "{name}");
    }
}

#[test]
fn nothing_is_lost() {
    let lossy = Messages { loss: 0.001, stale: Duration::from_millis(5), ..Messages::default() };
    let scenarios = [
        Scenario { load: 0.95, ..seconds(2) },
        Scenario { balancers: 20, ..seconds(2) },
        Scenario { messages: lossy, skew: 1.0, ..seconds(2) },
        Scenario { load: 5.0, slow_nodes: 1, ..seconds(2) },
    ];
    for scenario in scenarios {
        for name in PolicyName::ALL {
            let outcome = name.run(&scenario);
            assert!(outcome.arrived > 500, "{name}: {} arrived", outcome.arrived);
            assert_eq!(outcome.arrived, outcome.served + outcome.shed + outcome.left, "{name}");
            assert_eq!(outcome.left, 0, "{name}: a request was forgotten under {scenario:?}");
            assert!(outcome.shed == 0 || scenario.load > 1.0, "{name} under {scenario:?}");
        }
    }
}

/// The mean wait in a queue before `slots` servers, in units of the mean service time (Erlang's second formula).
fn erlang(slots: u32, load: f64) -> f64 {
    let offered = f64::from(slots) * load;
    let blocked = (1..=slots).fold(1.0, |blocked, n| offered * blocked / (f64::from(n) + offered * blocked));
    let waits = blocked / (1.0 - load * (1.0 - blocked));
    waits / (f64::from(slots) * (1.0 - load))
}

#[test]
fn the_ideal_waits_as_long_as_theory_says() {
    assert!((erlang(1, 0.7) - 0.7 / 0.3).abs() < 1e-9);
    for (slots, load, duration, tolerance) in [(1, 0.7, 1000, 0.1), (16, 0.9, 100, 0.15)] {
        let one = Scenario { nodes: 1, workers: 1, slots, load, ..seconds(duration) };
        let scenario = Scenario { service: "exp:10".parse().unwrap(), ..one };
        let mean = PolicyName::Ideal.run(&scenario).wait_mean().as_secs_f64() * 1e3;
        let theory = erlang(slots, load) * 10.0;
        assert!((mean / theory - 1.0).abs() < tolerance, "{slots} slots: {mean} ms instead of {theory}");
    }
}

#[test]
fn nobody_beats_the_ideal_queue_and_round_robin_is_far_from_it() {
    let scenario = seconds(10);
    let mean = |outcome: &Outcome| outcome.wait_mean().as_secs_f64();
    let ideal = mean(&PolicyName::Ideal.run(&scenario));
    for name in PolicyName::ALL {
        let other = mean(&name.run(&scenario));
        assert!(other >= ideal * 0.99, "{name}: {other} s, the ideal {ideal} s");
        assert!(name != PolicyName::RoundRobin || other > 3.0 * ideal, "{other} s, the ideal {ideal} s");
    }
}

#[test]
fn no_slot_gets_a_second_request() {
    for balancers in [1, 4, 7] {
        let outcome = PolicyName::Servery.run(&Scenario { balancers, load: 0.95, ..seconds(5) });
        assert_eq!((outcome.queued_at_workers, outcome.refused), (0, 0), "{balancers} balancers");
    }
}

#[test]
fn four_balancers_are_close_to_one_queue() {
    let scenario = seconds(60);
    let p99 = |name: PolicyName| name.run(&scenario).wait(990).as_secs_f64();
    let (ours, ideal) = (p99(PolicyName::Servery), p99(PolicyName::Ideal));
    assert!(ours <= 1.3 * ideal, "{ours} s, the ideal {ideal} s");
}
