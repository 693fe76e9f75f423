use super::{Bind, Config, ProxyProtocol, RouteConfig};
use chassis::{
    config::{HostPort, Layers, Reader},
    listen::ListenAddr,
};
use std::{path::Path, time::Duration};

fn read(text: &str) -> Result<Config, String> {
    let layers = Layers::from_text("servery.toml", text, [], vec![]);
    let mut reader = Reader::new(&layers);
    let config = Config::read(&mut reader);
    reader.finish().map(|()| config).map_err(|problems| problems.to_string())
}

#[test]
fn nothing_said_gives_the_documented_defaults() {
    let config = read("").unwrap();
    assert_eq!((config.app.as_str(), config.capacity), ("demo", 256));
    assert!(config.join.is_empty() && config.exec.is_none() && !config.name.is_empty() && config.workers >= 1);
    assert_eq!((config.timeout, config.heartbeat), (Duration::from_secs(30), Duration::from_secs(1)));
    assert_eq!(config.worker_bind, ListenAddr::All(9000));
    assert_eq!((config.recycling.max_requests, config.recycling.max_requests_jitter), (0, 0));
    assert_eq!((config.workers_max, config.replace_at_once.of(8)), (config.workers, 2));
    assert_eq!((config.edge.keepalive, config.edge.proxy_protocol), (Duration::from_secs(2), ProxyProtocol::Off));
    assert!(config.edge.forwarded_allow_ips.is_empty() && config.edge.proxy_allow_ips.is_empty());
    assert_eq!(config.routes, [RouteConfig { host: String::new(), prefix: "/".to_owned(), strip_prefix: false }]);
}

#[test]
fn what_is_said_is_taken() {
    let config = read(
        "[app_server]\nname = \"node-1\"\napp = \"shop\"\njoin = [\"balancer:7400\"]\nworkers = 3\ncapacity = 7\n\
         exec = \"/bin/app\"\nworker_bind = \"127.0.0.1:0\"\n[[app_server.route]]\nprefix = \"/shop\"\nstrip_prefix = true\n",
    )
    .unwrap();
    assert_eq!(config.join, [HostPort::new("balancer", 7400)]);
    assert_eq!((config.workers, config.capacity, config.name.as_str()), (3, 7, "node-1"));
    assert_eq!(config.routes.len(), 1);
    assert!(config.routes[0].strip_prefix && config.routes[0].prefix == "/shop");
}

#[test]
fn every_mistake_is_told_at_its_line() {
    let problems = read(
        "[app_server]\nname = \"a b\"\nworkers = 0\ncapacity = 100000\ntimeout = \"0s\"\nheartbeat = \"1ms\"\n\
         worker_bind = \"off\"\nbind = \"off\"\nadvertise = \"::\"\n[[app_server.route]]\nprefix = \"shop\"\n",
    )
    .unwrap_err();
    for line in [2, 3, 4, 5, 6, 7, 8, 9, 11] {
        assert!(problems.contains(&format!("servery.toml:{line}: ")), "line {line} is missing in:\n{problems}");
    }
    assert!(read("[app_server]\napp = \"Shop\"\n").unwrap_err().contains("servery.toml:2: "));
    assert!(read("[app_server]\nworker_bind = \":80\"\n").unwrap_err().contains("below 1024"));
}

fn at(text: &str) -> ListenAddr {
    text.parse().unwrap()
}

#[test]
fn a_node_that_was_told_nothing_serves_this_machine_and_one_with_balancers_nobody() {
    let alone = read("").unwrap();
    assert_eq!(alone.bind, Some(Bind::Tcp(at("127.0.0.1:8000"))));
    assert_eq!((alone.admin, alone.admin_is_default), (at("127.0.0.1:9180"), true));

    let joined = read("[app_server]\njoin = \"balancer:7400\"\n").unwrap();
    assert_eq!((joined.bind, joined.admin, joined.admin_is_default), (None, ListenAddr::All(9180), true));

    let chosen = read("[app_server]\nadmin = \":9180\"\nbind = \"unix:/run/app.sock\"\n").unwrap();
    assert_eq!((chosen.admin, chosen.admin_is_default), (ListenAddr::All(9180), false));
    assert_eq!(chosen.bind, Some(Bind::Unix("/run/app.sock".into())));
}

#[test]
fn every_new_key_has_a_value_of_its_own() {
    let config = read(
        "[app_server]\nbind = \":80\"\nworkers = 4\nworkers_max = 8\nmax_requests = 1000\nmax_lifetime = \"1h\"\n\
         max_rss = \"200MiB\"\nmax_rss_hard = \"300MiB\"\nreplace_at_once = \"50%\"\nlimit_request_line = 4094\n\
         limit_request_fields = 100\nlimit_request_field_size = 8190\nmax_body = \"10MiB\"\nheader_timeout = \"5s\"\n\
         body_timeout = \"20s\"\nkeepalive = \"0s\"\nforwarded_allow_ips = [\"10.0.0.0/8\"]\nproxy_protocol = \"v2\"\n\
         proxy_allow_ips = \"10.0.0.1\"\naccess_log = \"-\"\nlog_file = \"/var/log/app.log\"\npid = \"/run/app.pid\"\n",
    )
    .unwrap();
    assert_eq!((config.workers, config.workers_max, config.replace_at_once.of(4)), (4, 8, 2));
    let recycling = config.recycling;
    assert_eq!((recycling.max_requests, recycling.max_requests_jitter), (1000, 100));
    assert_eq!(recycling.max_lifetime, Some(Duration::from_secs(3600)));
    assert_eq!((recycling.max_rss, recycling.max_rss_hard), (Some(200 << 20), Some(300 << 20)));
    let limits = config.request_limits;
    assert_eq!((limits.limit_request_line, limits.limit_request_fields), (4094, 100));
    assert_eq!((limits.limit_request_field_size, limits.max_body.as_u64()), (8190, 10 << 20));
    assert_eq!((limits.header_timeout, limits.body_timeout), (Duration::from_secs(5), Duration::from_secs(20)));
    let edge = config.edge;
    assert_eq!((edge.keepalive, edge.proxy_protocol), (Duration::ZERO, ProxyProtocol::V2));
    assert_eq!((edge.forwarded_allow_ips.len(), edge.proxy_allow_ips.len()), (1, 1));
    assert_eq!(edge.access_log.as_deref(), Some(Path::new("-")));
    assert_eq!(config.log_file.as_deref(), Some(Path::new("/var/log/app.log")));
    assert_eq!(config.pid.as_deref(), Some(Path::new("/run/app.pid")));
}

#[test]
fn bounds_and_rules_between_keys_are_told_all_at_once() {
    let problems = read(
        "[app_server]\nworkers = 4\nworkers_max = 3\nmax_requests = 10\nmax_requests_jitter = 11\n\
         max_lifetime = \"10ms\"\nmax_rss = \"2GiB\"\nmax_rss_hard = \"1GiB\"\nreplace_at_once = \"0%\"\n\
         limit_request_line = 100\nlimit_request_fields = 0\nlimit_request_field_size = 100000\nmax_body = \"0B\"\n\
         header_timeout = \"0s\"\nbody_timeout = \"2d\"\nkeepalive = \"2d\"\nforwarded_allow_ips = [\"10.1.0.0/8\"]\n\
         proxy_protocol = \"v3\"\n",
    )
    .unwrap_err();
    for line in [3, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18] {
        assert!(problems.contains(&format!("servery.toml:{line}: ")), "line {line} is missing in:\n{problems}");
    }
    for line in [2, 4, 7] {
        assert!(!problems.contains(&format!("servery.toml:{line}: ")), "line {line} is right, but:\n{problems}");
    }
    assert!(read("[app_server]\nworkers_max = 257\n").unwrap_err().contains("256"));
    assert!(read("[app_server]\nmax_rss = \"1kB\"\n").unwrap_err().contains("1MiB"));
}

#[test]
fn balancers_and_clients_of_its_own_exclude_each_other() {
    let join = "[app_server]\njoin = \"balancer:7400\"\n";
    assert!(read(&format!("{join}bind = \":8000\"\n")).unwrap_err().contains("servery.toml:3: "));
    for (key, value) in [
        ("forwarded_allow_ips", "\"10.0.0.0/8\""),
        ("proxy_protocol", "\"auto\""),
        ("proxy_allow_ips", "\"10.0.0.1\""),
        ("access_log", "\"-\""),
    ] {
        let refused = read(&format!("{join}{key} = {value}\n")).unwrap_err();
        assert!(refused.contains("servery.toml:3: ") && refused.contains("(bind)"), "{refused}");
        assert!(read(&format!("[app_server]\n{key} = {value}\n")).is_ok(), "{key}");
    }
}

#[test]
fn auto_is_the_number_of_cores_and_a_dash_is_no_log_file() {
    let cores = u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    let config = read("[app_server]\nworkers = \"auto\"\nlog_file = \"-\"\n").unwrap();
    assert_eq!((config.workers, config.log_file), (cores.min(256), None));
}
