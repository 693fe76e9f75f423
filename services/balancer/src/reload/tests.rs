use super::*;
use crate::{
    client::Client,
    endpoint::{Node, WorkerView},
    route::Target,
    tls::CertificateSet,
};
use chassis::{
    config::{Layers, Reader},
    discovery::Discovery,
};
use std::{
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

/// A reloader, the file it reads, and how often it has.
struct House {
    reloader: Reloader,
    file: Arc<Mutex<String>>,
    reads: Arc<AtomicU32>,
}

fn read(text: &str) -> Result<(Config, config::Shared), Problems> {
    let flags = vec![("balancer.drain".to_owned(), "7s".to_owned())];
    let layers = Layers::from_text("servery.toml", text, [], flags);
    let mut reader = Reader::new(&layers);
    let sections = (Config::read(&mut reader), config::Shared::read(&mut reader));
    reader.finish()?;
    Ok(sections)
}

fn house(text: &str) -> House {
    let (config, common) = read(text).unwrap();
    let shared = Shared::new(config, None, CertificateSet::self_signed().unwrap());
    let (file, reads) = (Arc::new(Mutex::new(text.to_owned())), Arc::new(AtomicU32::new(0)));
    let (path, count) = (Arc::clone(&file), Arc::clone(&reads));
    let reread = move || {
        count.fetch_add(1, Ordering::Relaxed);
        read(&path.lock().unwrap())
    };
    let apps = Arc::clone(&shared.apps);
    let reloader = Reloader {
        directory: Directory::new(Arc::clone(&shared)),
        shared,
        common,
        reread: Arc::new(reread),
        upstreams: Arc::new(Groups::new(apps, Discovery::new(&[]).unwrap())),
        own: Arc::default(),
        lifecycle: Lifecycle::new(),
    };
    House { reloader, file, reads }
}

impl House {
    async fn reload(&self, text: &str) -> bool {
        text.clone_into(&mut self.file.lock().unwrap());
        self.reloader.reload().await
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.reloader.shared
    }

    /// The app that a path leads to.
    fn app_of(&self, path: &str) -> Option<String> {
        match &self.shared().routes.load().lookup("any.host", path)?.target {
            Target::App(app) => Some(app.name().to_owned()),
            Target::Redirect(to) => Some(to.to_string()),
        }
    }
}

const OLD: &str = "[balancer]\nqueue_length = 10\n[[balancer.route]]\nprefix = \"/old\"\napp = \"shop\"\n";

#[tokio::test]
async fn a_good_file_is_in_force_and_the_apps_are_the_same() {
    let house = house(OLD);
    let shop = house.shared().apps.obtain("shop");
    let node = Arc::new(Node::new("node".to_owned(), ([127, 0, 0, 1], 1).into(), b"pass"));
    shop.apply(&node, &[WorkerView::ready(0, ([127, 0, 0, 1], 9000).into(), 2)]);
    let now = Instant::now();
    let asker = Client::from(std::net::IpAddr::from([192, 0, 2, 1])).into();
    let held = shop.acquire(asker, &[], false, now, now + Duration::from_secs(1)).await.unwrap();
    let new = "[balancer]\nqueue_deadline = \"3s\"\ndrain = \"1s\"\nmax_body = \"1KiB\"\n\
               [[balancer.route]]\nprefix = \"/new\"\napp = \"shop\"\n[[balancer.route]]\nprefix = \"/blog\"\napp = \"blog\"\n";
    assert!(house.reload(new).await);
    assert_eq!((house.app_of("/old"), house.app_of("/new")), (None, Some("shop".to_owned())));
    assert_eq!(house.app_of("/blog").as_deref(), Some("blog"));
    let config = house.shared().config.load();
    assert_eq!((config.max_body.as_u64(), config.drain.as_secs()), (1024, 7), "a flag beats the file, then as now");
    assert!(Arc::ptr_eq(&shop, &house.shared().apps.obtain("shop")));
    assert_eq!((shop.queue_deadline().as_secs(), shop.in_flight("node"), shop.view().nodes.len()), (3, 1, 1));
    assert_eq!(house.shared().apps.obtain("later").queue_deadline().as_secs(), 3);
    drop(held);
    assert_eq!(shop.in_flight("node"), 0);
}

#[tokio::test]
async fn upstreams_come_change_and_go_with_the_file() {
    let house = house(OLD);
    let servers = |name: &str| {
        let app = house.shared().apps.obtain(name);
        let mut nodes: Vec<_> = app.view().nodes.iter().map(|node| node.node.instance.clone()).collect();
        nodes.sort();
        nodes
    };
    let eventually = async |name: &str, wanted: &[&str]| {
        crate::fixture::eventually(|| servers(name) == wanted).await;
    };
    let route = |upstream: &str| format!("[[balancer.route]]\nname = \"shop\"\nupstream = {upstream}\n");
    assert!(house.reload(&route("\"http://127.0.0.1:1\"")).await);
    assert_eq!(house.app_of("/").as_deref(), Some("upstream:shop"));
    eventually("upstream:shop", &["127.0.0.1:1"]).await;
    assert!(house.reload(&route("[\"http://127.0.0.1:2\", \"http://127.0.0.1:1\"]")).await);
    eventually("upstream:shop", &["127.0.0.1:1", "127.0.0.1:2"]).await;
    let bad = route("\"https://127.0.0.1:3\"\nca = \"/nowhere/ca.pem\"");
    assert!(!house.reload(&bad).await);
    assert_eq!(servers("upstream:shop"), ["127.0.0.1:1", "127.0.0.1:2"]);
    assert!(house.reload(OLD).await);
    eventually("upstream:shop", &[]).await;
}

#[tokio::test]
async fn a_bad_file_changes_nothing() {
    let house = house(OLD);
    let before = house.shared().config.load_full();
    for bad in ["[balancer]\nqueue_lenght = 1\n", "[balancer\n", "[balancer]\nhttp = \"off\"\nhttps = \"off\"\n"] {
        assert!(!house.reload(bad).await);
    }
    assert!(Arc::ptr_eq(&before, &house.shared().config.load_full()));
    assert_eq!(house.app_of("/old").as_deref(), Some("shop"));
    assert!(house.reload(OLD).await, "and the next good one is taken");
}

#[tokio::test]
async fn a_reader_that_fails_changes_nothing() {
    let mut house = house(OLD);
    house.reloader.reread = Arc::new(|| panic!("the reader has a fault"));
    assert!(!house.reloader.reload().await);
}

#[tokio::test]
async fn quick_ones_count_once_and_while_it_drains_none_does() {
    let House { reloader, reads, .. } = house(OLD);
    let lifecycle = reloader.lifecycle.clone();
    let (say, commands) = mpsc::channel(8);
    for command in [Command::Reload, Command::Reload, Command::Reopen, Command::Reload] {
        say.send(command).await.unwrap();
    }
    let obeying = tokio::spawn(reloader.obey(commands));
    timeout(Duration::from_secs(10), async {
        while say.capacity() < 8 || reads.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    lifecycle.advance(Phase::Draining);
    say.send(Command::Reload).await.unwrap();
    drop(say);
    obeying.await.unwrap();
    assert_eq!(reads.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn fewer_connections_are_allowed_when_enough_have_ended() {
    let house = house("[balancer]\nmax_connections = 4\n");
    let slots = Arc::clone(&house.shared().slots);
    let open: Vec<_> = (0..4).map(|_| Arc::clone(&slots).try_acquire_owned().unwrap()).collect();
    assert!(house.reload("[balancer]\nmax_connections = 2\n").await);
    let next = tokio::spawn(Arc::clone(&slots).acquire_owned());
    tokio::task::yield_now().await;
    let mut open = open.into_iter();
    open.next();
    open.next();
    tokio::task::yield_now().await;
    assert!(!next.is_finished(), "two are open, and two may be");
    open.next();
    let next = timeout(Duration::from_secs(10), next).await.unwrap().unwrap();
    drop((open, next));
    timeout(Duration::from_secs(10), slots.acquire_many(2)).await.unwrap().unwrap().forget();
    assert_eq!(slots.available_permits(), 0);
    assert!(house.reload("[balancer]\nmax_connections = 5\n").await);
    assert_eq!(slots.available_permits(), 3);
}
