//! What a person asks of a running cluster from the command line, and what a person finds who broke something of it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use servery_harness::cluster::instance_of;
use servery_harness::{Client, Cluster, Plan, Protocol, Role, StandalonePlan, eventually, run};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

fn data(cluster: &Cluster) -> String {
    cluster.sidecar.data().display().to_string()
}

#[tokio::test]
async fn the_printed_root_is_the_one_to_trust() {
    let cluster = Plan::new(SERVERY).start().await;
    let root = run(SERVERY, &["certs", "root", "--data", &data(&cluster)], &[]).await.printed();
    let file = cluster.directory().join("printed.pem");
    std::fs::write(&file, root).unwrap();
    let client = Client::trusting(&file, cluster.balancers[0].https(), Protocol::Http2).unwrap();
    assert_eq!(client.get("/hello").await.unwrap().text(), "Hello World!");
    // A root of somebody else is not enough: the client above did check.
    let other = Plan::new(SERVERY).start().await;
    let stranger = Client::trusting(
        &other.balancers[0].data().join("identity/root.pem"),
        cluster.balancers[0].https(),
        Protocol::Http2,
    );
    let error = stranger.unwrap().get("/hello").await.expect_err("a foreign root was enough");
    assert!(format!("{error:#}").contains("UnknownIssuer"), "{error:#}");
}

#[tokio::test]
async fn certificates_are_for_the_configured_names() {
    let plan = Plan::new(SERVERY).with_tables(
        "[[cert_sidecar.certificate]]\nname = \"shop\"\nhosts = [\"shop.example\", \"*.shop.example\"]\n\
         [[cert_sidecar.certificate]]\nname = \"localhost\"\nhosts = [\"localhost\"]",
    );
    let cluster = plan.start().await;
    let balancer = &cluster.balancers[0];
    let root = balancer.data().join("identity/root.pem");
    for (host, covered) in [
        ("localhost", true),
        ("shop.example", true),
        ("www.shop.example", true),
        ("deep.www.shop.example", false),
        ("other.example", false),
    ] {
        let client = Client::trusting(&root, balancer.https(), Protocol::Http1).unwrap().asking_for(host);
        let answer = client.get("/hello").await;
        assert_eq!(answer.is_ok(), covered, "{host}: {answer:?}");
    }
    let status = balancer.status().await.unwrap();
    let certificates = status["certificates"].as_array().unwrap();
    assert_eq!(certificates.len(), 2, "{status}");
}

#[tokio::test]
async fn status_shows_nodes_workers_and_certificates() {
    let cluster = Plan::new(SERVERY).nodes(2).workers(2).start().await;
    let balancer = &cluster.balancers[0];
    let admin = balancer.admin().to_string();
    let json = run(SERVERY, &["status", "--json", "--admin", &admin], &[]).await.printed();
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    for key in ["cluster", "role", "instance", "version", "uptime_s", "ready", "apps", "certificates", "streams"] {
        assert!(!status[key].is_null(), "{key} is missing in {status:#}");
    }
    assert_eq!((&status["cluster"], &status["role"]), (&"servery".into(), &"balancer".into()));
    let app = &status["apps"][0];
    for key in ["name", "routes", "queue_depth", "nodes"] {
        assert!(!app[key].is_null(), "apps[0].{key} is missing in {status:#}");
    }
    let node = &app["nodes"][0];
    for key in ["node", "address", "state", "workers"] {
        assert!(!node[key].is_null(), "nodes[0].{key} is missing in {status:#}");
    }
    for key in ["position", "generation", "pid", "state", "slots", "busy", "on_deck", "served", "restarts"] {
        assert!(!node["workers"][0][key].is_null(), "workers[0].{key} is missing in {status:#}");
    }
    for key in ["names", "not_after", "issuer", "source"] {
        assert!(!status["certificates"][0][key].is_null(), "certificates[0].{key} is missing in {status:#}");
    }
    let table = run(SERVERY, &["status", "--admin", &admin], &[]).await.printed();
    for name in ["node-0", "node-1"] {
        assert!(table.contains(&instance_of(&status, name).unwrap()), "{name} is missing in:\n{table}");
    }
    let nobody = run(SERVERY, &["status", "--admin", &cluster.site().at(1, 20).to_string()], &[]).await;
    assert_eq!(nobody.code, 1);
    assert!(nobody.stderr.contains("--admin"), "{}", nobody.stderr);
}

#[tokio::test]
async fn health_is_an_exit_code() {
    let mut cluster = Plan::new(SERVERY).start().await;
    for member in [&cluster.sidecar, &cluster.balancers[0], &cluster.nodes[0]] {
        let admin = member.admin().to_string();
        for words in [["health", "--admin", &admin].as_slice(), &["health", "--ready", "--admin", &admin]] {
            assert_eq!(run(SERVERY, words, &[]).await.code, 0, "{}", member.name);
        }
    }
    // A balancer without nodes serves its own answers, and a node without a balancer is alive and no use.
    cluster.balancers[0].kill().await;
    let admin = cluster.nodes[0].admin().to_string();
    eventually("the node to be unready", SOON, async || {
        let ready = run(SERVERY, &["health", "--ready", "--admin", &admin], &[]).await;
        anyhow::ensure!(ready.code == 1, "it still is");
        anyhow::ensure!(!ready.stderr.is_empty(), "it does not say why");
        Ok(())
    })
    .await;
    assert_eq!(run(SERVERY, &["health", "--admin", &admin], &[]).await.code, 0);
    let gone = cluster.balancers[0].admin().to_string();
    assert_eq!(run(SERVERY, &["health", "--admin", &gone], &[]).await.code, 1);
}

#[tokio::test]
async fn secrets_are_for_their_owner_only() {
    let cluster = Plan::new(SERVERY).start().await;
    let mut checked = 0;
    let mut waiting = vec![cluster.directory().to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if holds_a_secret(&path) {
                let mode = path.metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o077, 0, "others may use {} ({mode:o})", path.display());
                checked += 1;
            }
        }
    }
    // At least: root, intermediate, three identities, two tokens, the control socket.
    assert!(checked >= 8, "only {checked} secrets were found: where are the others?");
}

fn holds_a_secret(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.contains("PRIVATE KEY") || text.contains("servery1.") || path.extension().is_some_and(|kind| kind == "sock")
}

#[tokio::test]
async fn a_damaged_store_is_refused_with_what_to_do() {
    let mut cluster = Plan::new(SERVERY).start().await;
    cluster.sidecar.stop().await;
    let store = cluster.sidecar.data();
    for (name, told) in [
        ("ca/root.pem", "ca/root.pem"),
        ("ca/root.key", "private key"),
        ("ca/intermediate.pem", "ca/intermediate.pem"),
        ("records.json", "records.json"),
    ] {
        let file = store.join(name);
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        let config = cluster.sidecar.config_file().display().to_string();
        let ended = run(SERVERY, &["cert-sidecar", "--config", &config], &[]).await;
        assert_eq!(ended.code, 1, "with half of {name}");
        assert!(ended.stderr.contains(told) && ended.stderr.contains("backup"), "{name}: {}", ended.stderr);
        std::fs::write(&file, whole).unwrap();
    }
    // Nothing was made anew over it: whole again, it is the same authority.
    cluster.sidecar.start();
    cluster.sidecar.ready().await;
    let mut node = cluster.nodes.remove(0);
    node.restart().await;
    assert_eq!(cluster.balancers[0].client(Protocol::Http1).get("/hello").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_second_cert_sidecar_on_the_same_store_is_refused() {
    let cluster = Plan::new(SERVERY).start().await;
    let (listen, admin) = (cluster.site().at(1, 20).to_string(), cluster.site().at(1, 21).to_string());
    let words = ["cert-sidecar", "--data", &data(&cluster), "--listen", &listen, "--admin", &admin];
    let second = run(SERVERY, &words, &[]).await;
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("in use"), "{}", second.stderr);
}

#[tokio::test]
async fn a_node_may_advertise_another_address_where_the_balancer_allows_it() {
    // The site is not known yet: any loopback network will do, and one of its addresses that nobody else has.
    let plan = Plan::new(SERVERY)
        .with(Role::Balancer, "advertised_networks = [\"127.0.0.0/8\"]")
        .with(Role::AppServer, "worker_bind = \"127.0.0.9:0\"\nadvertise = \"127.0.0.9\"");
    let cluster = plan.start().await;
    let answer = cluster.balancers[0].client(Protocol::Http1).get("/whoami").await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn every_worker_is_seen_with_its_age_memory_and_the_causes_of_its_restarts() {
    let plan = StandalonePlan::new(SERVERY).workers(2).with("max_lifetime = \"1s\"");
    let node = plan.start().await;
    assert_eq!(node.client(Protocol::Http1).get("/sleep/20").await.unwrap().status, 200);
    node.rows_with("workers that have been replaced for their age, and looked at", SOON, |rows| {
        rows.len() == 2 && rows.iter().all(|row| row.is_ready() && row.restarts >= 1 && row.memory_bytes > Some(0))
    })
    .await;
    assert!(node.restarts("max_lifetime").await >= 2);

    let admin = node.admin().to_string();
    let table = run(SERVERY, &["status", "--admin", &admin], &[]).await.printed();
    let heads = ["node", "state", "age", "slots", "busy", "served", "cpu", "MiB", "restarts"];
    assert!(heads.iter().all(|head| table.contains(head)), "{table}");
    let workers = table.lines().filter(|line| line.contains("alone") && line.contains("max_lifetime"));
    assert!(workers.count() >= 2, "{table}");

    eventually("the metrics to have it all", SOON, async || {
        let metrics = node.metrics().await?;
        let memory = metrics.sum("servery_app_server_worker_memory_bytes", &[]);
        let counted = metrics.sum("servery_app_server_request_duration_seconds_count", &[]);
        let quick = metrics.sum("servery_app_server_request_duration_seconds_bucket", &[("le", "0.01")]);
        anyhow::ensure!(memory > 1e6 && (counted - 1.0).abs() < 0.5 && quick < 0.5, "{memory} {counted} {quick}");
        Ok(())
    })
    .await;
}
