//! The addresses of one fixed upstream. In: what its names stand for, how checks ended. Out: an app whose nodes are just
//! these, each with one worker per unit of its weight, so that requests, which go where the fewest are, are shared by weight.
//! It asks nobody anything.

use super::standing::{Standing, is_desperate};
use crate::{
    app::App,
    config::{Server, UpstreamConfig},
    endpoint::{self, Node, WorkerState, WorkerView},
    foreign::Foreign,
};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

/// Addresses of one name that are used; the rest is left out.
const ADDRESSES_MAX: usize = 64;

/// Takes its nodes out of the app when it is dropped.
#[derive(Debug)]
pub(super) struct Members {
    app: Arc<App>,
    settings: Arc<UpstreamConfig>,
    /// By number, which is never used twice.
    members: BTreeMap<u64, Member>,
    numbers: u64,
    desperate: bool,
}

/// One address.
#[derive(Debug)]
struct Member {
    /// Which server's it is.
    server: usize,
    node: Arc<Node>,
    standing: Standing,
    /// As the app was told.
    used: Option<bool>,
}

impl Members {
    pub(super) fn new(app: Arc<App>, settings: Arc<UpstreamConfig>) -> Self {
        Self { app, settings, members: BTreeMap::new(), numbers: 0, desperate: false }
    }

    /// These are a server's addresses now. What was among them before stays as it is. Returns the numbers of new ones.
    pub(super) fn replace(&mut self, server: usize, addresses: &[SocketAddr], foreign: &Arc<Foreign>) -> Vec<u64> {
        let addresses = &addresses[..addresses.len().min(ADDRESSES_MAX)];
        let gone = |_: &u64, member: &mut Member| member.server == server && !addresses.contains(&member.node.address);
        let gone: Vec<Member> = self.members.extract_if(.., gone).map(|(_, member)| member).collect();
        let of_server = &self.settings.servers[server];
        let mut new = Vec::new();
        for address in addresses {
            let known = |member: &Member| member.server == server && member.node.address == *address;
            if self.members.values().any(known) {
                continue;
            }
            let node = Node {
                instance: name(of_server, *address),
                address: *address,
                server: endpoint::Server::Foreign(Arc::clone(foreign)),
                timeout: None,
            };
            tracing::info!(upstream = self.app.name(), node = node.instance, "an upstream's address is new");
            // A name may stand for addresses where nobody listens, or not yet: `localhost` does. They are dialled first.
            let certain = self.settings.health.is_none() && of_server.is_address();
            let standing = if certain { Standing::UNCHECKED } else { Standing::Unknown };
            self.numbers += 1;
            new.push(self.numbers);
            self.members.insert(self.numbers, Member { server, node: Arc::new(node), standing, used: None });
        }
        // first what is new: requests that wait for an old one are not told that nobody is there
        self.show();
        for member in gone {
            tracing::info!(upstream = self.app.name(), node = member.node.instance, "an upstream's address is gone");
            remove(&self.app, &member.node);
        }
        new
    }

    /// Where to ask whether it is well; `None` once it is gone.
    pub(super) fn find(&self, number: u64) -> Option<(usize, SocketAddr, Standing)> {
        self.members.get(&number).map(|member| (member.server, member.node.address, member.standing))
    }

    /// A check has ended. The address may have gone in the meantime.
    pub(super) fn judge<E: std::fmt::Display>(&mut self, number: u64, checked: &Result<(), E>) {
        let Some(member) = self.members.get_mut(&number) else { return };
        let before = member.standing;
        member.standing.observe(checked.is_ok());
        let (upstream, node) = (self.app.name(), &member.node.instance);
        match checked {
            Ok(()) if !before.is_well() && member.standing.is_well() => {
                tracing::info!(upstream, node, "an upstream's address answers: it is used");
            }
            Err(reason) if self.settings.health.is_none() => {
                tracing::debug!(upstream, node, %reason, "nobody answers at an upstream's address: it waits");
            }
            Err(reason) if before != member.standing && !member.standing.is_well() => {
                tracing::warn!(upstream, node, %reason, "health checks fail: an upstream's address takes no new requests");
            }
            Ok(()) | Err(_) => {}
        }
        self.show();
    }

    /// Tells the app what has changed.
    fn show(&mut self) {
        let desperate = is_desperate(self.members.values().map(|member| member.standing));
        if desperate && !self.desperate {
            let upstream = self.app.name();
            tracing::error!(upstream, "no address of an upstream answers: all are used as if they were well");
        }
        self.desperate = desperate;
        for member in self.members.values_mut() {
            let used = desperate || member.standing.is_well();
            if member.used.replace(used) != Some(used) {
                let weight = self.settings.servers[member.server].weight;
                let workers = workers(member.node.address, weight, self.settings.max_connections, used);
                self.app.apply(&member.node, &workers);
            }
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for member in self.members.values() {
            remove(&self.app, &member.node);
        }
    }
}

/// Nothing new for it; what is in flight there ends in peace.
fn remove(app: &Arc<App>, node: &Arc<Node>) {
    // a node that vanishes with its workers would be lost, and requests taken away from it
    app.apply(node, &[]);
    app.remove_node(&node.instance);
}

/// As many as the weight, which share what the address may have at once.
fn workers(address: SocketAddr, weight: u32, max_connections: u32, used: bool) -> Vec<WorkerView> {
    let state = if used { WorkerState::Ready } else { WorkerState::Stalled };
    let grant = |position| max_connections / weight + u32::from(position < max_connections % weight);
    (0..weight)
        .map(|position| WorkerView { state, pid: 0, ..WorkerView::ready(position, address, grant(position)) })
        .collect()
}

/// What the address is called: as the configuration does, and where that is a name, with the address behind it.
fn name(server: &Server, address: SocketAddr) -> String {
    if server.is_address() {
        return server.at.to_string();
    }
    format!("{}/{}", server.at, address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_a_number_of_workers_which_share_what_is_allowed() {
        let grants = |weight, max| -> Vec<u32> {
            let workers = workers(([127, 0, 0, 1], 1).into(), weight, max, true);
            workers.iter().map(|worker| worker.grant).collect()
        };
        assert_eq!(grants(1, 1024), [1024]);
        assert_eq!(grants(3, 8), [3, 3, 2]);
        assert_eq!(grants(3, 3), [1, 1, 1]);
    }
}
