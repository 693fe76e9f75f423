//! Dispatch beside other servers: comes in the path of a `servery` binary, goes out what Servery, nginx, HAProxy and Gunicorn make of
//! the same load before the same one-slot workers, in one run, in alternated rounds, as Markdown on stdout.
//!
//! Loopback only, bounded in count and time. The workers of everybody but Gunicorn are this very program, started by an app-server.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command, value_parser};

mod bad_lines;
mod contender;
mod departures;
mod ideal;
mod machine;
mod makespan;
mod overload;
mod report;
mod slow_node;
mod worker;

/// What was asked for.
#[derive(Clone, Debug)]
struct Order {
    servery: PathBuf,
    rounds: usize,
    seconds: Duration,
    seed: u64,
}

fn main() -> ExitCode {
    if env::var_os("SERVERY_LISTEN_FD").is_some() {
        return servery_worker::run(worker::router());
    }
    let words = command().get_matches();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(&words));
    ExitCode::SUCCESS
}

fn command() -> Command {
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name).long(name).default_value(default).value_parser(value_parser!(u64)).help(help)
    };
    Command::new("bench-dispatch")
        .about("Dispatch beside other servers")
        .arg(Arg::new("servery").long("servery").required(true).value_parser(value_parser!(PathBuf)).help("the binary"))
        .arg(Arg::new("proof").required(true).num_args(1..).value_parser([
            "makespan",
            "slow-node",
            "overload",
            "departures",
            "bad-lines",
        ]))
        .arg(number("rounds", "3", "how often each contender has its turn (makespan: 40 at least)"))
        .arg(number("seconds", "30", "how long one load of slow-node lasts"))
        .arg(number("seed", "4", "of the arrivals"))
}

async fn run(words: &ArgMatches) {
    let number = |name: &str| *words.get_one::<u64>(name).expect("it has a default");
    let order = Order {
        // processes are started in directories of their own
        servery: words.get_one::<PathBuf>("servery").expect("it is required").canonicalize().expect("a binary"),
        rounds: usize::try_from(number("rounds")).expect("a number of rounds"),
        seconds: Duration::from_secs(number("seconds")),
        seed: number("seed"),
    };
    println!("{}\n", machine::describe());
    for proof in words.get_many::<String>("proof").into_iter().flatten() {
        let before = machine::cpu_time();
        let began = std::time::Instant::now();
        let table = match proof.as_str() {
            "makespan" => makespan::measure(&order).await,
            "slow-node" => slow_node::measure(&order).await,
            "overload" => overload::measure(&order).await,
            "departures" => departures::measure(&order).await,
            _ => bad_lines::measure(&order).await,
        };
        let busy = (machine::cpu_time() - before).as_secs_f64() / began.elapsed().as_secs_f64();
        println!("{table}\nThe load generator took {:.0} % of one core.\n", busy * 100.0);
    }
}
