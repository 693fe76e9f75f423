use super::*;
use crate::{dispatch::Priority, route::HostPattern};
use chassis::config::{Layers, Problems};
use std::sync::Arc;

fn read(text: &str) -> (Config, Result<(), Problems>) {
    let layers = Layers::from_text("servery.toml", text, [], Vec::new());
    let mut reader = Reader::new(&layers);
    let config = Config::read(&mut reader);
    let ended = reader.finish();
    (config, ended)
}

fn problems(text: &str) -> Vec<String> {
    match read(text).1 {
        Ok(()) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

/// The one problem of a configuration.
fn problem(text: &str) -> String {
    let mut problems = problems(text);
    assert_eq!(problems.len(), 1, "{text}: {problems:?}");
    problems.remove(0)
}

#[test]
fn an_empty_file_is_a_whole_configuration() {
    let (config, ended) = read("");
    ended.unwrap();
    assert_eq!(config.http, ListenAddr::All(8080));
    assert_eq!(config.https, ListenAddr::All(8443));
    assert_eq!(config.control, ListenAddr::All(7400));
    assert_eq!(config.queue_deadline, Duration::from_secs(10));
    assert_eq!(config.limits().stalled_share, Percent(50));
    assert!(config.threads >= 1);
    assert_eq!(config.routes, []);
}

#[test]
fn routes_lead_to_apps_and_redirects() {
    let (config, ended) = read(
        "[[balancer.route]]\nprefix = \"/shop\"\napp = \"shop\"\nstrip_prefix = true\n\
         [[balancer.route]]\nhost = \"old.example.com\"\nredirect = \"https://example.com/new\"\n",
    );
    ended.unwrap();
    let [shop, old] = config.routes.as_slice() else { panic!("{:?}", config.routes) };
    assert_eq!(shop.host, HostPattern::Any);
    assert_eq!(shop.prefix.as_str(), "/shop");
    assert_eq!(shop.target, RouteTarget::App("shop".to_owned()));
    assert!(shop.strip_prefix);
    assert_eq!(old.prefix.as_str(), "/");
    assert_eq!(old.target, RouteTarget::Redirect("https://example.com/new".to_owned()));
}

#[test]
fn the_second_of_two_clashing_routes_is_refused_at_its_line() {
    let text = "[[balancer.route]]\nprefix = \"/a\"\napp = \"one\"\n\
                [[balancer.route]]\nhost = \"Example.com\"\nprefix = \"/a\"\napp = \"one\"\n\
                [[balancer.route]]\napp = \"two\"\nprefix = \"/a\"\n\
                [[balancer.route]]\nhost = \"example.com\"\nprefix = \"/a/\"\napp = \"two\"\n";
    let wanted = |line| {
        format!("servery.toml:{line}: balancer.route.prefix: clashes: an earlier route has the same host and prefix")
    };
    assert_eq!(problems(text), [wanted(10), wanted(13)]);
}

#[test]
fn what_is_not_there_yet_is_refused_by_name() {
    let problem = problem("[[balancer.route]]\ndirectory = \"x\"\n");
    assert!(problem.starts_with("servery.toml:2: balancer.route.directory: is not supported yet"), "{problem}");
}

#[test]
fn a_route_leads_to_exactly_one_place() {
    for (text, line, key) in [
        ("[[balancer.route]]\nprefix = \"/a\"\n", 1, "app"),
        ("[[balancer.route]]\napp = \"a\"\nredirect = \"/b\"\n", 3, "redirect"),
        ("[[balancer.route]]\napp = \"A B\"\n", 2, "app"),
        ("[[balancer.route]]\napp = 7\n", 2, "app"),
        ("[[balancer.route]]\nredirect = \"example.com\"\n", 2, "redirect"),
        ("[[balancer.route]]\nredirect = \"//example.com\"\n", 2, "redirect"),
        ("[[balancer.route]]\nredirect = \"https://example.com/?a=b\"\n", 2, "redirect"),
        ("[[balancer.route]]\nredirect = \"/b\"\nstrip_prefix = true\n", 3, "strip_prefix"),
        ("[[balancer.route]]\napp = \"a\"\nhost = \"a b\"\n", 3, "host"),
        ("[[balancer.route]]\napp = \"a\"\nprefix = \"a\"\n", 3, "prefix"),
        ("[[balancer.route]]\napp = \"a\"\nprefx = \"/a\"\n", 3, "prefx"),
        ("[[balancer.route]]\napp = \"a\"\npriority = \"urgent\"\n", 3, "priority"),
        ("[[balancer.route]]\napp = \"a\"\nreserve = -1\n", 3, "reserve"),
        ("[[balancer.route]]\nredirect = \"/b\"\npriority = \"high\"\n", 2, "redirect"),
        ("[[balancer.route]]\nredirect = \"/b\"\nreserve = 1\n", 2, "redirect"),
    ] {
        let problem = problem(text);
        assert!(problem.starts_with(&format!("servery.toml:{line}: balancer.route.{key}: ")), "{problem}");
    }
}

#[test]
fn routes_of_an_app_have_their_priorities_and_each_its_own_reserve() {
    let text = "[[balancer.route]]\napp = \"a\"\n\
        [[balancer.route]]\napp = \"a\"\nprefix = \"/health\"\npriority = \"high\"\nreserve = 2\n\
        [[balancer.route]]\napp = \"b\"\nprefix = \"/b\"\nreserve = 3\n\
        [[balancer.route]]\napp = \"a\"\nprefix = \"/batch\"\npriority = \"low\"\nreserve = 1\n";
    let layers = Layers::from_text("servery.toml", text, [], Vec::new());
    let mut reader = Reader::new(&layers);
    let config = Config::read(&mut reader);
    reader.finish().unwrap();
    let classes: Vec<_> = config.routes.iter().map(|route| (route.class.priority, route.class.reserve)).collect();
    let (high, normal, low) = (Priority::High, Priority::Normal, Priority::Low);
    assert_eq!(classes, [(normal, None), (high, Some(0)), (normal, Some(0)), (low, Some(1))]);
    assert_eq!(config.reserves(), [("a".to_owned(), vec![2, 1]), ("b".to_owned(), vec![3])].into());
}

#[test]
fn values_that_do_not_fit_together_are_refused() {
    for (text, line, key) in [
        ("[balancer]\nhttp = \"off\"\nhttps = \"off\"\n", 3, "balancer.https"),
        ("[balancer]\nhttps = \"off\"\npublic_https_port = 443\n", 3, "balancer.public_https_port"),
        ("[balancer]\npublic_https_port = 0\n", 2, "balancer.public_https_port"),
        ("[balancer]\ncontrol = \"off\"\n", 2, "balancer.control"),
        ("[balancer]\nhttp = \":8443\"\n", 1, "balancer.https"),
        ("[balancer]\nadmin = \"127.0.0.1:8080\"\n", 2, "balancer.admin"),
        ("[balancer]\nhttp = \"127.0.0.1:80\"\nadmin = \"0.0.0.0:80\"\n", 3, "balancer.admin"),
        ("[balancer]\nqueue_deadline = \"0s\"\n", 2, "balancer.queue_deadline"),
        ("[balancer]\nresponse_timeout = \"1s\"\nconnect_timeout = \"2s\"\n", 3, "balancer.connect_timeout"),
        ("[balancer]\nresponse_timeout = \"30s\"\n[app_server]\ntimeout = \"30s\"\n", 2, "balancer.response_timeout"),
        ("[balancer]\nmax_connections = 0\n", 2, "balancer.max_connections"),
        ("[balancer]\nthreads = 0\n", 2, "balancer.threads"),
        ("[balancer]\nqueue_deadline = 10\n", 2, "balancer.queue_deadline"),
        ("[balancer]\nmax_body = 10\n", 2, "balancer.max_body"),
        ("[balancer]\ntrusted_proxies = [\"10.0.0.0/40\"]\n", 2, "balancer.trusted_proxies"),
        ("[[balancer.certificate]]\ncert = \"/a\"\n", 1, "balancer.certificate.key"),
        ("[[balancer.certificate]]\ncert = \"a\"\nkey = \"/b\"\n", 2, "balancer.certificate.cert"),
        ("[[balancer.certificate]]\ncert = 1\nkey = \"/b\"\n", 2, "balancer.certificate.cert"),
        (
            "[[balancer.certificate]]\ncert = \"/a\"\nkey = \"/b\"\n[[balancer.certificate]]\ncert = \"/a\"\nkey = \"/c\"\n",
            5,
            "balancer.certificate.cert",
        ),
        ("[balancer]\nproxy_protocol = true\n", 2, "balancer.proxy_protocol"),
        ("[balancer]\naccess_log = \"access.log\"\n", 2, "balancer.access_log"),
        ("[balancer]\naccess_log = \"\"\n", 2, "balancer.access_log"),
        ("[balancer]\naccess_log_format = \"common\"\n", 2, "balancer.access_log_format"),
        ("[balancer]\naccess_log_sample = 1.5\n", 2, "balancer.access_log_sample"),
        ("[balancer]\naccess_log_query = 1\n", 2, "balancer.access_log_query"),
    ] {
        let problem = problem(text);
        assert!(problem.starts_with(&format!("servery.toml:{line}: {key}: ")), "{text}{problem}");
    }
    assert_eq!(
        problems("[balancer]\nhttp = \"127.0.0.1:0\"\nhttps = \":0\"\ncontrol = \":0\"\nadmin = \":0\"\n"),
        [""; 0]
    );
    assert_eq!(problems("[balancer]\nhttp = \"127.0.0.1:80\"\nadmin = \"127.0.0.2:80\"\n"), [""; 0]);
}

#[test]
fn names_of_apps_are_plain() {
    for (name, wanted) in
        [("demo", true), ("a", true), ("9-b_c.d", true), ("", false), ("-a", false), ("A", false), ("a/b", false)]
    {
        assert_eq!(is_app_name(name), wanted, "{name}");
    }
    assert!(is_app_name(&"a".repeat(63)));
    assert!(!is_app_name(&"a".repeat(64)));
}

#[test]
fn a_route_may_lead_to_servers_that_are_no_app_servers() {
    let (config, ended) = read(
        "[[balancer.route]]\nupstream = \"http://10.0.0.5:8000\"\n\
         [[balancer.route]]\nprefix = \"/shop\"\nname = \"shop\"\n\
         upstream = [\"http://Shop.internal weight=4\", \"https://other.internal weight=6\", \"https://[fd00::5]:8443 weight=2\"]\n\
         ca = \"/ca.pem\"\nhost_header = \"upstream\"\nkeepalive = \"30s\"\nmax_connections = 16\n\
         health_check = \"/healthz?x=1\"\nhealth_interval = \"1s\"\n\
         [[balancer.route]]\nprefix = \"/same\"\nupstream = [\"http://10.0.0.5:8000\"]\nreserve = 1\n",
    );
    ended.unwrap();
    let targets: Vec<_> = config.routes.iter().map(|route| &route.target).collect();
    let [RouteTarget::Upstream(plain), RouteTarget::Upstream(shop), RouteTarget::Upstream(same)] = targets.as_slice()
    else {
        panic!("{targets:?}")
    };
    assert!(Arc::ptr_eq(plain, same), "the same servers are one upstream");
    assert_eq!(plain.name, "upstream:10.0.0.5:8000");
    assert_eq!((plain.host, plain.max_connections, &plain.health), (HostHeader::Preserve, 1024, &None));
    assert_eq!((plain.protocol, plain.keepalive), (UpstreamProtocol::Http1, Duration::from_millis(1500)));
    assert_eq!(config.reserves(), [("upstream:10.0.0.5:8000".to_owned(), vec![1])].into());
    assert_eq!(shop.name, "upstream:shop");
    let servers: Vec<_> =
        shop.servers.iter().map(|server| (server.secure, server.at.to_string(), server.weight)).collect();
    assert_eq!(
        servers,
        [
            (false, "shop.internal:80".to_owned(), 2),
            (true, "other.internal:443".to_owned(), 3),
            (true, "[fd00::5]:8443".to_owned(), 1),
        ]
    );
    let health = shop.health.as_ref().unwrap();
    assert_eq!((health.path.as_str(), health.interval, health.timeout), ("/healthz?x=1", SECOND, SECOND));
    assert_eq!((shop.host, shop.max_connections, shop.keepalive), (HostHeader::Upstream, 16, 30 * SECOND));
}

#[test]
fn a_server_that_is_spoken_with_over_http2_keeps_its_connections_for_longer() {
    for (server, protocol) in [("http://a", "h2c"), ("https://a", "h2")] {
        let text = format!("[[balancer.route]]\nupstream = \"{server}\"\nprotocol = \"{protocol}\"\n");
        let (config, ended) = read(&text);
        ended.unwrap();
        let RouteTarget::Upstream(upstream) = &config.routes[0].target else { panic!("{config:?}") };
        assert_eq!((upstream.protocol, upstream.keepalive), (UpstreamProtocol::Http2, 60 * SECOND));
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn what_is_wrong_with_an_upstream_is_told_at_its_line() {
    let upstream = "[[balancer.route]]\nupstream = \"http://a:1\"\n";
    for (text, line, key) in [
        ("[[balancer.route]]\nupstream = []\n".to_owned(), 2, "upstream"),
        ("[[balancer.route]]\nupstream = 7\n".to_owned(), 2, "upstream"),
        ("[[balancer.route]]\nupstream = [\"http://a\",\n\"http://b/path\"]\n".to_owned(), 3, "upstream"),
        ("[[balancer.route]]\nupstream = [\"http://a\", \"http://A:80\"]\n".to_owned(), 2, "upstream"),
        (format!("{upstream}app = \"a\"\n"), 3, "app"),
        (format!("{upstream}redirect = \"/a\"\n"), 3, "redirect"),
        (format!("{upstream}name = \"A\"\n"), 3, "name"),
        (format!("{upstream}ca = \"/ca.pem\"\n"), 3, "ca"),
        (format!("{upstream}host_header = \"mine\"\n"), 3, "host_header"),
        (format!("{upstream}keepalive = 5\n"), 3, "keepalive"),
        (format!("{upstream}protocol = \"http2\"\n"), 3, "protocol"),
        (format!("{upstream}protocol = \"h2\"\n"), 3, "protocol"),
        (
            "[[balancer.route]]\nupstream = [\"https://a\", \"http://b\"]\nprotocol = \"h2c\"\n".to_owned(),
            3,
            "protocol",
        ),
        ("[[balancer.route]]\napp = \"a\"\nprotocol = \"h2c\"\n".to_owned(), 3, "protocol"),
        (format!("{upstream}max_connections = 0\n"), 3, "max_connections"),
        (format!("{upstream}health_check = \"healthz\"\n"), 3, "health_check"),
        (format!("{upstream}health_check = \"http://a/b\"\n"), 3, "health_check"),
        (format!("{upstream}health_interval = \"5s\"\n"), 3, "health_interval"),
        (format!("{upstream}health_timeout = \"5s\"\n"), 3, "health_timeout"),
        (format!("{upstream}health_check = \"/\"\nhealth_interval = \"1ms\"\n"), 4, "health_interval"),
        (format!("{upstream}health_check = \"/\"\nhealth_timeout = \"0s\"\n"), 4, "health_timeout"),
        (format!("{upstream}healthcheck = \"/\"\n"), 3, "healthcheck"),
        ("[[balancer.route]]\napp = \"a\"\nhealth_check = \"/\"\n".to_owned(), 3, "health_check"),
        (format!("{upstream}{}keepalive = \"1s\"\n", upstream.replace("]\n", "]\nprefix = \"/b\"\n")), 5, "upstream"),
    ] {
        let problem = problem(&text);
        assert!(problem.starts_with(&format!("servery.toml:{line}: balancer.route.{key}: ")), "{text}{problem}");
    }
}

#[test]
fn a_server_is_a_url_without_a_path_and_perhaps_a_weight() {
    use chassis::config::Value as _;
    for (text, wanted) in [
        ("http://a", Some("a:80")),
        ("https://a/", Some("a:443")),
        ("HTTP://a:8000   weight=100", Some("a:8000")),
        ("http://127.0.0.1:1", Some("127.0.0.1:1")),
        ("http://my_app:8000", Some("my_app:8000")),
        ("", None),
        ("a:8000", None),
        ("ftp://a", None),
        ("http://", None),
        ("http://a:", None),
        ("http://a:0", None),
        ("http://a:65536", None),
        ("http://a/b", None),
        ("http://a/?b", None),
        ("http://a#b", None),
        ("http://b@a", None),
        ("http://10.0.0.300", None),
        ("https://-a", None),
        ("http://a weight=0", None),
        ("http://a weight=101", None),
        ("http://a weight=-1", None),
        ("http://a weight", None),
        ("http://a wait=1", None),
        ("http://a weight=1 weight=2", None),
        ("http://a http://b", None),
    ] {
        let server = Server::from_text(text);
        assert_eq!(server.map(|server| server.at.to_string()).as_deref(), wanted, "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_a_server_of_an_upstream_panic(text in "(https?://)?\\PC{0,24}( weight=\\PC{0,4})?") {
        use chassis::config::Value as _;
        if let Some(server) = Server::from_text(&text) {
            // what is made of it later depends on these
            proptest::prop_assert!(server.weight >= 1 && server.at.port.is_some_and(|port| port > 0));
            let at = server.at.to_string();
            proptest::prop_assert!(at.is_ascii() && http::HeaderValue::try_from(&at).is_ok() && !at.contains(['"', '\\', ' ']));
        }
    }
}

#[test]
fn a_share_of_the_places_is_not_nothing() {
    let (config, ended) = read("[balancer]\nstalled_client_share = \"30%\"\n");
    ended.unwrap();
    assert_eq!(config.limits().stalled_share, Percent(30));
    assert!(problem("[balancer]\nstalled_client_share = \"0%\"\n").contains("stalled_client_share"));
}
