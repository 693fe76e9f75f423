//! Applications that are no app-servers behind the real balancer: shares by weight, names that change, checks, deaths.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use servery_harness::client::full;
use servery_harness::{Client, Cluster, Load, Plan, Process, Protocol, Signal, Site, ensure, eventually};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// Some web application. It has a runtime of its own, so that it can be ended as a process is: with its connections.
struct Application {
    address: SocketAddr,
    well: Arc<AtomicBool>,
    /// What `/held` waits for.
    release: Arc<Semaphore>,
    runtime: Option<Runtime>,
}

impl Application {
    /// It says its name at `/` in a field `node`, as `Load` counts it.
    fn start(name: &'static str, address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (well, release) = (Arc::new(AtomicBool::new(true)), Arc::new(Semaphore::new(0)));
        let (is_well, held) = (Arc::clone(&well), Arc::clone(&release));
        let health =
            async move || if is_well.load(Ordering::Relaxed) { StatusCode::OK } else { StatusCode::IM_A_TEAPOT };
        let held = async move || held.acquire().await.map(|_| name).unwrap_or("closed");
        let echo = async |body: String| body;
        let answer = format!("{{\"node\":\"{name}\"}}");
        let router = Router::new()
            .route("/", get(async move || answer.clone()))
            .route("/healthz", get(health))
            .route("/held", get(held))
            .route("/echo", axum::routing::post(echo));
        let std = std::net::TcpListener::bind(address).unwrap();
        std.set_nonblocking(true).unwrap();
        let address = std.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(TcpListener::from_std(std).unwrap(), router).await });
        Self { address, well, release, runtime: Some(runtime) }
    }

    fn is(&self, well: bool) {
        self.well.store(well, Ordering::Relaxed);
    }

    /// At once, with everything that it has.
    fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A balancer with no node and this one route.
async fn in_front_of(upstream: &[String], more: &str, dns_ttl_s: Option<u32>) -> Cluster {
    let mut route = format!("[[balancer.route]]\nname = \"shop\"\nupstream = {upstream:?}\n");
    writeln!(route, "{more}").unwrap();
    let plan = Plan::new(SERVERY).nodes(0).plain().with_tables(&route);
    dns_ttl_s.into_iter().fold(plan, Plan::by_dns).start().await
}

fn client_of(cluster: &Cluster) -> Arc<Client> {
    cluster.balancers[0].plain_client(Protocol::Http1)
}

/// So many addresses where servers are used.
async fn in_use(cluster: &Cluster, wanted: usize) {
    eventually(&format!("{wanted} addresses in use"), SOON, async || {
        let status = cluster.balancers[0].status().await?;
        let apps = status["apps"].as_array().into_iter().flatten();
        let nodes = apps.filter(|app| app["name"] == "upstream:shop").flat_map(|app| app["nodes"].as_array()).flatten();
        let used = nodes.filter(|node| node["workers"][0]["state"] == "ready").count();
        anyhow::ensure!(used == wanted, "{used} in {status}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn requests_are_shared_by_weight() {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let (one, two) = (Application::start("one", anywhere), Application::start("two", anywhere));
    let upstream = [format!("http://{} weight=1", one.address), format!("http://{} weight=3", two.address)];
    let cluster = in_front_of(&upstream, "", None).await;
    in_use(&cluster, 2).await;
    let client = client_of(&cluster);
    let (mut one, all) = (0_u32, 2000);
    for _ in 0..all {
        let answer = client.get("/").await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        one += u32::from(answer.json().unwrap()["node"] == "one");
    }
    println!("{one} of {all}");
    let quarter = all / 4;
    assert!(one.abs_diff(quarter) * 100 <= quarter * 15, "{one} of {all}");
}

#[tokio::test]
async fn a_name_takes_its_requests_along_when_its_addresses_change() {
    let site = Site::claim();
    let (one, mut two) = (Application::start("one", site.at(1, 0)), Application::start("two", site.at(2, 0)));
    let cluster = in_front_of(&[format!("http://shop.test:{}", site.port(0))], "", Some(0)).await;
    let dns = cluster.dns.as_ref().unwrap();
    let client = client_of(&cluster);
    // nobody knows the name yet: a request waits until somebody does
    let early = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.get("/").await }
    });
    dns.set("shop.test", &[one.address.ip()]).await;
    let answer = early.await.unwrap().unwrap();
    assert_eq!((answer.status.as_u16(), &answer.json().unwrap()["node"]), (200, &"one".into()));

    let held = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.get("/held").await }
    });
    let load = Load::start(vec![Arc::clone(&client)], "/", 100);
    load.answered_by("one", SOON).await;
    dns.set("shop.test", &[two.address.ip()]).await;
    load.answered_by("two", SOON).await;
    in_use(&cluster, 1).await;
    let moved = load.so_far();
    load.answered(50).await;
    assert_eq!(load.so_far().since(&moved).by_node.keys().collect::<Vec<_>>(), ["two"]);
    // what was under way there is finished in peace
    one.release.add_permits(1);
    assert_eq!(held.await.unwrap().unwrap().text(), "one");

    // a name that is gone, or a DNS server that is, takes nothing away
    dns.set("shop.test", &[]).await;
    cluster.balancers[0].logged(&["cannot be resolved", "last addresses stay"]).await;
    load.answered(50).await;
    dns.set("shop.test", &[one.address.ip(), two.address.ip()]).await;
    in_use(&cluster, 2).await;
    load.answered_by("one", SOON).await;
    // and one of two dies
    two.kill();
    load.answered(200).await;
    load.stop_without_failure().await;
}

#[tokio::test]
async fn a_check_takes_a_server_out_and_in_again_and_no_request_fails() {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let (one, two) = (Application::start("one", anywhere), Application::start("two", anywhere));
    let upstream = [&one, &two].map(|application| format!("http://{}", application.address));
    let check = "health_check = \"/healthz\"\nhealth_interval = \"100ms\"";
    let cluster = in_front_of(&upstream, check, None).await;
    in_use(&cluster, 2).await;
    let load = Load::start(vec![client_of(&cluster)], "/", 200);
    for _ in 0..2 {
        load.answered_by("one", SOON).await;
        one.is(false);
        in_use(&cluster, 1).await;
        let out = load.so_far();
        load.answered(100).await;
        let by_node = load.so_far().since(&out).by_node;
        // at most what was under way
        assert!(by_node.get("one").copied().unwrap_or(0) <= 5, "{by_node:?}");
        one.is(true);
        in_use(&cluster, 2).await;
    }
    load.answered_by("one", SOON).await;
    load.stop_without_failure().await;
    cluster.balancers[0].logged(&["health checks fail", "418"]).await;
}

#[tokio::test]
async fn a_reload_moves_an_application_to_other_servers_and_no_request_fails() {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let (one, two) = (Application::start("one", anywhere), Application::start("two", anywhere));
    let (old, new) = (format!("http://{}", one.address), format!("http://{}", two.address));
    let cluster = in_front_of(std::slice::from_ref(&old), "", None).await;
    let (balancer, client) = (&cluster.balancers[0], client_of(&cluster));
    in_use(&cluster, 1).await;
    let held = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.get("/held").await }
    });
    let load = Load::start(vec![Arc::clone(&client)], "/", 200);
    load.answered_by("one", SOON).await;
    let before = std::fs::read_to_string(balancer.config_file()).unwrap();
    for (from, to, node) in [(&old, &new, "two"), (&new, &old, "one"), (&old, &new, "two")] {
        let now = std::fs::read_to_string(balancer.config_file()).unwrap();
        std::fs::write(balancer.config_file(), now.replace(from, to)).unwrap();
        balancer.signal(Signal::HUP);
        load.answered_by(node, SOON).await;
        in_use(&cluster, 1).await;
    }
    // another name is another upstream: the old one serves whoever was on the way
    let renamed = before.replace("\"shop\"", "\"other\"");
    std::fs::write(balancer.config_file(), &renamed).unwrap();
    balancer.signal(Signal::HUP);
    load.answered_by("one", SOON).await;
    // certificates that are not there refuse the file
    let refused =
        renamed.replace("http://", "https://").replace("name = \"other\"", "name = \"other\"\nca = \"/nowhere\"");
    std::fs::write(balancer.config_file(), refused).unwrap();
    balancer.signal(Signal::HUP);
    balancer.logged(&["balancer.route", "/nowhere"]).await;
    load.answered(100).await;
    one.release.add_permits(1);
    assert_eq!(held.await.unwrap().unwrap().text(), "one");
    load.stop_without_failure().await;
}

#[tokio::test]
async fn a_balancer_that_drains_serves_what_waits_for_an_upstream() {
    let one = Application::start("one", SocketAddr::from(([127, 0, 0, 1], 0)));
    let mut cluster = in_front_of(&[format!("http://{}", one.address)], "max_connections = 1", None).await;
    in_use(&cluster, 1).await;
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let client = client_of(&cluster);
            tokio::spawn(async move { client.get("/held").await })
        })
        .collect();
    let balancer = &mut cluster.balancers[0];
    eventually("one at the server and one in the queue", SOON, async || {
        let status = balancer.status().await?;
        let shop = status["apps"].as_array().into_iter().flatten().find(|app| app["name"] == "upstream:shop").cloned();
        let shop = shop.unwrap_or_default();
        anyhow::ensure!(shop["queue_depth"] == 1 && shop["in_flight"] == 1, "{status}");
        Ok(())
    })
    .await;
    balancer.signal(Signal::TERM);
    eventually("it to accept nothing more", SOON, async || {
        let refused = tokio::net::TcpStream::connect(balancer.http()).await.is_err();
        ensure(refused, || "it accepts".to_owned())
    })
    .await;
    one.release.add_permits(2);
    for answer in waiting {
        assert_eq!(answer.await.unwrap().unwrap().text(), "one");
    }
    assert!(balancer.ended().await.success());
}

#[tokio::test]
async fn pythons_own_web_server_can_be_moved_behind_the_balancer() {
    let (site, directory) = (Site::claim(), tempfile::tempdir().unwrap());
    std::fs::write(directory.path().join("page.txt"), "from python").unwrap();
    let address = site.at(1, 0);
    let mut command = Command::new("python3");
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    command.args(["-m", "http.server", &port, "--bind", &ip, "--directory"]).arg(directory.path());
    command.stdin(Stdio::null());
    let python = Process::spawn("python", command).unwrap();
    let upstream = [format!("http://{address}")];
    let cluster = in_front_of(&upstream, "health_check = \"/page.txt\"\nhealth_interval = \"100ms\"", None).await;
    let client = client_of(&cluster);
    eventually("an answer of python's", SOON, async || {
        let answer = client.get("/page.txt").await.map_err(|error| error.to_string())?;
        ensure(answer.text() == "from python", || format!("{} {}", answer.status, answer.text()))
    })
    .await;
    for _ in 0..20 {
        let answer = client.get("/page.txt").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "from python"));
        assert!(answer.header("server").starts_with("SimpleHTTP"), "{answer:?}");
    }
    assert_eq!(client.get("/nothing").await.unwrap().status, 404);
    // it knows no POST, and closes without reading what was sent
    let request = client.request("POST", "/page.txt", full("x")).unwrap();
    assert_eq!(client.send(request).await.unwrap().status, 501);
    drop(python);
}
