use super::*;
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::net::{UnixDatagram, UnixStream},
};

fn tcp(text: &str) -> Bind {
    Bind::Tcp(text.parse().unwrap())
}

#[test]
fn a_share_of_a_tcp_socket_accepts_and_a_taken_port_says_what_to_do() {
    let bound = Bound::open(&tcp("127.0.0.1:0")).unwrap();
    let shared = TcpListener::from(bound.share().unwrap());
    shared.set_nonblocking(false).unwrap();
    let mut client = TcpStream::connect(bound.address()).unwrap();
    client.write_all(b"x").unwrap();
    let mut byte = [0];
    shared.accept().unwrap().0.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");

    let error = Bound::open(&tcp(bound.address())).unwrap_err();
    assert!(matches!(error, BoundError::InUse(_)), "{error}");
    assert!(error.to_string().contains(bound.address()) && error.to_string().contains("--bind"), "{error}");
    let error = Bound::open(&tcp("192.0.2.1:1")).unwrap_err();
    assert!(error.to_string().contains("192.0.2.1:1"), "{error}");
}

#[test]
fn a_socket_file_is_open_to_all_and_gone_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.sock");
    let bound = Bound::open(&Bind::Unix(path.clone())).unwrap();
    assert_eq!(bound.address(), format!("unix:{}", path.display()));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
    UnixStream::connect(&path).unwrap();
    drop(bound);
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_file_is_replaced_and_a_served_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.sock");
    let bind = Bind::Unix(path.clone());
    // left behind as by a process that was killed: std removes nothing
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let first = Bound::open(&bind).unwrap();

    assert!(matches!(Bound::open(&bind), Err(BoundError::Served(_))));
    UnixStream::connect(&path).unwrap();

    // somebody else's by now: the end of the first does not touch it
    fs::remove_file(&path).unwrap();
    let second = Bound::open(&bind).unwrap();
    drop(first);
    UnixStream::connect(&path).unwrap();
    drop(second);
}

#[test]
fn a_socket_whose_queue_is_full_counts_as_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.sock");
    let address = SocketAddrUnix::new(&path).unwrap();
    let busy = stream_socket().unwrap();
    bind(&busy, &address).unwrap();
    listen(&busy, 0).unwrap();
    let clients: Vec<OwnedFd> = (0..8).map(|_| stream_socket().unwrap()).collect();
    assert!(clients.iter().any(|client| connect(client, &address) == Err(Errno::AGAIN)));
    assert!(matches!(Bound::open(&Bind::Unix(path)), Err(BoundError::Served(_))));
}

#[test]
fn what_is_no_stream_socket_is_never_removed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("data");
    fs::write(&file, "precious").unwrap();
    assert!(matches!(Bound::open(&Bind::Unix(file.clone())), Err(BoundError::NotASocket(_))));
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert!(matches!(Bound::open(&Bind::Unix(link)), Err(BoundError::NotASocket(_))));
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

    let path = directory.path().join("datagrams");
    let _datagrams = UnixDatagram::bind(&path).unwrap();
    assert!(matches!(Bound::open(&Bind::Unix(path.clone())), Err(BoundError::Unclear { .. })));
    assert!(path.exists());

    let nowhere = directory.path().join("nowhere");
    let error = Bound::open(&Bind::Unix(nowhere.join("app.sock"))).unwrap_err();
    assert!(matches!(&error, BoundError::NoDirectory(missing) if *missing == nowhere), "{error}");
}

mod activated {
    //! A process that systemd would have started: this test binary again, with a socket as descriptor 3.

    use super::*;
    use command_fds::{CommandFdExt as _, FdMapping};
    use std::{env, process::Command};

    const WANTED: &str = "SERVERY_TEST_ACTIVATED";

    /// Does nothing unless the tests below start it.
    #[test]
    fn child() {
        let Ok(wanted) = env::var(WANTED) else { return };
        let opened = Bound::open(&Bind::Unix("/nowhere/app.sock".into()));
        match opened {
            Ok(bound) => {
                assert_eq!(bound.address(), wanted);
                assert!(env::var_os("LISTEN_FDS").is_none(), "workers would believe it is for them");
            }
            Err(error) => assert!(error.to_string().contains(&wanted), "{error}"),
        }
    }

    fn start(sockets: Vec<OwnedFd>, wanted: &str) {
        let mut command = Command::new(env::current_exe().unwrap());
        let count = sockets.len().to_string();
        command.args(["--exact", "bound::tests::activated::child", "--nocapture"]);
        command.env("LISTEN_FDS", count).env("LISTEN_PID", "").env(WANTED, wanted);
        let mappings = (3..).zip(sockets).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.collect()).unwrap();
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    fn a_passed_socket_is_taken_before_bind_whatever_its_family() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("systemd.sock");
        let unix = UnixListener::bind(&path).unwrap();
        start(vec![unix.into()], &format!("unix:{}", path.display()));
        assert!(path.exists(), "systemd's file is not ours to remove");
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap().to_string();
        start(vec![tcp.into()], &address);
    }

    #[test]
    fn two_sockets_and_one_that_does_not_listen_are_refused() {
        let tcp = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        start(vec![tcp(), tcp()], "passed 2 sockets");
        start(vec![stream_socket().unwrap()], "does not listen");
        let (file, _) = tempfile::NamedTempFile::new().unwrap().into_parts();
        start(vec![file.into()], "Accept=no");
    }
}
