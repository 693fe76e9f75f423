//! What a person sees who has made a mistake: all of them at once, where they stand, and an exit code that a script can read.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use servery_harness::{Client, Process, Protocol, Site, ensure, eventually};
use tempfile::TempDir;

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// Wrong usage or configuration.
const USAGE: i32 = 64;

/// Runs the binary to its end: its exit code and everything it said.
async fn run(words: &[&str], variables: &[(&str, &str)]) -> Said {
    let ended = servery_harness::run(SERVERY, words, variables).await;
    Said { code: ended.code, said: ended.stdout + &ended.stderr }
}

struct Said {
    code: i32,
    said: String,
}

fn file(directory: &TempDir, text: &str) -> (PathBuf, String) {
    let path = directory.path().join("servery.toml");
    std::fs::write(&path, text).unwrap();
    let name = path.display().to_string();
    (path, name)
}

/// `said` has a line about `line` of the file that has all of `words` in it.
fn assert_told(said: &str, line: u32, words: &[&str]) {
    let place = format!("servery.toml:{line}:");
    let found = said.lines().any(|told| told.contains(&place) && words.iter().all(|word| told.contains(word)));
    assert!(found, "nothing about {place} with {words:?} in:\n{said}");
}

const FULL_OF_MISTAKES: &str = r#"clutser = "servery"

[balancer]
queue_deadline = 10
drain = "30 fortnights"
http = "nowhere"
max_body = "a lot"
queue_lenght = 5
trusted_proxies = ["10.0.0.0/8", "everybody"]

[[balancer.route]]
prefix = "/a"
app = "one"

[[balancer.route]]
prefix = "/a"
app = "two"

[[balancer.route]]
prefix = "/b"
app = "one"
redirect = "https://example.org/"

[[balancer.route]]
prefix = "/c"

[[balancer.route]]
prefix = "/d"
directory = "/srv"

[app_server]
workers = "many"
bind = "off"

[cert_sidecar]
identity_lifetime = -1

[balancre]
http = ":1"
"#;

#[tokio::test]
async fn every_mistake_is_told_at_once_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let (_, path) = file(&directory, FULL_OF_MISTAKES);
    let check = run(&["check", &path], &[]).await;
    let balancer = run(&["balancer", "--config", &path], &[]).await;
    let app = run(&["app", "--config", &path], &[]).await;
    let sidecar = run(&["cert-sidecar", "--config", &path], &[]).await;
    let up = run(&["up", "--config", &path, "--data", directory.path().join("data").to_str().unwrap()], &[]).await;
    for ended in [check, balancer, app, sidecar, up] {
        assert_eq!(ended.code, USAGE, "{}", ended.said);
        let said = &ended.said;
        assert_told(said, 1, &["clutser", "cluster"]);
        assert_told(said, 4, &["balancer.queue_deadline", "10s"]);
        assert_told(said, 5, &["balancer.drain"]);
        assert_told(said, 6, &["balancer.http"]);
        assert_told(said, 7, &["balancer.max_body"]);
        assert_told(said, 8, &["balancer.queue_lenght", "queue_length"]);
        assert_told(said, 9, &["balancer.trusted_proxies"]);
        assert_told(said, 16, &["balancer.route.prefix", "clash"]);
        assert_told(said, 36, &["cert_sidecar.identity_lifetime"]);
        assert_told(said, 38, &["balancre", "balancer"]);
        assert_told(said, 32, &["app_server.workers"]);
        assert_told(said, 33, &["app_server.bind"]);
        for (from, to) in [(19, 22), (24, 25), (27, 29)] {
            let told = (from..=to).any(|line| said.contains(&format!("servery.toml:{line}:")));
            assert!(told, "nothing about lines {from} to {to} in:\n{said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[tokio::test]
async fn a_good_file_is_good() {
    let directory = tempfile::tempdir().unwrap();
    let (_, path) = file(
        &directory,
        r#"
        cluster = "home"
        nameservers = ["127.0.0.1:53"]

        [balancer]
        https = "off"
        queue_deadline = "250ms"
        max_body = "10MiB"
        trusted_proxies = ["10.0.0.0/8", "::1"]

        [[balancer.route]]
        host = "a.example"
        prefix = "/"
        app = "demo"

        [[balancer.route]]
        host = "b.example"
        redirect = "https://a.example/"

        [app_server]
        join = ["balancer:7400"]

        [[app_server.route]]
        prefix = "/"

        [cert_sidecar]
        identity_lifetime = "7d"

        [[cert_sidecar.certificate]]
        name = "a"
        hosts = ["a.example", "*.a.example"]
        "#,
    );
    let ended = run(&["check", &path], &[]).await;
    assert_eq!(ended.code, 0, "{}", ended.said);
}

#[tokio::test]
async fn a_file_that_is_not_toml_is_told_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let (_, path) = file(&directory, "cluster = \"a\"\n[balancer\nhttp = 1\n");
    let ended = run(&["check", &path], &[]).await;
    assert_eq!(ended.code, USAGE);
    assert!(ended.said.contains("servery.toml:2:"), "{}", ended.said);
}

#[tokio::test]
async fn a_missing_file_is_named() {
    for words in [
        ["check", "/nowhere/servery.toml"].as_slice(),
        &["balancer", "--config", "/nowhere/servery.toml"],
        &["up", "--config", "/nowhere/servery.toml", "--data", "/tmp/never-made"],
    ] {
        let ended = run(words, &[]).await;
        assert_eq!(ended.code, USAGE, "{words:?}");
        assert!(ended.said.contains("/nowhere/servery.toml"), "{}", ended.said);
    }
    let ended = run(&["balancer"], &[("SERVERY_CONFIG", "/nowhere/else.toml")]).await;
    assert_eq!(ended.code, USAGE);
    assert!(ended.said.contains("/nowhere/else.toml"), "{}", ended.said);
}

#[tokio::test]
async fn mistakes_in_variables_and_flags_are_told_by_their_names() {
    let directory = tempfile::tempdir().unwrap();
    let (_, path) = file(&directory, "[balancer]\nqueue_length = \"x\"\n");
    let ended = run(
        &["balancer", "--config", &path, "--max-body", "huge"],
        &[("SERVERY_BALANCER__QUEUE_DEADLINE", "10"), ("SERVERY_BALANCER__QUEUE_DEADLIN", "10s")],
    )
    .await;
    assert_eq!(ended.code, USAGE);
    for name in
        ["servery.toml:2:", "--max-body", "SERVERY_BALANCER__QUEUE_DEADLINE:", "SERVERY_BALANCER__QUEUE_DEADLIN:"]
    {
        assert!(ended.said.contains(name), "{name} is not told:\n{}", ended.said);
    }
}

#[tokio::test]
async fn wrong_usage_ends_with_64() {
    for words in [["servant"].as_slice(), &[], &["balancer", "--no-such-flag"], &["up", "--nodes", "0"], &["check"]] {
        let ended = run(words, &[]).await;
        assert_eq!(ended.code, USAGE, "{words:?}");
        assert!(!ended.said.is_empty(), "{words:?} is refused without a word");
    }
    // What is not there yet is refused by name, never ignored.
    for (words, named) in [
        (["app", "shop:app"].as_slice(), "shop:app"),
        (&["up", "shop:app"], "shop:app"),
        (&["up", "--domain", "example.org"], "--domain"),
        (&["app", "--threads", "4"], "--threads"),
        (&["app", "--bind", ":8000", "--join", "balancer:7400"], "--bind"),
    ] {
        let ended = run(words, &[]).await;
        assert_eq!(ended.code, USAGE, "{words:?}: {}", ended.said);
        assert!(ended.said.contains(named), "{words:?}: {}", ended.said);
    }
    for words in [["--version"].as_slice(), &["--help"], &["up", "--help"]] {
        assert_eq!(run(words, &[]).await.code, 0, "{words:?}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_told_and_ends_with_1() {
    let site = Site::claim();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let data = data.to_str().unwrap();
    let taken = std::net::TcpListener::bind(site.at(1, 0)).unwrap().local_addr().unwrap();
    let holder = std::net::TcpListener::bind(taken).unwrap();
    let free = |index| site.at(1, index).to_string();
    let flags = ["--http", "--https", "--control", "--admin"];
    for busy in flags {
        let mut words = vec!["balancer".to_owned(), "--data".to_owned(), data.to_owned()];
        for (index, flag) in (1..).zip(flags) {
            words.push(flag.to_owned());
            words.push(if flag == busy { taken.to_string() } else { free(index) });
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ended = run(&words, &[]).await;
        assert_eq!(ended.code, 1, "{busy}: {}", ended.said);
        assert!(ended.said.contains(&taken.to_string()), "{busy}: {}", ended.said);
        assert!(ended.said.to_lowercase().contains("in use"), "{busy}: {}", ended.said);
    }
    let sidecar = ["cert-sidecar", "--data", data, "--listen", &taken.to_string(), "--admin", &free(5)];
    let ended = run(&sidecar, &[]).await;
    assert_eq!(ended.code, 1, "{}", ended.said);
    assert!(ended.said.contains(&taken.to_string()), "{}", ended.said);
    let app = ["app", "--data", data, "--join", "127.0.0.1:1", "--admin", &taken.to_string()];
    let ended = run(&app, &[]).await;
    assert_eq!(ended.code, 1, "{}", ended.said);
    assert!(ended.said.contains(&taken.to_string()), "{}", ended.said);
    drop(holder);
}

#[tokio::test]
async fn a_flag_beats_a_variable_which_beats_the_file() {
    let site = Site::claim();
    let directory = tempfile::tempdir().unwrap();
    let in_file = site.at(1, 0);
    let in_variable = site.at(1, 1);
    let in_flag = site.at(1, 2);
    let text = format!("[cert_sidecar]\nlisten = \"{}\"\nadmin = \"{in_file}\"\n", site.at(1, 3));
    let (path, _) = file(&directory, &text);
    let variable = ("SERVERY_CERT_SIDECAR__ADMIN", in_variable.to_string());
    let flag = in_flag.to_string();
    for (what, variables, flags, expected) in [
        ("the file alone", vec![], vec![], in_file),
        ("a variable", vec![variable.clone()], vec![], in_variable),
        ("a flag", vec![variable.clone()], vec!["--admin", &flag], in_flag),
    ] {
        let process = sidecar(&path, &directory.path().join("data"), &variables, &flags);
        alive(what, &process, expected).await;
        for other in [in_file, in_variable, in_flag].into_iter().filter(|other| *other != expected) {
            assert!(Client::plain(other, Protocol::Http1).get("/livez").await.is_err(), "{what}: {other} answers too");
        }
        process.terminate(SOON).await;
    }
    // The file itself may be named by a variable, and a flag names another.
    let variable = ("SERVERY_CONFIG", path.display().to_string());
    let mut command = Command::new(SERVERY);
    command.arg("cert-sidecar").arg("--data").arg(directory.path().join("data")).env(variable.0, variable.1);
    let process = Process::spawn("cert-sidecar", command).unwrap();
    alive("a file named by a variable", &process, in_file).await;
    process.terminate(SOON).await;
}

fn sidecar(config: &Path, data: &Path, variables: &[(&str, String)], flags: &[&str]) -> Process {
    let mut command = Command::new(SERVERY);
    command.args(["cert-sidecar", "--config"]).arg(config).arg("--data").arg(data).args(flags);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    Process::spawn("cert-sidecar", command).unwrap()
}

async fn alive(what: &str, process: &Process, admin: SocketAddr) {
    let client = Client::plain(admin, Protocol::Http1);
    eventually(&format!("{admin} to answer ({what})"), SOON, async || {
        if let Some(status) = process.exit_status() {
            panic!("the cert-sidecar ended with {status}");
        }
        let answer = client.get("/livez").await.map_err(|error| format!("{error:#}"))?;
        ensure(answer.status == 200, || answer.text())
    })
    .await;
}
