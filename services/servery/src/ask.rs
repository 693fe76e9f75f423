//! One GET to the admin listener of a process on this machine: an address and a path in, status and body out. And
//! which addresses those are.

use crate::{cli::Role, role};
use bytes::Bytes;
use chassis::{
    config::{Layers, Problems, Reader},
    listen::ListenAddr,
};
use clap::ArgMatches;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};

/// Enough for the status of thousands of workers.
const MAX_BODY: usize = 64 << 20;

/// Where processes of these roles are asked: what `--admin` says, else what their configuration says. Mistakes
/// elsewhere in the configuration are not this command's business.
pub(crate) fn addresses(given: &ArgMatches, roles: &[Role]) -> Result<Vec<SocketAddr>, Problems> {
    let file = given.get_one::<PathBuf>("config").map(PathBuf::as_path);
    let flags = given.get_one::<String>("admin").map(|text| ("admin".to_owned(), text.clone()));
    let layers = Layers::load(file, role::variables(), flags.into_iter().collect())?;
    let mut reader = Reader::new(&layers);
    let keys: Vec<String> = roles.iter().map(|role| format!("{}.admin", role.id())).collect();
    let mut listeners: Vec<ListenAddr> = match reader.optional("admin") {
        Some(named) => vec![named],
        None => keys.iter().map(|key| reader.read(key, ListenAddr::All(9180))).collect(),
    };
    listeners.dedup();
    let mistake = reader.finish().err().and_then(|problems| {
        let ours = |key: &str| key == "admin" || keys.iter().any(|asked| asked == key);
        let ours = problems.iter().filter(|problem| problem.key.as_deref().is_some_and(ours));
        Problems::collect(ours.cloned().collect())
    });
    mistake.map_or_else(|| Ok(listeners.into_iter().filter_map(reachable).collect()), Err)
}

/// Who listens on every address is asked on loopback.
fn reachable(listener: ListenAddr) -> Option<SocketAddr> {
    match listener {
        ListenAddr::Off => None,
        ListenAddr::All(port) => Some((Ipv4Addr::LOCALHOST, port).into()),
        ListenAddr::At(mut address) => {
            if address.ip().is_unspecified() {
                let v4 = address.is_ipv4();
                address.set_ip(if v4 { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
            }
            Some(address)
        }
    }
}

/// Asks `address` for `path` within `limit`.
///
/// # Errors
/// Nobody answers there, the answer is not HTTP, is larger than 64 MiB or late.
pub(crate) async fn get(address: SocketAddr, path: &str, limit: Duration) -> io::Result<(u16, Bytes)> {
    timeout(limit, exchange(address, path)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn exchange(address: SocketAddr, path: &str) -> io::Result<(u16, Bytes)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new());
    let request = request.map_err(io::Error::other)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(io::Error::other)?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(answer);
    tokio::select! {
        biased; // an answer that is there counts, also when the connection has just ended
        answer = &mut answer => answer,
        ended = connection => {
            ended.map_err(io::Error::other)?;
            answer.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    fn asked(line: &[&str]) -> Result<Vec<String>, String> {
        let given = cli::command().try_get_matches_from([&["servery", "health"], line].concat()).unwrap();
        let given = given.subcommand_matches("health").unwrap();
        addresses(given, &[Role::Balancer, Role::App])
            .map(|addresses| addresses.iter().map(ToString::to_string).collect())
            .map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_flag_names_the_address_a_bare_port_means_this_machine() {
        assert_eq!(asked(&["--admin", "9300"]).unwrap(), ["127.0.0.1:9300"]);
        assert_eq!(asked(&["--admin", "0.0.0.0:9300"]).unwrap(), ["127.0.0.1:9300"]);
        assert_eq!(asked(&["--admin", "10.0.0.1:9300"]).unwrap(), ["10.0.0.1:9300"]);
        assert!(asked(&["--admin", "nowhere"]).unwrap_err().starts_with("--admin: expected"));
    }

    #[test]
    fn else_the_configuration_does_whatever_else_is_wrong_with_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "[balancer]\nadmin = \":9300\"\nqueue_length = \"long\"\n[cert_sidecar]\nadmin = 1",
        )
        .unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(asked(&["--config", path]).unwrap(), ["127.0.0.1:9300", "127.0.0.1:9180"]);
        std::fs::write(file.path(), "[app_server]\nadmin = 1.5\n").unwrap();
        assert!(asked(&["--config", path]).unwrap_err().contains(":2: app_server.admin: expected"));
    }
}
