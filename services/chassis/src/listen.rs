//! Listening addresses and their sockets. In: `":8080"` and the like. Out: a bound, listening, non-blocking socket, or
//! the reason of the system's refusal with the address in it.

use socket2::{Domain, Protocol, Socket, Type};
use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    str::FromStr,
};

/// Connections that the kernel holds for us between two accepts. It cuts this down to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Where a listener listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddr {
    /// Nowhere.
    Off,
    /// On every address of the machine: dual-stack IPv6, or IPv4 where the machine has no IPv6.
    All(u16),
    At(SocketAddr),
}

impl ListenAddr {
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }

    /// `None` if it is off; 0 stands for any free port.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Off => None,
            Self::All(port) => Some(*port),
            Self::At(address) => Some(address.port()),
        }
    }

    /// Binds and listens. Binding [`Self::Off`] is an error: the caller decides what "off" means.
    pub fn bind(&self) -> io::Result<TcpListener> {
        let socket = self.bound()?;
        self.named(socket.listen(BACKLOG))?;
        Ok(socket.into())
    }

    /// `n` sockets on one address between which the kernel spreads connections, one per core. Port 0 becomes one port
    /// for all of them.
    ///
    /// The first is bound without `SO_REUSEPORT`, so that a port which another process of this user has is an error
    /// and not a share of its connections.
    pub fn bind_reuseport(&self, n: usize) -> io::Result<Vec<TcpListener>> {
        let first = self.bound()?;
        self.named(first.set_reuse_port(true))?;
        let address = first.local_addr()?;
        let mut sockets = vec![first];
        while sockets.len() < n {
            let socket = self.named(socket_for(&address))?;
            self.named(socket.set_reuse_port(true).and_then(|()| socket.bind(&address)))?;
            sockets.push(socket);
        }
        sockets.into_iter().map(|socket| self.named(socket.listen(BACKLOG)).map(|()| socket.into())).collect()
    }

    fn bound(&self) -> io::Result<Socket> {
        let bind = |address: SocketAddr| {
            let address = address.into();
            let socket = socket_for(&address)?;
            socket.bind(&address)?;
            Ok(socket)
        };
        self.named(match *self {
            Self::Off => Err(io::Error::new(io::ErrorKind::InvalidInput, "this listener is off")),
            Self::At(address) => bind(address),
            Self::All(port) => bind((Ipv6Addr::UNSPECIFIED, port).into()).or_else(|error: io::Error| {
                if lacks_ipv6(&error) { bind((Ipv4Addr::UNSPECIFIED, port).into()) } else { Err(error) }
            }),
        })
    }

    /// The system says "address in use" and not which.
    fn named<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {self}: {error}")))
    }
}

/// A port kept for a process that is yet to bind it: nobody else who reserves, or whom the kernel gives a free port,
/// gets it meanwhile. Dropping this gives it up; it may as well be kept for as long as that process runs.
#[derive(Debug)]
pub struct Reservation(Socket);

impl Reservation {
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

/// Reserves `address`; port 0 stands for any free one.
///
/// Bound without `SO_REUSEADDR`, the socket conflicts with every other; with it set afterwards, and never listening,
/// it lets [`ListenAddr::bind`] through, but no second reservation.
pub fn reserve(address: SocketAddr) -> io::Result<Reservation> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&address.into())?;
    socket.set_reuse_address(true)?;
    Ok(Reservation(socket))
}

fn socket_for(address: &socket2::SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::from(i32::from(address.family())), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // A restarted process binds while connections of its predecessor are in TIME_WAIT; a listening one still conflicts.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        let every = address.as_socket_ipv6().is_some_and(|address| address.ip().is_unspecified());
        socket.set_only_v6(!every)?;
    }
    Ok(socket)
}

/// Compiled without IPv6, or switched off by sysctl.
fn lacks_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::All(port) => write!(f, ":{port}"),
            Self::At(address) => write!(f, "{address}"),
        }
    }
}

/// Neither `off`, nor `:PORT`, nor `ADDRESS:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a listening address")]
pub struct NotAListenAddr;

impl FromStr for ListenAddr {
    type Err = NotAListenAddr;

    fn from_str(text: &str) -> Result<Self, NotAListenAddr> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let port = text.strip_prefix(':').unwrap_or(text);
        if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) {
            return port.parse().map(Self::All).map_err(|_| NotAListenAddr);
        }
        let address: SocketAddr = text.parse().map_err(|_| NotAListenAddr)?;
        // "[::]:8080" is every address, as ":8080" is.
        match address.ip() {
            IpAddr::V6(ip) if ip.is_unspecified() => Ok(Self::All(address.port())),
            _ => Ok(Self::At(address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, net::TcpStream};

    #[test]
    fn addresses_read_back_as_they_were_written() {
        for (text, wanted) in [
            ("off", ListenAddr::Off),
            (":8080", ListenAddr::All(8080)),
            ("127.0.0.1:80", ListenAddr::At("127.0.0.1:80".parse().unwrap())),
            ("[::1]:80", ListenAddr::At("[::1]:80".parse().unwrap())),
            ("0.0.0.0:80", ListenAddr::At("0.0.0.0:80".parse().unwrap())),
        ] {
            assert_eq!(text.parse(), Ok(wanted));
            assert_eq!(wanted.to_string(), text);
        }
        assert_eq!("8080".parse(), Ok(ListenAddr::All(8080)));
        assert_eq!("[::]:8080".parse(), Ok(ListenAddr::All(8080)));
        for wrong in ["", ":", "on", "70000", ":70000", ":-1", "localhost:80", "127.0.0.1", "::1:80"] {
            assert_eq!(wrong.parse::<ListenAddr>(), Err(NotAListenAddr), "{wrong}");
        }
    }

    #[test]
    fn a_port_that_is_taken_is_an_error_that_names_it() {
        let taken = ListenAddr::At("127.0.0.1:0".parse().unwrap()).bind().unwrap();
        let again = ListenAddr::At(taken.local_addr().unwrap());
        for error in [again.bind().unwrap_err(), again.bind_reuseport(2).unwrap_err()] {
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            assert!(error.to_string().contains(&again.to_string()), "{error}");
        }
        let every = ListenAddr::All(taken.local_addr().unwrap().port());
        assert_eq!(every.bind().unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn sockets_that_share_a_port_refuse_a_stranger_and_share_the_connections() {
        let shared = ListenAddr::At("127.0.0.1:0".parse().unwrap()).bind_reuseport(3).unwrap();
        let addresses: BTreeSet<SocketAddr> = shared.iter().map(|socket| socket.local_addr().unwrap()).collect();
        assert_eq!(addresses.len(), 1);
        let address = *addresses.first().unwrap();
        assert_eq!(ListenAddr::At(address).bind_reuseport(3).unwrap_err().kind(), io::ErrorKind::AddrInUse);

        // A handshake is over when connect returns, so each connection waits at one of the three by then.
        let clients: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
        let accepted: Vec<usize> =
            shared.iter().map(|socket| std::iter::from_fn(|| socket.accept().ok()).count()).collect();
        assert_eq!(accepted.iter().sum::<usize>(), clients.len());
        assert!(accepted.iter().filter(|count| **count > 0).count() >= 2, "{accepted:?}");
    }

    #[test]
    fn a_reserved_port_can_be_bound_but_not_reserved_again() {
        let reservation = reserve("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = reservation.address().unwrap();
        assert_eq!(reserve(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        for _ in 0..2 {
            let listener = ListenAddr::At(address).bind().unwrap();
            TcpStream::connect(address).unwrap();
            assert_eq!(reserve(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            drop(listener);
        }
    }

    #[test]
    fn every_address_is_reached_over_ipv4() {
        let every = ListenAddr::All(0).bind().unwrap();
        TcpStream::connect(("127.0.0.1", every.local_addr().unwrap().port())).unwrap();
    }
}
