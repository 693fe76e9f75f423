use super::*;
use chassis::config::{Layers, Problems};

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
    for key in ["upstream", "directory"] {
        let problem = problem(&format!("[[balancer.route]]\n{key} = \"x\"\n"));
        assert!(
            problem.starts_with(&format!("servery.toml:2: balancer.route.{key}: is not supported yet")),
            "{problem}"
        );
    }
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
