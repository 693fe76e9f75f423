//! Layers and reader together, as a role uses them.

use super::*;
use crate::listen::ListenAddr;
use proptest::prelude::*;
use std::time::Duration;

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

/// Asks for a few keys as the roles do; the mistakes as lines.
fn problems(text: &str, vars: &[(&str, &str)], flags: &[(&str, &str)]) -> Vec<String> {
    let layers = Layers::from_text("servery.toml", text, variables(vars), variables(flags));
    let mut reader = Reader::new(&layers);
    Shared::read(&mut reader);
    reader.read("balancer.http", ListenAddr::All(8080));
    reader.read("balancer.queue_deadline", Duration::from_secs(10));
    reader.read("balancer.max_body", ByteSize::gib(1));
    reader.read("balancer.trusted_proxies", Vec::<Network>::new());
    reader.tables("balancer.route", |route| {
        route.optional::<String>("host");
        route.read("prefix", "/".to_owned());
        if route.optional::<String>("app").is_none() {
            route.refuse("app", "is missing");
        }
    });
    reader.read("app_server.workers", 1_usize);
    reader.finish().map_or_else(|problems| problems.iter().map(ToString::to_string).collect(), |()| Vec::new())
}

#[test]
fn nothing_given_is_right() {
    assert_eq!(problems("", &[], &[]), Vec::<String>::new());
}

#[test]
fn a_whole_file_is_read() {
    let text = r#"
        cluster = "shop"
        nameservers = ["10.0.0.2:53"]
        [balancer]
        http = 8080
        queue_deadline = "1s"
        trusted_proxies = "10.0.0.0/8"
        [[balancer.route]]
        host = "shop.example"
        app = "shop"
        [[balancer.route]]
        app = "blog"
    "#;
    assert_eq!(problems(text, &[], &[]), Vec::<String>::new());
}

#[test]
fn every_mistake_comes_in_one_run_with_its_place() {
    let text = r#"cluster = "Shop!"
sidecar = 7401
colour = "red"

[balancer]
queue_deadline = 10
queue_dedline = "10s"
trusted_proxies = [
    "10.0.0.0/8",
    "10.0.0.0/40",
]

[balancr]
http = ":8080"

[[balancer.route]]
app = "shop"
prefx = "/a"

[[balancer.route]]
prefix = 7
"#;
    let found = problems(
        text,
        &[
            ("SERVERY_BALANCER__MAX_BODY", "1024"),
            ("SERVERY_BALANCER__QUEUE_DEDLINE", "1s"),
            ("SERVERY_BALANCER__ROUTE", "x"),
            ("SERVERY_PORT", "tcp://10.96.0.1:80"),
            ("SERVERY_LOG", "info"),
            ("OTHER__THING", "x"),
        ],
        &[("app_server.workers", "many")],
    );
    assert_eq!(
        found,
        [
            "servery.toml:1: cluster: a cluster's name is 1 to 255 lower-case letters, digits, \".\", \"-\" and \"_\"",
            "servery.toml:2: sidecar: expected \"name:7400\", \"10.0.0.5:7400\", \"[fd00::5]:7400\", or a name with SRV \
             records, found 7401",
            "servery.toml:3: colour: unknown key",
            "servery.toml:6: balancer.queue_deadline: expected a duration with its unit, such as \"250ms\", \"10s\", \
             \"5m\" or \"7d\", found 10",
            "servery.toml:7: balancer.queue_dedline: unknown key, did you mean balancer.queue_deadline?",
            "servery.toml:10: balancer.trusted_proxies: expected a network such as \"10.0.0.0/8\" or \"fd00::/8\", or an \
             address, found \"10.0.0.0/40\"",
            "servery.toml:13: balancr: unknown key, did you mean balancer?",
            "servery.toml:18: balancer.route.prefx: unknown key, did you mean prefix?",
            "servery.toml:20: balancer.route.app: is missing",
            "servery.toml:21: balancer.route.prefix: expected text in quotes, found 7",
            "SERVERY_BALANCER__MAX_BODY: expected a size with its unit, such as \"64KiB\", \"10MB\" or \"1GiB\", found \
             \"1024\"",
            "SERVERY_BALANCER__QUEUE_DEDLINE: unknown variable, did you mean SERVERY_BALANCER__QUEUE_DEADLINE?",
            "SERVERY_BALANCER__ROUTE: [[balancer.route]] can be set in the configuration file only",
            "--workers: expected a whole number, found \"many\"",
        ]
    );
}

#[test]
fn syntax_errors_come_together_with_the_rest_and_hide_only_their_own_line() {
    let text = "[balancer]\nhttp = \nqueue_deadline = 10\nmax_body = \"1GiB\nfoo = 1\ncluster = = 3\n";
    let found = problems(text, &[], &[]);
    let at = |line: usize| found.iter().filter(|problem| problem.starts_with(&format!("servery.toml:{line}:"))).count();
    assert!(at(2) >= 1 && at(4) >= 1 && at(6) >= 1, "{found:#?}");
    assert_eq!(at(3), 1, "{found:#?}");
    assert!(!found.iter().any(|problem| problem.starts_with("servery.toml:2: balancer.http")), "{found:#?}");
}

#[test]
fn a_section_that_is_no_section_and_a_list_that_is_no_list_are_named() {
    assert_eq!(
        problems("balancer = 3", &[], &[]),
        ["servery.toml:1: balancer: expected the section [balancer], found 3"]
    );
    assert_eq!(
        problems("[balancer.route]\napp = \"x\"", &[], &[]),
        ["servery.toml:1: balancer.route: is a list of tables: write [[balancer.route]]"]
    );
    assert_eq!(
        problems("balancer.route = [1]", &[], &[]),
        ["servery.toml:1: balancer.route: expected a table, found 1"]
    );
}

#[test]
fn a_key_given_twice_is_a_mistake() {
    assert_eq!(problems("cluster = \"a\"\ncluster = \"b\"", &[], &[]).len(), 1);
}

#[test]
fn a_rule_between_values_is_reported_where_the_value_stands() {
    let refused = |text: &str, vars: &[(&str, &str)], flags: &[(&str, &str)]| {
        let layers = Layers::from_text("servery.toml", text, variables(vars), variables(flags));
        let mut reader = Reader::new(&layers);
        reader.read("balancer.http", ListenAddr::All(8080));
        reader.refuse("balancer.http", "clashes");
        reader.finish().unwrap_err().to_string()
    };
    assert_eq!(refused("\n[balancer]\nhttp = 1", &[], &[]), "servery.toml:3: balancer.http: clashes");
    assert_eq!(refused("\n[balancer]", &[], &[]), "servery.toml:2: balancer.http: clashes");
    assert_eq!(refused("", &[], &[]), "balancer.http: clashes");
    assert_eq!(refused("", &[("SERVERY_BALANCER__HTTP", "1")], &[]), "SERVERY_BALANCER__HTTP: clashes");
    assert_eq!(refused("", &[("SERVERY_BALANCER__HTTP", "1")], &[("balancer.http", "2")]), "--http: clashes");
}

#[test]
fn a_rule_is_not_judged_by_a_value_that_is_wrong() {
    let layers = Layers::from_text("servery.toml", "workers = \"many\"", [], Vec::new());
    let mut reader = Reader::new(&layers);
    reader.read("workers", 1_usize);
    reader.refuse("workers", "too few");
    let problems = reader.finish().unwrap_err();
    assert_eq!(problems.iter().count(), 1);
    assert!(problems.to_string().contains("expected a whole number"));
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_who_named_it() {
    let load = |file: Option<&Path>, vars: &[(&str, &str)]| Layers::load(file, variables(vars), Vec::new());
    let missing = Path::new("/nonexistent/servery.toml");
    let error = load(Some(missing), &[]).unwrap_err().to_string();
    assert!(error.starts_with("--config: cannot read the configuration file /nonexistent/servery.toml: "), "{error}");
    let error = load(None, &[("SERVERY_CONFIG", "/nonexistent/servery.toml")]).unwrap_err().to_string();
    assert!(error.starts_with("SERVERY_CONFIG: cannot read"), "{error}");
    let error = load(Some(Path::new("/dev/zero")), &[]).unwrap_err().to_string();
    assert!(error.contains("longer than"), "{error}");
}

#[test]
fn a_flag_given_twice_is_a_list() {
    let flags = variables(&[("app_server.join", "a:1"), ("app_server.join", "b:2")]);
    let layers = Layers::from_text("servery.toml", "", [], flags);
    let mut reader = Reader::new(&layers);
    assert_eq!(reader.read("app_server.join", Vec::<HostPort>::new()), [HostPort::new("a", 1), HostPort::new("b", 2)]);
    reader.finish().unwrap();
}

proptest! {
    /// The highest layer that mentions a key decides.
    #[test]
    fn flag_beats_variable_beats_file_beats_default(file: Option<u16>, variable: Option<u16>, flag: Option<u16>) {
        let text = file.map_or_else(String::new, |value| format!("[a]\nb = {value}\n"));
        let layers = Layers::from_text(
            "servery.toml",
            &text,
            variable.map(|value| ("SERVERY_A__B".to_owned(), value.to_string())),
            flag.map(|value| ("a.b".to_owned(), value.to_string())).into_iter().collect(),
        );
        let mut reader = Reader::new(&layers);
        prop_assert_eq!(reader.read("a.b", 7_u16), flag.or(variable).or(file).unwrap_or(7));
        prop_assert!(reader.finish().is_ok());
    }

    /// Whatever the file holds, reading it ends, with every problem on a line that the file has.
    #[test]
    fn no_file_makes_the_reader_panic(text in "([a-z_\\[\\]=\"'.,{}0-9# \n]|balancer|route|cluster){0,80}") {
        let lines = text.lines().count().max(1) + 1;
        for problem in problems(&text, &[], &[]) {
            if let Some(rest) = problem.strip_prefix("servery.toml:") {
                let line: usize = rest.split(':').next().unwrap().parse().unwrap();
                prop_assert!((1..=lines).contains(&line), "{problem}");
            }
        }
    }

    /// The line of a wrong value is the line it stands on, wherever that is.
    #[test]
    fn a_wrong_value_is_found_on_its_line(before in 0_usize..30, after in 0_usize..30) {
        let text = format!("{}queue_deadline = 10\n{}", "# é\r\n".repeat(before), "\n".repeat(after));
        let layers = Layers::from_text("f", &text, [], Vec::new());
        let mut reader = Reader::new(&layers);
        reader.read("queue_deadline", Duration::ZERO);
        let problem = reader.finish().unwrap_err().to_string();
        prop_assert!(problem.starts_with(&format!("f:{}: ", before + 1)), "{problem}");
    }
}
