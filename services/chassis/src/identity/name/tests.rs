use super::*;
use proptest::{collection::vec, prelude::*};

fn read(uris: &[&str]) -> Result<PeerId, NameError> {
    PeerId::from_uris(uris.iter().copied(), UNIX_EPOCH)
}

fn node(prefixes: &[&str]) -> PeerId {
    let prefixes: Vec<String> = prefixes.iter().map(|text| (*text).to_owned()).collect();
    PeerId {
        cluster: "servery".to_owned(),
        role: Role::AppServer,
        instance: "node-1".to_owned(),
        apps: vec![AppRight::new("shop", &prefixes).unwrap()],
        not_after: UNIX_EPOCH,
    }
}

#[test]
fn a_name_is_one_spiffe_uri_of_three_parts() {
    let peer = read(&["https://example.com/", "spiffe://servery/balancer/b-1"]).unwrap();
    assert_eq!((peer.cluster.as_str(), peer.role, peer.instance.as_str()), ("servery", Role::Balancer, "b-1"));
    assert!(peer.apps.is_empty());

    assert_eq!(read(&[]), Err(NameError::Count(0)));
    assert_eq!(read(&["spiffe://a/balancer/x", "spiffe://a/balancer/x"]), Err(NameError::Count(2)));
    assert_eq!(read(&["spiffe://a/balancer/x", "SPIFFE://a/balancer/y"]), Err(NameError::Count(2)));
    for wrong in [
        "SPIFFE://a/balancer/x",
        "spiffe:a/balancer/x",
        "spiffe://a/balancer",
        "spiffe://a/balancer/",
        "spiffe://a/balancer/x/",
        "spiffe://a/balancer/x/y",
        "spiffe://a//balancer/x",
        "spiffe:///balancer/x",
        "spiffe://A/balancer/x",
        "spiffe://a:1/balancer/x",
        "spiffe://a/balancer/..",
        "spiffe://a/balancer/x%2Fy",
        "spiffe://a/balancer/x?y",
        "spiffe://a/balancer/x y",
    ] {
        assert_eq!(read(&[wrong]), Err(NameError::Spiffe(wrong.to_owned())), "{wrong}");
    }
    assert_eq!(read(&["spiffe://a/Balancer/x"]), Err(NameError::Role("Balancer".to_owned())));
}

#[test]
fn rights_are_of_the_same_cluster_and_of_app_servers_only() {
    let name = "spiffe://a/app_server/n";
    let peer =
        read(&[name, "servery://a/app/shop?prefix=/cart&prefix=/shop", "servery://a/app/blog?prefix=/"]).unwrap();
    assert!(peer.may_claim("shop", "/cart/7") && peer.may_claim("blog", "/anything"));
    assert!(!peer.may_claim("shop", "/") && !peer.may_claim("other", "/cart"));

    let right = "servery://b/app/shop?prefix=/";
    let foreign = NameError::ForeignRight { uri: right.to_owned(), cluster: "a".to_owned() };
    assert_eq!(read(&[name, right]), Err(foreign));
    let twice = ["servery://a/app/shop?prefix=/a", "servery://a/app/shop?prefix=/b"];
    assert_eq!(read(&[name, twice[0], twice[1]]), Err(NameError::AppTwice("shop".to_owned())));
    let balancer = read(&["spiffe://a/balancer/b", "servery://a/app/shop?prefix=/"]);
    assert_eq!(balancer, Err(NameError::AppsOfRole(Role::Balancer)));
    for wrong in [
        "servery://a/app/shop",
        "servery://a/app/shop?",
        "servery://a/app/shop?prefix=",
        "servery://a/app/?prefix=/",
        "servery://a/app/shop?prefix=/&",
        "servery://a/app/shop?prefix=/a&prefix=/a",
        "servery://a/app/shop?prefix=/b&prefix=/a",
        "servery://a/app/shop?prefix=%2Fa",
        "servery://a/app/shop?prefix=/a/",
        "servery://a/app/shop?prefix=/a/../b",
        "servery://a/app/shop?prefix=/a//b",
        "servery://a/app/shop?prefix=/%2E%2e",
        "servery://a/app/shop?prefix=/a%zz",
        "servery://a/app/shop?prefix=/a%",
        "servery://a/app/shop?prefix=/caf%c3%a9",
        "servery://a/app/s%68op?prefix=/",
        "servery://a/app/Shop?prefix=/",
        "servery://a/app/shop?Prefix=/",
        "servery://a/app/shop?prefix=/#x",
        "servery:a/app/shop?prefix=/",
        "Servery://a/app/shop?prefix=/",
    ] {
        assert_eq!(read(&[name, wrong]), Err(NameError::Right(wrong.to_owned())), "{wrong}");
    }
}

#[test]
fn a_prefix_covers_what_lies_under_it_on_a_segment_border() {
    let peer = node(&["/shop/"]);
    for good in ["/shop", "/shop/", "/shop/cart", "/shop/cart/"] {
        assert!(peer.may_claim("shop", good), "{good}");
    }
    for wrong in ["/", "", "/shopping", "/sho", "shop", "/shop/../admin", "/shop/%2e%2E/admin", "/shop//x", "/SHOP"] {
        assert!(!peer.may_claim("shop", wrong), "{wrong}");
    }
    assert!(node(&["/"]).may_claim("shop", "/anything"));
    assert!(!node(&["/"]).may_claim("shop", "/a/.."));
}

proptest! {
    #[test]
    fn every_name_reads_back_as_it_was_written(
        cluster in "[a-z0-9._-]{1,20}", instance in "[A-Za-z0-9][A-Za-z0-9._-]{0,40}",
        apps in proptest::collection::btree_map("[a-z0-9][a-z0-9._-]{0,20}", vec("(/[a-z0-9&=+%~!:@*',;-]{1,9}){0,3}/?", 1..4), 0..4),
    ) {
        let rights: Result<Vec<_>, _> = apps
            .iter()
            .map(|(app, prefixes)| AppRight::new(app, &prefixes.iter().map(|p| format!("/{}", p.trim_start_matches('/'))).collect::<Vec<_>>()))
            .collect();
        prop_assume!(rights.is_ok());
        let peer = PeerId { cluster, role: Role::AppServer, instance, apps: rights.unwrap(), not_after: UNIX_EPOCH };
        let uris = peer.uris();
        prop_assert!(uris.iter().all(|uri| uri.is_ascii()));
        prop_assert_eq!(PeerId::from_uris(uris.iter().map(String::as_str), UNIX_EPOCH), Ok(peer));
    }

    #[test]
    fn no_text_is_read_in_two_ways(text in "servery://a/app/[a-z%0-9A-F/?=&.]{0,12}\\?prefix=[a-z/%&=.A-F0-9]{0,20}") {
        if let Ok(peer) = read(&["spiffe://a/app_server/n", &text]) {
            prop_assert_eq!(&peer.uris()[1], &text);
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text: String, other in "(spiffe|servery)://\\PC{0,60}") {
        let _ = read(&[&text, &other]);
        let _ = node(&["/a"]).may_claim(&text, &other);
    }
}
