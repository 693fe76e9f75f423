//! The command line: flags in, a scenario or a command out.

use crate::{
    policy::PolicyName,
    scenario::{Messages, Scenario},
    service::Service,
};
use clap::{Arg, ArgMatches, Command, error::ErrorKind, value_parser};
use std::{path::PathBuf, time::Duration};

/// What to do.
#[derive(Debug)]
pub enum Task {
    Run {
        scenario: Box<Scenario>,
        policies: Vec<PolicyName>,
        out: Option<PathBuf>,
    },
    /// Write `RESULTS.md` and `waits.svg` here.
    Table {
        seed: u64,
        threads: usize,
        folder: PathBuf,
    },
    Cost,
}

/// Reads the words of the command line; what is wrong with them ends the program with 64's meaning, wrong usage.
pub fn task(words: impl IntoIterator<Item = String>) -> Result<Task, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(words)?;
    match matches.subcommand() {
        Some(("table", matches)) => Ok(Task::Table {
            seed: given(matches, "seed"),
            threads: given(matches, "threads"),
            folder: given(matches, "folder"),
        }),
        Some(("cost", _)) => Ok(Task::Cost),
        _ => {
            let scenario = scenario(&matches);
            if let Some(mistake) = mistake(&scenario) {
                return Err(command.error(ErrorKind::ValueValidation, mistake));
            }
            let policies =
                matches.get_many("policy").map_or_else(|| PolicyName::ALL.to_vec(), |all| all.copied().collect());
            Ok(Task::Run { scenario: Box::new(scenario), policies, out: matches.get_one("out").cloned() })
        }
    }
}

fn command() -> Command {
    Command::new("dispatch")
        .version(env!("CARGO_PKG_VERSION"))
        .about("How long requests wait for a slot: Servery's dispatch in virtual time beside other policies")
        .args_conflicts_with_subcommands(true)
        .arg(flag("balancers", "N", "4", "Balancers that share the nodes").value_parser(value_parser!(u32).range(1..=1000)))
        .arg(flag("nodes", "N", "4", "Nodes").value_parser(value_parser!(u32).range(1..=100_000)))
        .arg(flag("workers", "N", "4", "Workers of each node").value_parser(value_parser!(u32).range(1..=1024)))
        .arg(flag("slots", "N", "1", "Slots of each worker").value_parser(value_parser!(u32).range(1..=1024)))
        .arg(flag("load", "SHARE", "0.9", "Of what the workers can do").value_parser(value_parser!(f64)))
        .arg(
            flag("service", "TIMES", "bimodal:20,200,0.1", "exp:MEAN, fixed:TIME, bimodal:SHORT,LONG,SHARE, lognormal:MEAN,SIGMA, pareto:LEAST,MOST,ALPHA (ms), or file:PATH with a number of ms in each line")
                .value_parser(value_parser!(Service)),
        )
        .arg(
            Arg::new("policy")
                .long("policy")
                .value_name("NAME,...")
                .value_delimiter(',')
                .value_parser(value_parser!(PolicyName))
                .help("ideal, servery, maxconn, jiq, prequal, least, ewma, p2c, rr [all of them]"),
        )
        .arg(seed())
        .arg(time("duration", "600s", "Requests arrive for so long"))
        .arg(time("warmup", "10s", "What arrives before is not counted"))
        .arg(flag("skew", "POWER", "0", "The n-th balancer gets 1/n to this power of the requests").value_parser(value_parser!(f64)))
        .arg(flag("slow-nodes", "N", "0", "So many nodes are slow").value_parser(value_parser!(u32)))
        .arg(flag("slow-factor", "TIMES", "5", "By so much").value_parser(value_parser!(f64)))
        .arg(time("network", "250us", "A request or a response, one way"))
        .arg(time("message-delay", "200us", "A message of the control plane, one way"))
        .arg(time("message-jitter", "100us", "Up to so much more"))
        .arg(time("stale", "0ms", "So much more for the reports of nodes"))
        .arg(time("load-reports", "25ms", "A node reports mere load within this time"))
        .arg(flag("loss", "SHARE", "0", "Of the messages that break their stream").value_parser(value_parser!(f64)))
        .arg(
            Arg::new("out")
                .long("out")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Draw the waits as SVG"),
        )
        .subcommand(
            Command::new("table")
                .about("Makes the committed tables and their chart")
                .arg(seed())
                .arg(flag("threads", "N", "2", "Runs at a time").value_parser(value_parser!(usize)))
                .arg(flag("folder", "DIR", "loadtest/dispatch", "Where RESULTS.md and waits.svg go").value_parser(value_parser!(PathBuf))),
        )
        .subcommand(Command::new("cost").about("Measures what the app's mutex costs on this machine"))
}

fn seed() -> Arg {
    flag("seed", "N", "1", "The same number gives the same result").value_parser(value_parser!(u64))
}

fn flag(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).default_value(default).help(help)
}

fn time(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    flag(name, "TIME", default, help).value_parser(|text: &str| humantime::parse_duration(text))
}

fn scenario(matches: &ArgMatches) -> Scenario {
    let count = |name| given::<u32>(matches, name) as usize;
    let span = |name| given::<Duration>(matches, name);
    Scenario {
        seed: given(matches, "seed"),
        balancers: count("balancers"),
        nodes: count("nodes"),
        workers: count("workers"),
        slots: given(matches, "slots"),
        load: given(matches, "load"),
        service: given(matches, "service"),
        skew: given(matches, "skew"),
        slow_nodes: count("slow-nodes"),
        slow_factor: given(matches, "slow-factor"),
        duration: span("duration"),
        warmup: span("warmup"),
        network: span("network"),
        messages: Messages {
            delay: span("message-delay"),
            jitter: span("message-jitter"),
            stale: span("stale"),
            loss: given(matches, "loss"),
            load: span("load-reports"),
        },
    }
}

/// What would make a run without sense or end.
fn mistake(scenario: &Scenario) -> Option<&'static str> {
    let within = |number: f64, least: f64, most: f64| (least..=most).contains(&number);
    if !within(scenario.load, 0.001, 10.0) {
        return Some("a load is a number between 0.001 and 10");
    }
    if !within(scenario.messages.loss, 0.0, 0.5) {
        return Some("a loss is a number between 0 and 0.5");
    }
    if !within(scenario.slow_factor, 0.01, 1000.0) || !within(scenario.skew, 0.0, 10.0) {
        return Some("a slow factor is a number between 0.01 and 1000, a skew one between 0 and 10");
    }
    (scenario.warmup >= scenario.duration).then_some("the warm-up must be shorter than the duration")
}

fn given<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> T {
    matches.get_one::<T>(name).cloned().expect("every flag that is asked for has a default")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Task, clap::Error> {
        task(std::iter::once("dispatch").chain(words.split_whitespace()).map(ToOwned::to_owned))
    }

    #[test]
    fn a_run_without_flags_is_the_base_cluster_under_every_policy() {
        command().debug_assert();
        let Task::Run { scenario, policies, out: None } = parse("").unwrap() else { panic!("not a run") };
        assert_eq!(format!("{scenario:?}"), format!("{:?}", Scenario::default()));
        assert_eq!(policies, PolicyName::ALL);
    }

    #[test]
    fn flags_are_read_and_what_makes_no_sense_is_refused() {
        let Task::Run { scenario, policies, .. } =
            parse("--balancers 7 --policy rr,jiq --service exp:5 --duration 3s --warmup 1s --loss 0.01").unwrap()
        else {
            panic!("not a run")
        };
        assert_eq!((scenario.balancers, scenario.duration), (7, Duration::from_secs(3)));
        assert_eq!(policies, [PolicyName::RoundRobin, PolicyName::JoinIdle]);
        assert!(matches!(parse("table --seed 9"), Ok(Task::Table { seed: 9, .. })));
        for wrong in ["--load 0", "--load x", "--balancers 0", "--policy best", "--duration 1s", "--loss 2"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
