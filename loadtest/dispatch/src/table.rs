//! The committed tables: every policy at every load with few and with many balancers, slow nodes, bad streams, and one
//! cluster of 10,000 nodes. Comes in a seed, go out Markdown and the chart.

use crate::{
    outcome::Outcome,
    plot::{Chart, Panel, Series},
    policy::PolicyName,
    scenario::{Messages, Scenario},
};
use std::{
    fmt::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

const LOADS: [f64; 4] = [0.5, 0.7, 0.9, 0.95];
/// Balancers, nodes, and seconds of arrivals: the first ones are not counted.
const CLUSTERS: [(usize, usize, u64, u64); 3] = [(1, 4, 1200, 10), (4, 4, 1200, 10), (100, 400, 2, 1)];
const LARGE: (usize, usize) = (100, 10_000);

/// A run that a table needs, and what came of it.
struct Cell {
    name: PolicyName,
    scenario: Scenario,
    outcome: Option<Outcome>,
    took: Duration,
}

/// Text and chart.
#[derive(Clone, Debug)]
pub struct Shown {
    pub markdown: String,
    pub svg: String,
}

/// Runs one scenario under each of the policies.
pub fn one(scenario: &Scenario, policies: &[PolicyName]) -> Shown {
    let mut cells = cells(std::slice::from_ref(scenario), policies);
    cells.iter_mut().for_each(Cell::run);
    let mut markdown = String::new();
    numbers(&mut markdown, &mut cells, &[String::new()]);
    let quantiles = [500, 900, 990, 999];
    let chart = Chart {
        title: "Wait for a slot in ms, by percentile".to_owned(),
        places: quantiles.map(|thousandths| format!("p{}", f64::from(thousandths) / 10.0)).to_vec(),
        panels: vec![Panel {
            title: format!(
                "{}, {} nodes, {:.0} % load",
                counted(scenario.balancers),
                scenario.nodes,
                scenario.load * 100.0
            ),
            series: cells
                .iter_mut()
                .map(|cell| Series {
                    name: cell.name.title().to_owned(),
                    values: quantiles
                        .map(|thousandths| Some(millis(cell.outcome().wait(thousandths as usize))))
                        .to_vec(),
                })
                .collect(),
        }],
        floor: 0.1,
    };
    Shown { markdown, svg: chart.svg() }
}

/// Runs everything that is committed, as many runs at a time as `threads`.
pub fn all(seed: u64, threads: usize) -> Shown {
    let base = Scenario { seed, ..Scenario::default() };
    let mut markdown = heading(&base);
    let mut panels = Vec::new();
    for (balancers, nodes, seconds, first) in CLUSTERS {
        let cluster = Scenario {
            balancers,
            nodes,
            duration: Duration::from_secs(seconds),
            warmup: Duration::from_secs(first),
            ..base.clone()
        };
        let scenarios = LOADS.map(|load| Scenario { load, ..cluster.clone() });
        let mut cells = cells(&scenarios, &PolicyName::ALL);
        run(&mut cells, threads);
        let title = format!("{}, {nodes} nodes x {} one-slot workers", counted(balancers), cluster.workers);
        let _ = writeln!(markdown, "## {title}\n");
        let places = LOADS.map(|load| format!("{:.0} %", load * 100.0));
        matrix(&mut markdown, &mut cells, &places);
        details(&mut markdown, &mut cells, &places);
        panels.push(Panel { title: format!("{}, {nodes} nodes", counted(balancers)), series: series(&mut cells) });
    }
    sizes(&mut markdown, &base, threads);
    slow(&mut markdown, &base, threads);
    bad_streams(&mut markdown, &base, threads);
    large(&mut markdown, &base);
    let chart = Chart {
        title: "99th percentile of the wait for a slot in ms, by load".to_owned(),
        places: LOADS.map(|load| format!("{:.0} %", load * 100.0)).to_vec(),
        panels,
        floor: 0.1,
    };
    Shown { markdown, svg: chart.svg() }
}

/// What `cost` has measured.
pub fn costs(table: &str) -> String {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    format!(
        "## What the app's mutex costs\n\nA permit acquired and given back (`App::acquire`, drop) on this machine ({cores} cores), median of rounds. With two threads both do as many pairs as one alone: this is the time of one thread's pair.\n\n{table}"
    )
}

fn heading(base: &Scenario) -> String {
    format!(
        "# How long requests wait for a slot\n\nMade by `cargo run --release -p servery-dispatch-sim -- table --seed {}`; the same seed gives the same numbers. What is simulated and what a *wait* is: [README](../README.md#the-dispatch-simulator). \
         Service times `{}` (mean {} ms), {} µs one way for requests and responses, {} to {} µs for messages.\n\n![Waits](waits.svg)\n\n",
        base.seed,
        base.service,
        base.service.mean(),
        base.network.as_micros(),
        base.messages.delay.as_micros(),
        (base.messages.delay + base.messages.jitter).as_micros(),
    )
}

/// What more nodes change: the more slots there are, the less the ideal waits, and the more a message weighs.
fn sizes(markdown: &mut String, base: &Scenario, threads: usize) {
    let nodes = [4, 8, 16];
    let duration = Duration::from_secs(600);
    let mut cells = cells(&nodes.map(|nodes| Scenario { nodes, duration, ..base.clone() }), &PolicyName::ALL);
    run(&mut cells, threads);
    markdown.push_str("## More nodes\n\nFour balancers at 90 % load.\n\n");
    let places = nodes.map(|nodes| format!("{nodes} nodes"));
    matrix(markdown, &mut cells, &places);
    details(markdown, &mut cells, &places);
}

/// One third of the nodes is five times slower.
fn slow(markdown: &mut String, base: &Scenario, threads: usize) {
    let scenario = Scenario {
        nodes: 3,
        slow_nodes: 1,
        load: 0.7,
        balancers: 1,
        duration: Duration::from_secs(1200),
        ..base.clone()
    };
    let two = Scenario { balancers: 2, ..scenario.clone() };
    let mut cells = cells(&[scenario, two], &PolicyName::ALL);
    run(&mut cells, threads);
    markdown.push_str("## A slow node\n\nThree nodes x 4 one-slot workers, one node 5 times slower, at 70 % of what they really can do.\n\n");
    let places = ["1 balancer", "2 balancers"].map(ToOwned::to_owned);
    matrix(markdown, &mut cells, &places);
    details(markdown, &mut cells, &places);
}

/// Messages that are late, and streams that break.
fn bad_streams(markdown: &mut String, base: &Scenario, threads: usize) {
    let messages = base.messages;
    let stale = |ms| Messages { stale: Duration::from_millis(ms), ..messages };
    let lossy = |loss| Messages { loss, ..messages };
    let kinds = [messages, stale(5), stale(25), stale(100), lossy(0.0001), lossy(0.001)];
    let scenarios = kinds.map(|messages| Scenario { messages, ..base.clone() });
    let mut cells = cells(&scenarios, &[PolicyName::Ideal, PolicyName::Servery]);
    run(&mut cells, threads);
    markdown.push_str("## Late reports and broken streams\n\nFour balancers at 90 % load; the reports of nodes come so much later, or that share of all messages breaks its stream.\n\n");
    let places = ["as it is", "5 ms late", "25 ms late", "100 ms late", "1 of 10,000 lost", "1 of 1,000 lost"];
    let places = places.map(ToOwned::to_owned);
    matrix(markdown, &mut cells, &places);
    details(markdown, &mut cells, &places);
}

/// One run at a time, because it needs the memory.
fn large(markdown: &mut String, base: &Scenario) {
    let (balancers, nodes) = LARGE;
    let scenario = Scenario {
        balancers,
        nodes,
        duration: Duration::from_millis(1500),
        warmup: Duration::from_millis(500),
        messages: Messages { load: Duration::from_secs(1), ..base.messages },
        ..base.clone()
    };
    let _ = writeln!(
        markdown,
        "## 100 balancers, 10,000 nodes x {} one-slot workers\n\nAt {:.0} % load: {:.0} requests a second for {} ms, of which the first {} ms are not counted. Mere load is reported once a second here, as the nodes' heartbeat does: within 25 ms it would be 400,000 reports a second into every balancer.\n",
        scenario.workers,
        scenario.load * 100.0,
        scenario.load * scenario.capacity(),
        scenario.duration.as_millis(),
        scenario.warmup.as_millis()
    );
    markdown.push_str("| policy | p99 wait ms | mean ms | at once | requests | took |\n|---|---|---|---|---|---|\n");
    for name in PolicyName::ALL {
        let mut cell = Cell { name, scenario: scenario.clone(), outcome: None, took: Duration::ZERO };
        cell.run();
        let took = cell.took;
        let outcome = cell.outcome();
        let _ = writeln!(
            markdown,
            "| {} | {} | {} | {:.1} % | {} | {:.0} s |",
            name.title(),
            ms(outcome.wait(990)),
            ms(outcome.wait_mean()),
            outcome.at_once() * 100.0,
            outcome.counted(),
            took.as_secs_f64()
        );
    }
    markdown.push('\n');
}

fn cells(scenarios: &[Scenario], names: &[PolicyName]) -> Vec<Cell> {
    let cell =
        |name, scenario: &Scenario| Cell { name, scenario: scenario.clone(), outcome: None, took: Duration::ZERO };
    names.iter().flat_map(|name| scenarios.iter().map(|scenario| cell(*name, scenario))).collect()
}

/// Every cell on one of so many threads. Which thread changes nothing.
fn run(cells: &mut [Cell], threads: usize) {
    let next = AtomicUsize::new(0);
    let cells: Vec<_> = cells.iter_mut().map(std::sync::Mutex::new).collect();
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    cell.lock().expect("a cell that panicked ends the program").run();
                }
            });
        }
    });
}

impl Cell {
    fn run(&mut self) {
        // told beside the result, and no part of it
        let start = Instant::now();
        self.outcome = Some(self.name.run(&self.scenario));
        self.took = start.elapsed();
    }

    fn outcome(&mut self) -> &mut Outcome {
        self.outcome.as_mut().expect("a cell is shown after it has run")
    }
}

/// The 99th percentile of the wait, and how many times the ideal's it is.
fn matrix(markdown: &mut String, cells: &mut [Cell], places: &[String]) {
    markdown.push_str("p99 wait in ms, and how many times the ideal's:\n\n| policy |");
    for place in places {
        let _ = write!(markdown, " {place} |");
    }
    markdown.push_str("\n|---|");
    markdown.push_str(&"---|".repeat(places.len()));
    markdown.push('\n');
    let ideal: Vec<Duration> = cells[..places.len()].iter_mut().map(|cell| cell.outcome().wait(990)).collect();
    for row in cells.chunks_mut(places.len()) {
        let _ = write!(markdown, "| {} |", row[0].name.title());
        for (cell, ideal) in row.iter_mut().zip(&ideal) {
            let wait = cell.outcome().wait(990);
            let _ = if cell.name == PolicyName::Ideal || *ideal < Duration::from_millis(1) {
                write!(markdown, " {} |", ms(wait))
            } else {
                write!(markdown, " {} ({:.2} x) |", ms(wait), wait.as_secs_f64() / ideal.as_secs_f64())
            };
        }
        markdown.push('\n');
    }
    markdown.push('\n');
}

/// All the numbers, folded away.
fn details(markdown: &mut String, cells: &mut [Cell], places: &[String]) {
    markdown.push_str("<details><summary>all numbers</summary>\n\n");
    numbers(markdown, cells, places);
    markdown.push_str("\n</details>\n\n");
}

fn numbers(markdown: &mut String, cells: &mut [Cell], places: &[String]) {
    markdown.push_str(
        "| policy | | mean ms | p50 | p99 | p99.9 | response p99 | at once | served | shed | refused | moves | messages |\n",
    );
    markdown.push_str("|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (at, cell) in cells.iter_mut().enumerate() {
        let title = cell.name.title();
        let outcome = cell.outcome();
        let _ = writeln!(
            markdown,
            "| {title} | {} | {} | {} | {} | {} | {} | {:.1} % | {} | {} | {} | {} | {} |",
            places[at % places.len()],
            ms(outcome.wait_mean()),
            ms(outcome.wait(500)),
            ms(outcome.wait(990)),
            ms(outcome.wait(999)),
            ms(outcome.response(990)),
            outcome.at_once() * 100.0,
            outcome.served,
            outcome.shed,
            outcome.refused,
            outcome.moves,
            outcome.messages
        );
    }
}

fn series(cells: &mut [Cell]) -> Vec<Series> {
    let rows = cells.chunks_mut(LOADS.len()).map(|row| Series {
        name: row[0].name.title().to_owned(),
        values: row.iter_mut().map(|cell| Some(millis(cell.outcome().wait(990)))).collect(),
    });
    rows.collect()
}

fn counted(balancers: usize) -> String {
    format!("{balancers} balancer{}", if balancers == 1 { "" } else { "s" })
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Milliseconds with as many digits as mean something.
fn ms(time: Duration) -> String {
    let ms = millis(time);
    if ms >= 100.0 { format!("{ms:.0}") } else { format!("{ms:.1}") }
}
