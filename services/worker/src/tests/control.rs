//! A worker and its supervisor: heartbeats, versions, and ends.

use super::*;

#[tokio::test]
async fn a_worker_ends_when_its_supervisor_says_so_or_is_gone() {
    let mut worker = Worker::start(Router::new(), 1, PATIENCE).await;
    worker.order(Order::Stop(Stop {})).await;
    assert!(worker.end().await.is_ok());

    let Worker { control, ended, .. } = Worker::start(Router::new(), 1, PATIENCE).await;
    drop(control);
    assert!(matches!(timeout(PATIENCE, ended).await.unwrap().unwrap(), Err(Error::SupervisorGone)));
}

#[tokio::test]
async fn a_heartbeat_comes_every_second_also_when_nothing_happens() {
    let mut worker = Worker::start(Router::new(), 1, PATIENCE).await;
    for _ in 0..3 {
        let news = timeout(Duration::from_secs(3), worker.news()).await.expect("a heartbeat");
        assert!(matches!(news, News::Heartbeat(_)));
    }
}

#[tokio::test]
async fn neighbouring_versions_work_together_and_farther_ones_say_so() {
    for (version, understood) in [(proto::PROTOCOL_VERSION + 1, true), (proto::PROTOCOL_VERSION + 2, false)] {
        let (listener, _) = listener();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ended = tokio::spawn(serve_on(listener, theirs, Router::new()));
        let mut control: Framed<_, Frames<FromWorker, FromSupervisor>> = Framed::new(ours, Frames::new());
        let configure = Configure { protocol_version: version, capacity: 1, ..Configure::default() };
        control.send(FromSupervisor { message: Some(Order::Configure(configure)) }).await.unwrap();
        let answer = timeout(PATIENCE, control.next()).await.unwrap();
        assert_eq!(answer.is_some(), understood, "version {version}");
        drop(control);
        let error = timeout(PATIENCE, ended).await.unwrap().unwrap().unwrap_err();
        assert_eq!(matches!(error, Error::Version { .. }), !understood, "{error}");
    }
}

/// Runs as a program of its own, started by the test below.
#[test]
fn a_program() {
    if std::env::var_os("STARTED_BY_HAND").is_some() {
        let code = crate::run(Router::new());
        // `ExitCode` shows its number to nobody but the system
        std::process::exit(if code == std::process::ExitCode::from(64) { 64 } else { 1 });
    }
}

#[test]
fn a_program_started_by_hand_says_what_to_run_instead() {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "tests::control::a_program", "--nocapture"]).env("STARTED_BY_HAND", "1");
    let output = command.env_remove("SERVERY_LISTEN_FD").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("servery app --exec"), "{said}");

    for (listen, control, problem) in [
        ("99", "98", "SERVERY_LISTEN_FD is 99"),
        ("x", "98", "not a descriptor"),
        ("2", "98", "standard"),
        ("99", "99", "same"),
    ] {
        command.env("SERVERY_LISTEN_FD", listen).env("SERVERY_CONTROL_FD", control);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(problem), "{said}");
    }
    let output = command.env("SERVERY_PARENT", "1").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("not its supervisor"), "{output:?}");
}
