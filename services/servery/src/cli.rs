//! The command line: words and flags in, the configuration layer they make out. Values are not judged here: a flag
//! is text until the configuration reads it, so that all mistakes of a run come together.

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::{
    io::{self, Write as _},
    path::PathBuf,
};

/// A role that runs as a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Balancer,
    App,
    CertSidecar,
}

impl Role {
    /// The word on the command line.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::App => "app",
            Self::CertSidecar => "cert-sidecar",
        }
    }

    /// The name in configuration, metrics and certificates.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::App => "app_server",
            Self::CertSidecar => "cert_sidecar",
        }
    }

    fn keys(self) -> &'static [Key] {
        match self {
            Self::Balancer => BALANCER,
            Self::App => APP_SERVER,
            Self::CertSidecar => CERT_SIDECAR,
        }
    }
}

/// A configuration key that is a flag too: name, value, help.
struct Key(&'static str, &'static str, &'static str);

const SHARED: &[Key] = &[
    Key("cluster", "NAME", "Name of the cluster in every identity [servery]"),
    Key("data", "DIR", "Where this process keeps its state [/var/lib/servery]"),
    Key("token_file", "FILE", "The join token of this role [/run/servery/token]"),
    Key("sidecar", "NAME:PORT", "Where the cert-sidecar is [cert-sidecar:7401]"),
    Key("nameservers", "ADDR:PORT,...", "DNS servers [the system's]"),
];
const BALANCER: &[Key] = &[
    Key("http", "ADDR", "Plain HTTP: redirects to HTTPS [:8080]"),
    Key("https", "ADDR", "HTTPS; `off` serves everything over plain HTTP [:8443]"),
    Key("public_https_port", "PORT", "The port that redirects name [that of --https]"),
    Key("control", "ADDR", "Where nodes register [:7400]"),
    Key("admin", "ADDR", "Metrics, health and status [:9180]"),
    Key("trusted_proxies", "NET,...", "Whose forwarding fields are believed [none]"),
    Key("proxy_protocol", "NET,...", "Whose connections begin with a PROXY header [none]"),
    Key("debug_networks", "NET,...", "Who is told with Servery-Debug how a request was dispatched [none]"),
    Key("advertised_networks", "NET,...", "Where a node may say its workers are, beside its own address [none]"),
    Key("queue_length", "N", "Requests that may wait for one app [1024]"),
    Key("queue_client_share", "SHARE", "How much of it one client may fill while another one waits [50%]"),
    Key("stalled_client_share", "SHARE", "How many of an app's places one client may hold and stand still [50%]"),
    Key("queue_deadline", "TIME", "How long a request waits at most [10s]"),
    Key("response_timeout", "TIME", "How long a worker may take to begin its response [60s]"),
    Key("connect_timeout", "TIME", "How long a connection to a worker may take [2s]"),
    Key("header_timeout", "TIME", "How long a client may take for a request's head [10s]"),
    Key("keepalive_timeout", "TIME", "How long a client's connection may be idle between two requests [75s]"),
    Key("handshake_timeout", "TIME", "How long a TLS handshake may take [10s]"),
    Key("body_timeout", "TIME", "How long a body may stand still [60s]"),
    Key("max_body", "SIZE", "The largest request body [1GiB]"),
    Key("max_connections", "N", "Client connections at once [16384]"),
    Key("idle_memory", "SIZE", "What connections may hold in all while nothing happens on them [48MiB]"),
    Key("max_connections_per_client", "N", "Of one client, an IPv4 address or IPv6 /64, at once; 0: no limit [0]"),
    Key("requests_per_connection", "N", "After so many a client's connection ends; 0: never [0]"),
    Key("drain", "TIME", "How long to finish what is in flight at the end [30s]"),
    Key("start_hold", "TIME", "How long to wait for nodes before being ready [10s]"),
    Key("cache_certificates", "BOOL", "Keep public certificates in the data directory [false]"),
    Key("access_log", "WHERE", "`stdout`, `off`, or the path of a file that SIGUSR1 opens anew [stdout]"),
    Key("access_log_format", "FORMAT", "`json` or `combined` [json]"),
    Key("access_log_sample", "SHARE", "How many of the requests that went well are logged, 0 to 1 [1]"),
    Key("access_log_query", "BOOL", "Log query strings [false]"),
    Key("trace_sample", "SHARE", "How many of the traces begun here are marked to be recorded, 0 to 1 [1]"),
    Key("threads", "N", "Data-plane threads [number of cores]"),
];
const APP_SERVER: &[Key] = &[
    Key("name", "NAME", "Name of this node [host name]"),
    Key("app", "NAME", "Name of the application it serves [demo]"),
    Key("join", "NAME:PORT,...", "Balancers to register with; every address of a name"),
    Key(
        "bind",
        "ADDR",
        "Serve clients without a balancer: ADDR:PORT, :PORT or unix:PATH [127.0.0.1:8000, unless --join]",
    ),
    Key(
        "workers",
        "N",
        "Worker processes, or `auto`: as many as the cores this process may use (affinity and cgroup quota count) [auto]",
    ),
    Key("workers_max", "N", "Up to how many workers while requests wait [--workers: never more]"),
    Key("capacity", "N", "Requests at once in one worker [256]"),
    Key("exec", "PROGRAM", "Your own worker program [the built-in demo application]"),
    Key("timeout", "TIME", "How long the application may be silent before and within its response [30s]"),
    Key("graceful_timeout", "TIME", "How long to finish what is in flight at the end [30s]"),
    Key("start_timeout", "TIME", "How long a worker may take to be ready [30s]"),
    Key("heartbeat", "TIME", "How long a worker or this node is silent at most [1s]"),
    Key("max_requests", "N", "Replace a worker after so many requests; 0: never [0]"),
    Key("max_requests_jitter", "N", "Up to so many more, drawn for each worker [a tenth of --max-requests]"),
    Key("max_lifetime", "TIME", "Replace a worker after so much time and up to a tenth more [never]"),
    Key("max_rss", "SIZE", "Replace a worker that holds so much memory [never]"),
    Key("max_rss_hard", "SIZE", "Kill a worker that holds so much memory [never]"),
    Key("replace_at_once", "PERCENT", "Share of the workers that is replaced at the same time, at least one [25%]"),
    Key("limit_request_line", "BYTES", "Longest request line, else 414 [16384]"),
    Key("limit_request_fields", "N", "Most header fields, else 431 [256]"),
    Key("limit_request_field_size", "BYTES", "Longest header field, else 431 [32768]"),
    Key("max_body", "SIZE", "The largest request body, else 413 [1GiB]"),
    Key("header_timeout", "TIME", "How long a request's head may take, else 408 [10s]"),
    Key("body_timeout", "TIME", "How long a request's body may stand still, else 408 [60s]"),
    Key("keepalive", "TIME", "With --bind: how long a connection may be idle between requests; 0s: one request [2s]"),
    Key("forwarded_allow_ips", "NET,...", "With --bind: whose forwarding fields are believed [none]"),
    Key("proxy_protocol", "off|v1|v2|auto", "With --bind: the header that every connection must begin with [off]"),
    Key("proxy_allow_ips", "NET,...", "With --bind: who may send that header [this machine]"),
    Key("access_log", "FILE", "With --bind: JSON lines of all requests, `-` for stdout [none]"),
    Key(
        "log_file",
        "FILE",
        "Where the node's log and what its workers write to stderr go; SIGUSR1 opens it anew [stderr]",
    ),
    Key("pid", "FILE", "Holds the process id while the node runs [none]"),
    Key("worker_bind", "ADDR", "With --join: first address for the workers; each takes the next free port [:9000]"),
    Key("advertise", "HOST", "Where balancers reach the workers [the address they see]"),
    Key("admin", "ADDR", "Metrics, health and status [:9180, with --bind 127.0.0.1:9180]"),
];
const CERT_SIDECAR: &[Key] = &[
    Key("listen", "ADDR", "Enrolment and certificates [:7401]"),
    Key("admin", "ADDR", "Metrics, health and status [:9180]"),
    Key("identity_lifetime", "TIME", "How long an identity is good; renewed at a seventh of it [7d]"),
];

/// The whole command line.
pub(crate) fn command() -> Command {
    Command::new("servery")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The whole web stack as one system: balancer, app-servers, certificates")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(crate::up::command())
        .subcommand(
            role(Role::Balancer, "Terminates TLS, routes, queues, and forwards to a free worker").arg(
                Arg::new("takeover")
                    .long("takeover")
                    .action(ArgAction::SetTrue)
                    .help("Take the sockets of the balancer that runs with this data directory, which then drains"),
            ),
        )
        .subcommand(
            role(Role::App, "Runs a pool of worker processes, behind balancers (--join) or by itself (--bind)")
                .arg(Arg::new("APP").help("A WSGI application as module:callable (not there yet)"))
                .arg(Arg::new("threads").long("threads").value_name("N").help("WSGI threads (not there yet)")),
        )
        .subcommand(role(Role::CertSidecar, "Keeps the certificates: internal CA, enrolment, host names"))
        .subcommand(Command::new("worker").hide(true).about("The built-in demo application as a worker"))
        .subcommand(
            Command::new("check")
                .about("Prints every mistake of a configuration file with its line")
                .arg(Arg::new("file").value_name("FILE").required(true).value_parser(value_parser!(PathBuf))),
        )
        .subcommand(
            Command::new("health")
                .about("For container health checks: exit 0 or 1")
                .arg(Arg::new("ready").long("ready").action(ArgAction::SetTrue).help("Ready, not only alive"))
                .arg(config())
                .arg(admin()),
        )
        .subcommand(
            Command::new("status")
                .about("Nodes, workers, queue and certificates, as a balancer sees them or a node by itself (--bind)")
                .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("The whole of it as JSON"))
                .arg(
                    Arg::new("watch")
                        .long("watch")
                        .value_name("SECONDS")
                        .num_args(0..=1)
                        .default_missing_value("2")
                        .value_parser(value_parser!(u64).range(1..=3600))
                        .conflicts_with("json")
                        .help("Again and again until Ctrl-C, every so many seconds [2]"),
                )
                .arg(config())
                .arg(admin()),
        )
        .subcommand(crate::certs::command())
}

/// `--admin ADDR` of the commands that ask a running process.
fn admin() -> Arg {
    Arg::new("admin")
        .long("admin")
        .value_name("ADDR")
        .help("The admin address of the process to ask [the configured one, else port 9180 of this machine]")
}

/// `--config FILE`.
pub(crate) fn config() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("Configuration [$SERVERY_CONFIG, else /etc/servery/servery.toml if it is there]")
}

fn role(role: Role, about: &'static str) -> Command {
    let flags = SHARED.iter().chain(role.keys()).map(|Key(name, value, help)| {
        Arg::new(*name).long(name.replace('_', "-")).value_name(*value).help(*help).action(ArgAction::Append)
    });
    Command::new(role.command()).about(about).arg(config()).args(flags)
}

/// The flags that were given, as configuration: key and text. One that was given twice makes a list.
pub(crate) fn flags(role: Role, given: &ArgMatches) -> Vec<(String, String)> {
    let text = |name: &str| {
        let values: Vec<_> = given.get_many::<String>(name)?.map(String::as_str).collect();
        Some(values.join(","))
    };
    let shared = SHARED.iter().filter_map(|Key(name, ..)| Some(((*name).to_owned(), text(name)?)));
    let own = role.keys().iter().filter_map(|Key(name, ..)| Some((format!("{}.{name}", role.id()), text(name)?)));
    shared.chain(own).collect()
}

/// What the design promises and this version does not have yet is refused by name, never ignored.
pub(crate) fn refuse_what_is_not_there(role: Role, given: &ArgMatches) -> Result<(), String> {
    if role != Role::App {
        return Ok(());
    }
    if let Some(app) = given.get_one::<String>("APP") {
        return Err(format!(
            "`{app}` would be a WSGI application, and Python is not there yet. Run a program of your own with \
             `--exec PROGRAM` (an axum Router: see examples/axum), or none for the demo application."
        ));
    }
    if given.get_one::<String>("threads").is_some() {
        return Err("`--threads` is for WSGI applications, which are not there yet; see `--capacity`".to_owned());
    }
    Ok(())
}

/// Prints to stdout. A reader that has left, as `head` does, is no fault of ours.
pub(crate) fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// A runtime of one thread: this one. Children must be spawned from a thread that lives as long as the process.
pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn a_flag_becomes_its_key_and_twice_makes_a_list() {
        let given = command()
            .try_get_matches_from(["servery", "app", "--join", "a:7400", "--join", "b:7400", "--token-file", "/t"])
            .unwrap();
        let flags = flags(Role::App, given.subcommand_matches("app").unwrap());
        assert_eq!(
            flags,
            [("token_file".to_owned(), "/t".to_owned()), ("app_server.join".to_owned(), "a:7400,b:7400".to_owned())]
        );
    }

    #[test]
    fn every_key_of_an_app_server_is_a_flag() {
        let line = [
            "servery",
            "app",
            "--bind=:8000",
            "--workers=2",
            "--workers-max=4",
            "--max-requests=100",
            "--max-requests-jitter=10",
            "--max-lifetime=1h",
            "--max-rss=1GiB",
            "--max-rss-hard=2GiB",
            "--replace-at-once=25%",
            "--limit-request-line=4096",
            "--limit-request-fields=100",
            "--limit-request-field-size=8192",
            "--max-body=1MiB",
            "--header-timeout=5s",
            "--body-timeout=5s",
            "--keepalive=5s",
            "--forwarded-allow-ips=10.0.0.0/8",
            "--proxy-protocol=v1",
            "--proxy-allow-ips=10.0.0.1",
            "--access-log=-",
            "--log-file=/tmp/log",
            "--pid=/tmp/pid",
        ];
        let given = command().try_get_matches_from(line).unwrap();
        let flags = flags(Role::App, given.subcommand_matches("app").unwrap());
        assert_eq!(flags.len(), line.len() - 2);
        crate::role::Sections::load(None, flags).unwrap();
    }

    #[test]
    fn what_is_not_there_yet_is_refused_by_name() {
        for (line, word) in
            [(&["servery", "app", "shop:app"][..], "WSGI"), (&["servery", "app", "--threads", "4"], "--capacity")]
        {
            let given = command().try_get_matches_from(line).unwrap();
            let refusal = refuse_what_is_not_there(Role::App, given.subcommand_matches("app").unwrap()).unwrap_err();
            assert!(refusal.contains(word), "{refusal}");
        }
    }
}
