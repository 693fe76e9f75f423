//! What `up` will run: flags in, one child process per role instance out, with every value checked and every port known
//! to be free. Starts nothing.

use super::ports;
use crate::{
    cli::Role,
    role::{Sections, variables},
};
use cert_sidecar::Right;
use chassis::{
    config::{Layers, Problems, Reader},
    listen::{ListenAddr, Reservation},
};
use clap::ArgMatches;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// What a child may take beyond its own drain before it is killed.
const MARGIN: Duration = Duration::from_secs(5);

/// The command line. What configuration judges is text still.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) nodes: u16,
    pub(super) admin: u16,
    pub(super) http_only: bool,
    /// Configuration keys that were given as flags.
    pub(super) flags: Vec<(String, String)>,
    pub(super) data: Option<PathBuf>,
    pub(super) config: Option<PathBuf>,
}

impl Options {
    pub(super) fn of(given: &ArgMatches) -> Self {
        let number = |name: &str| given.get_one::<u16>(name).copied().unwrap_or_default();
        let keys = [
            ("http", "balancer.http"),
            ("https", "balancer.https"),
            ("workers", "app_server.workers"),
            ("exec", "app_server.exec"),
        ];
        let flags = keys.into_iter().filter_map(|(name, key)| {
            let text = given.get_one::<String>(name)?;
            let public = name == "http" || name == "https";
            Some((key.to_owned(), if public { on_this_machine(text) } else { text.clone() }))
        });
        Self {
            nodes: number("nodes"),
            admin: number("admin"),
            http_only: given.get_flag("http-only"),
            flags: flags.collect(),
            data: given.get_one("data").cloned(),
            config: given.get_one("config").cloned(),
        }
    }
}

/// A bare port is on this machine only: `up` without a public name is for the person at the keyboard.
fn on_this_machine(text: &str) -> String {
    text.parse::<u16>().map_or_else(|_| text.to_owned(), |port| loopback(port).to_string())
}

fn loopback(port: u16) -> ListenAddr {
    ListenAddr::At((Ipv4Addr::LOCALHOST, port).into())
}

/// One child process.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// What a person calls it: `balancer`, `node-1`.
    pub(super) name: String,
    pub(super) arguments: Vec<String>,
    /// Where it answers `/readyz`.
    pub(super) admin: SocketAddr,
    /// From SIGTERM until it is killed.
    pub(super) grace: Duration,
}

/// The whole cluster.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) cert_sidecar: Member,
    pub(super) balancer: Member,
    pub(super) nodes: Vec<Member>,
    pub(super) http: ListenAddr,
    pub(super) https: ListenAddr,
    /// What the cert-sidecar is asked for before the others start, and the file in which they look for it.
    pub(super) tokens: Vec<(Right, PathBuf)>,
    /// The ports between the processes, kept for them as long as the plan is in force.
    pub(super) _reserved: Vec<Reservation>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PlanError {
    #[error("{source}; choose another port with --{flag}")]
    InUse { flag: &'static str, source: io::Error },
    #[error("no free port on this machine: {0}")]
    NoPort(io::Error),
}

/// What the configuration says of the whole cluster.
#[derive(Debug)]
pub(super) struct Settings {
    http: ListenAddr,
    https: ListenAddr,
    /// The nodes' right to their app.
    right: Right,
    app: String,
    balancer_drain: Duration,
    node_drain: Duration,
}

/// Where the processes find each other.
struct Addresses {
    enrolment: SocketAddr,
    registry: SocketAddr,
    /// The balancer's, the cert-sidecar's, one of each node.
    admins: Vec<SocketAddr>,
}

impl Settings {
    /// Configuration counts as for a role, with two exceptions: public listeners that nobody configured are on this
    /// machine only, and what connects the processes (addresses, tokens, directories) is `up`'s own.
    pub(super) fn read(options: &Options) -> Result<Self, Problems> {
        // the nodes get it: what does not go with it is found here and not by each of them
        let join = ("app_server.join".to_owned(), loopback(7400).to_string());
        let flags = options.flags.iter().cloned().chain([join]).collect();
        let layers = Layers::load(options.config.as_deref(), variables(), flags)?;
        let mut reader = Reader::new(&layers);
        let sections = Sections::read(&mut reader);
        let http = reader.read("balancer.http", loopback(8080));
        let https = match reader.read("balancer.https", loopback(8443)) {
            _ if options.http_only => ListenAddr::Off,
            https => https,
        };
        if http.is_off() && https.is_off() {
            reader.refuse("balancer.http", "without HTTP and without HTTPS there is nothing to serve");
        }
        reader.finish()?;
        let app = sections.app_server.app;
        let configured = sections.cert_sidecar.tokens.into_iter().map(|token| token.right);
        let of_this_app = |right: &Right| matches!(right, Right::AppServer { app: named, .. } if *named == app);
        let everywhere = || Right::AppServer { app: app.clone(), prefixes: vec!["/".to_owned()] };
        let right = configured.into_iter().find(of_this_app).unwrap_or_else(everywhere);
        Ok(Self {
            http,
            https,
            right,
            app,
            balancer_drain: sections.balancer.drain,
            node_drain: sections.app_server.graceful_timeout,
        })
    }

    /// Plans a cluster with its state under `home`.
    pub(super) fn plan(&self, options: &Options, home: &Path) -> Result<Plan, PlanError> {
        ports::check_free("http", self.http)?;
        ports::check_free("https", self.https)?;
        let (enrolment, enrolment_kept) = ports::internal(7401)?;
        let (registry, registry_kept) = ports::internal(7400)?;
        let admins = ports::admins(options.admin, options.nodes + 2)?;
        let addresses = Addresses { enrolment, registry, admins };
        Ok(Plan { _reserved: vec![enrolment_kept, registry_kept], ..self.lay_out(options, home, &addresses) })
    }

    fn lay_out(&self, options: &Options, home: &Path, addresses: &Addresses) -> Plan {
        let Addresses { enrolment, registry, admins } = addresses;
        let token = |role: Role| home.join("tokens").join(role.id());
        let joins =
            |role: Role| vec![("token-file", token(role).display().to_string()), ("sidecar", enrolment.to_string())];

        let data = home.join("cert-sidecar");
        let listen = vec![("listen", enrolment.to_string())];
        let cert_sidecar = member(Role::CertSidecar, "cert-sidecar", &data, admins[1], listen, options);

        let mut flags = joins(Role::Balancer);
        let public = [("http", self.http.to_string()), ("https", self.https.to_string())];
        flags.extend(public.into_iter().chain([("control", registry.to_string())]));
        let balancer = member(Role::Balancer, "balancer", &home.join("balancer"), admins[0], flags, options);

        let nodes = (1_u16..).zip(&admins[2..]).map(|(number, admin)| {
            let name = format!("node-{number}");
            let mut flags = joins(Role::App);
            let workers = ("worker-bind", loopback(0).to_string());
            flags.extend([("name", name.clone()), ("join", registry.to_string()), workers]);
            // An identity names its app: nodes of another app need others.
            let data = home.join(format!("{name}-{}", self.app));
            let node = member(Role::App, &name, &data, *admin, flags, options);
            Member { grace: self.node_drain + MARGIN, ..node }
        });
        Plan {
            cert_sidecar,
            balancer: Member { grace: self.balancer_drain + MARGIN, ..balancer },
            nodes: nodes.collect(),
            http: self.http,
            https: self.https,
            tokens: vec![(Right::Balancer, token(Role::Balancer)), (self.right.clone(), token(Role::App))],
            _reserved: Vec::new(),
        }
    }
}

/// The command line of one child: `flags`, what the user's own flags say to its role, what every child needs.
fn member<'a>(
    role: Role,
    name: &str,
    data: &Path,
    admin: SocketAddr,
    mut flags: Vec<(&'a str, String)>,
    options: &'a Options,
) -> Member {
    for (key, text) in &options.flags {
        let own = key.strip_prefix(role.id()).and_then(|key| key.strip_prefix('.'));
        if let Some(flag) = own.filter(|own| flags.iter().all(|(flag, _)| flag != own)) {
            flags.push((flag, text.clone()));
        }
    }
    flags.extend(options.config.iter().map(|path| ("config", path.display().to_string())));
    flags.extend([("data", data.display().to_string()), ("admin", admin.to_string())]);
    let flags = flags.into_iter().map(|(flag, text)| format!("--{flag}={text}"));
    let arguments = std::iter::once(role.command().to_owned()).chain(flags).collect();
    Member { name: name.to_owned(), arguments, admin, grace: MARGIN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    fn options(line: &[&str]) -> Options {
        let given = cli::command().try_get_matches_from([&["servery", "up"], line].concat()).unwrap();
        Options::of(given.subcommand_matches("up").unwrap())
    }

    fn plan(line: &[&str]) -> Result<Plan, Problems> {
        let options = options(line);
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let admins = (0..options.nodes + 2).map(|number| address(options.admin + number)).collect();
        let addresses = Addresses { enrolment: address(7401), registry: address(7400), admins };
        Ok(Settings::read(&options)?.lay_out(&options, Path::new("/state"), &addresses))
    }

    #[test]
    fn every_child_gets_its_directory_its_token_and_the_others_addresses() {
        let plan = plan(&["--nodes", "3", "--workers", "2", "--http", "81"]).unwrap();
        assert_eq!(plan.nodes.len(), 3);
        assert_eq!(plan.nodes[2].name, "node-3");
        for (member, wanted) in [
            (&plan.cert_sidecar, &["cert-sidecar", "--listen=127.0.0.1:7401", "--admin=127.0.0.1:9181"][..]),
            (
                &plan.balancer,
                &[
                    "balancer",
                    "--data=/state/balancer",
                    "--token-file=/state/tokens/balancer",
                    "--sidecar=127.0.0.1:7401",
                    "--control=127.0.0.1:7400",
                    "--http=127.0.0.1:81",
                    "--https=127.0.0.1:8443",
                    "--admin=127.0.0.1:9180",
                ],
            ),
            (
                &plan.nodes[2],
                &[
                    "app",
                    "--data=/state/node-3-demo",
                    "--token-file=/state/tokens/app_server",
                    "--name=node-3",
                    "--join=127.0.0.1:7400",
                    "--workers=2",
                    "--worker-bind=127.0.0.1:0",
                    "--admin=127.0.0.1:9184",
                ],
            ),
        ] {
            for wanted in wanted {
                assert!(member.arguments.iter().any(|argument| argument == wanted), "{wanted}: {:?}", member.arguments);
            }
        }
    }

    #[test]
    fn the_children_take_the_command_lines_they_get() {
        let plan = plan(&["--https", ":8444", "--exec", "/bin/app"]).unwrap();
        for member in [&plan.cert_sidecar, &plan.balancer].into_iter().chain(&plan.nodes) {
            let line = std::iter::once("servery").chain(member.arguments.iter().map(String::as_str));
            cli::command().try_get_matches_from(line).unwrap();
        }
    }

    #[test]
    fn a_bare_port_stays_on_this_machine() {
        assert_eq!(on_this_machine("81"), "127.0.0.1:81");
        assert_eq!(on_this_machine(":81"), ":81");
        assert_eq!(on_this_machine("192.0.2.1:81"), "192.0.2.1:81");
    }

    #[test]
    fn a_configured_listener_counts_unless_a_flag_says_otherwise() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[balancer]\nhttp = \":82\"\n").unwrap();
        let path = file.path().to_str().unwrap();
        let configured = plan(&["--config", path, "--http-only"]).unwrap();
        assert_eq!((configured.http, configured.https), (ListenAddr::All(82), ListenAddr::Off));
        assert_eq!(plan(&["--config", path, "--http", "83"]).unwrap().http, loopback(83));
    }

    #[test]
    fn nodes_of_another_app_get_a_right_and_directories_of_their_own() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[app_server]\napp = \"shop\"\n").unwrap();
        let path = file.path().to_str().unwrap();
        let plan_of = plan(&["--config", path]).unwrap();
        let right = Right::AppServer { app: "shop".to_owned(), prefixes: vec!["/".to_owned()] };
        assert_eq!(plan_of.tokens[1], (right, PathBuf::from("/state/tokens/app_server")));
        assert!(plan_of.nodes[0].arguments.iter().any(|argument| argument == "--data=/state/node-1-shop"));

        let token = "[[cert_sidecar.token]]\nrole = \"app_server\"\napp = \"shop\"\nprefixes = [\"/shop\"]\n";
        std::fs::write(file.path(), format!("[app_server]\napp = \"shop\"\n{token}")).unwrap();
        let right = Right::AppServer { app: "shop".to_owned(), prefixes: vec!["/shop".to_owned()] };
        assert_eq!(plan(&["--config", path]).unwrap().tokens[1].0, right);
    }

    #[test]
    fn mistakes_in_flags_come_together() {
        let text = plan(&["--http", "off", "--https", "nowhere", "--workers", "many"]).unwrap_err().to_string();
        assert!(text.contains("--https: expected") && text.contains("--workers: expected"), "{text}");
        assert!(plan(&["--http", "off", "--http-only"]).is_err());
    }

    #[test]
    fn a_file_for_a_node_by_itself_is_refused_before_anything_starts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[app_server]\nbind = \":8000\"\n").unwrap();
        let text = plan(&["--config", file.path().to_str().unwrap()]).unwrap_err().to_string();
        assert!(text.contains(":2: app_server.bind: "), "{text}");
    }
}
