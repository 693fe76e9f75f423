use super::*;
use rcgen::{CertificateParams, KeyPair};
use std::os::unix::fs::{PermissionsExt as _, symlink};

/// A certificate for `host`, which ends in so many days, and its key, both in PEM.
fn made(host: &str, days: i64) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    params.not_before = OffsetDateTime::now_utc() - time::Duration::days(30);
    params.not_after = OffsetDateTime::now_utc() + time::Duration::days(days);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn write(directory: &Path, (cert, key): &(String, String)) -> CertificateFiles {
    let files = CertificateFiles { cert: directory.join("fullchain.pem"), key: directory.join("privkey.pem") };
    fs::write(&files.cert, cert).unwrap();
    fs::write(&files.key, key).unwrap();
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
    files
}

fn watching(files: &CertificateFiles) -> OwnFiles {
    let own = OwnFiles::default();
    let opened = own.open(std::slice::from_ref(files)).unwrap();
    own.watch(opened);
    own
}

/// Looks until nothing changes any more: what is served at the end, if anything was renewed.
fn settled(own: &OwnFiles) -> Option<Vec<String>> {
    let mut served = None;
    for _ in 0..4 {
        served = own.look().map(|entries| entries[0].hosts.clone()).or(served);
    }
    served
}

#[test]
fn the_names_are_those_of_the_certificate() {
    let home = tempfile::tempdir().unwrap();
    let files = write(home.path(), &made("*.Example.org", 10));
    let entries = {
        let own = OwnFiles::default();
        own.watch(own.open(std::slice::from_ref(&files)).unwrap())
    };
    assert_eq!((entries[0].hosts.as_slice(), entries[0].from_file), (&["*.example.org".to_owned()][..], true));
    assert_eq!(entries[0].name, files.cert.display().to_string());
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (one, other) = (made("a.org", 10), made("b.org", 10));
    let mismatched = write(homes[0].path(), &(one.0.clone(), other.1));
    let swapped = write(homes[1].path(), &(one.1.clone(), one.0.clone()));
    let nameless = {
        let key = KeyPair::generate().unwrap();
        let bare = CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().pem();
        write(homes[2].path(), &(bare, key.serialize_pem()))
    };
    let absent = CertificateFiles { cert: "/nowhere/cert.pem".into(), key: "/nowhere/key.pem".into() };
    let errors = OwnFiles::default().open(&[mismatched, swapped, nameless, absent]).unwrap_err();
    let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for (told, word) in told.iter().zip(["key does not fit", "no certificate", "names no host", "/nowhere/cert.pem: "])
    {
        assert!(told.contains(word), "{told}");
    }
    assert_eq!(told.len(), 4);
}

#[test]
fn an_expired_certificate_is_used_all_the_same() {
    let home = tempfile::tempdir().unwrap();
    let files = write(home.path(), &made("a.org", -1));
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(OwnFiles::default().open(&[files]).is_ok());
}

#[test]
fn a_renewed_pair_is_taken_when_both_files_are_there_and_still() {
    let home = tempfile::tempdir().unwrap();
    let files = write(home.path(), &made("a.org", 10));
    let own = watching(&files);
    assert_eq!(settled(&own), None);
    let new = made("b.org", 10);
    // half of it
    fs::write(&files.cert, &new.0[..new.0.len() / 2]).unwrap();
    assert_eq!(settled(&own), None);
    // a certificate without its key
    fs::write(&files.cert, &new.0).unwrap();
    assert_eq!(settled(&own), None);
    fs::remove_file(&files.key).unwrap();
    assert_eq!(settled(&own), None);
    fs::write(&files.key, &new.1).unwrap();
    assert!(own.look().is_none(), "it may still be written to");
    assert_eq!(settled(&own), Some(vec!["b.org".to_owned()]));
    assert_eq!(settled(&own), None, "once");
}

#[test]
fn links_are_followed_as_certbot_and_kubernetes_put_them() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    for (name, host) in [("first", "a.org"), ("second", "b.org")] {
        fs::create_dir(at(name)).unwrap();
        write(&at(name), &made(host, 10));
    }
    symlink("first", at("..data")).unwrap();
    for name in ["fullchain.pem", "privkey.pem"] {
        symlink(Path::new("..data").join(name), at(name)).unwrap();
    }
    let own = watching(&CertificateFiles { cert: at("fullchain.pem"), key: at("privkey.pem") });
    symlink("second", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    assert_eq!(settled(&own), Some(vec!["b.org".to_owned()]));
}

#[test]
fn a_newer_configuration_keeps_a_pair_that_cannot_be_read_right_now() {
    let home = tempfile::tempdir().unwrap();
    let files = write(home.path(), &made("a.org", 10));
    let own = watching(&files);
    fs::write(&files.key, "half of a k").unwrap();
    let opened = own.open(std::slice::from_ref(&files)).unwrap();
    assert_eq!(own.watch(opened)[0].hosts, ["a.org"]);
    let unknown = CertificateFiles { key: files.cert.clone(), ..files };
    assert_eq!(own.open(&[unknown]).unwrap_err().len(), 1);
}
