//! The operator's own certificates: files that are served, watched and swapped under open connections.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use servery_harness::{Client, Member, Plan, Protocol, ensure, eventually};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// A certificate for `localhost` that nothing else vouches for, and its key, both in PEM.
fn made() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// Where the balancer looks for them.
struct Files {
    cert: PathBuf,
    key: PathBuf,
}

impl Files {
    fn in_directory(directory: &Path) -> Self {
        Self { cert: directory.join("fullchain.pem"), key: directory.join("privkey.pem") }
    }

    fn table(&self) -> String {
        format!("[[balancer.certificate]]\ncert = {:?}\nkey = {:?}\n", self.cert, self.key)
    }

    fn write_key(&self, pem: &str) {
        std::fs::write(&self.key, pem).unwrap();
        std::fs::set_permissions(&self.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// Whether a new connection is shown this certificate.
async fn shows(balancer: &Member, pem: &str) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let root = directory.path().join("root.pem");
    std::fs::write(&root, pem)?;
    let answer = Client::trusting(&root, balancer.https(), Protocol::Http1)?.get("/hello").await?;
    anyhow::ensure!(answer.status == 200, "{}", answer.status);
    Ok(())
}

#[tokio::test]
async fn own_files_are_swapped_under_open_connections_and_half_written_ones_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let files = Files::in_directory(directory.path());
    let (old, new) = (made(), made());
    std::fs::write(&files.cert, &old.0).unwrap();
    files.write_key(&old.1);
    let cluster = Plan::new(SERVERY).with_tables(&files.table()).start().await;
    let balancer = &cluster.balancers[0];
    // the cert-sidecar has one for the same name, which counts for less
    shows(balancer, &old.0).await.unwrap();
    let status = balancer.status().await.unwrap();
    let name = files.cert.display().to_string();
    assert_eq!(
        (&status["certificates"][0]["source"], &status["certificates"][0]["name"]),
        (&"file".into(), &name.as_str().into())
    );
    assert_eq!(status["certificates"][1]["source"], "internal");

    let root = directory.path().join("old.pem");
    std::fs::write(&root, &old.0).unwrap();
    let client = Client::trusting(&root, balancer.https(), Protocol::Http1).unwrap();
    let mut open = client.raw().await.unwrap();
    open.send("GET /stream/2/1 HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    open.until("\r\n\r\n").await.unwrap();

    std::fs::write(&files.cert, &new.0).unwrap();
    balancer.logged(&["WARN", "does not fit", "stay in use"]).await;
    shows(balancer, &old.0).await.unwrap();
    files.write_key(&new.1);
    eventually("the new certificate", SOON, async || shows(balancer, &new.0).await).await;
    assert!(shows(balancer, &old.0).await.is_err());
    let metrics = balancer.metrics().await.unwrap();
    let until = metrics.sum("servery_balancer_certificate_not_after_seconds", &[("name", &name)]);
    assert!(until > 0.0, "{name}");

    // the old connection is the same one, and is served
    open.send("GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    open.until("Hello World!").await.unwrap();

    std::fs::remove_file(&files.key).unwrap();
    balancer.logged(&["WARN", "privkey.pem", "stay in use"]).await;
    shows(balancer, &new.0).await.unwrap();
}

#[tokio::test]
async fn files_that_do_not_fit_together_are_no_start() {
    let directory = tempfile::tempdir().unwrap();
    let files = Files::in_directory(directory.path());
    std::fs::write(&files.cert, made().0).unwrap();
    files.write_key(&made().1);
    let config = directory.path().join("servery.toml");
    let off =
        "[balancer]\nhttp = \"127.0.0.1:0\"\nhttps = \"127.0.0.1:0\"\ncontrol = \"127.0.0.1:0\"\nadmin = \"off\"\n";
    let absent = "[[balancer.certificate]]\ncert = \"/nowhere/cert.pem\"\nkey = \"/nowhere/key.pem\"\n";
    let data = directory.path().join("data");
    std::fs::write(&config, format!("data = {data:?}\n{off}{}{absent}", files.table())).unwrap();
    let ended = servery_harness::run(SERVERY, &["balancer", "--config", config.to_str().unwrap()], &[]).await;
    assert_eq!(ended.code, 1);
    for words in [["fullchain.pem", "does not fit"], ["/nowhere/cert.pem", "No such file"]] {
        let told = ended.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
        ensure(told, || ended.stderr.clone()).unwrap();
    }
}
