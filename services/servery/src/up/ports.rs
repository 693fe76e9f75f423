//! Which ports the cluster takes. In: what was asked for. Out: addresses that are free right now, or which one is not
//! and the flag that changes it. Public and admin ports are taken as asked; those between the processes are any.

use super::plan::PlanError;
use chassis::listen::{ListenAddr, Reservation, reserve};
use std::net::{Ipv4Addr, SocketAddr};

/// Can `address` be listened on? If not, `flag` is what to change.
pub(super) fn check_free(flag: &'static str, address: ListenAddr) -> Result<(), PlanError> {
    if address.is_off() {
        return Ok(());
    }
    address.bind().map(drop).map_err(|source| PlanError::InUse { flag, source })
}

/// `count` admin addresses on loopback: `first` and the ports after it.
pub(super) fn admins(first: u16, count: u16) -> Result<Vec<SocketAddr>, PlanError> {
    let ports = (first..=u16::MAX).take(usize::from(count));
    let addresses: Vec<SocketAddr> = ports.map(|port| (Ipv4Addr::LOCALHOST, port).into()).collect();
    for address in &addresses {
        check_free("admin", ListenAddr::At(*address))?;
    }
    Ok(addresses)
}

/// A port of loopback for the cluster's own use: the usual one where it is free, else any. Kept from the others of
/// this machine, another `servery up` among them, until the reservation is dropped.
pub(super) fn internal(usual: u16) -> Result<(SocketAddr, Reservation), PlanError> {
    let reserved = |port| reserve((Ipv4Addr::LOCALHOST, port).into());
    let reservation = reserved(usual).or_else(|_| reserved(0)).map_err(PlanError::NoPort)?;
    Ok((reservation.address().map_err(PlanError::NoPort)?, reservation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_port_in_use_names_itself_and_the_flag_to_change() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = taken.local_addr().unwrap();
        let error = check_free("https", ListenAddr::At(address)).unwrap_err().to_string();
        assert!(error.contains("--https") && error.contains(&address.to_string()), "{error}");
        let error = admins(address.port(), 1).unwrap_err().to_string();
        assert!(error.contains("--admin") && error.contains(&address.to_string()), "{error}");
        assert!(check_free("https", ListenAddr::Off).is_ok());
    }

    #[test]
    fn admin_ports_follow_each_other() {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        if let Ok(admins) = admins(free, 3) {
            let ports: Vec<u16> = admins.iter().map(SocketAddr::port).collect();
            assert_eq!(ports, [free, free + 1, free + 2]);
        }
    }

    #[test]
    fn two_clusters_never_choose_the_same_internal_port() {
        let chosen: Vec<_> = (0..8).map(|_| internal(7401).unwrap()).collect();
        let mut ports: Vec<u16> = chosen.iter().map(|(address, _)| address.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), chosen.len());
    }
}
