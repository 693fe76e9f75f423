//! What every worker is told: comes in the node's configuration, goes out the message with an empty position and
//! generation. It asks nobody.

use crate::config::{Config, Edge, ProxyProtocol, RequestLimits};
use chassis::config::Network;
use proto::worker::{self, Configure};
use std::time::Duration;

/// `pass` is there behind balancers, and not where clients reach the workers themselves.
pub(crate) fn configure(config: &Config, pass: Option<&[u8; 32]>) -> Configure {
    Configure {
        protocol_version: proto::PROTOCOL_VERSION,
        pass: pass.map(|pass| pass.to_vec()).unwrap_or_default(),
        capacity: config.capacity,
        timeout_ms: millis(config.timeout),
        app: config.app.clone(),
        node: config.name.clone(),
        position: 0,
        generation: 0,
        limits: Some(limits(&config.request_limits)),
        edge: pass.is_none().then(|| edge(&config.edge)),
    }
}

fn limits(limits: &RequestLimits) -> worker::Limits {
    worker::Limits {
        request_line_bytes: limits.limit_request_line,
        fields: limits.limit_request_fields,
        field_bytes: limits.limit_request_field_size,
        body_bytes: limits.max_body.as_u64(),
        header_ms: millis(limits.header_timeout),
        body_stall_ms: millis(limits.body_timeout),
    }
}

fn edge(edge: &Edge) -> worker::Edge {
    let proxy_protocol = match edge.proxy_protocol {
        ProxyProtocol::Off => worker::ProxyProtocol::Unspecified,
        ProxyProtocol::V1 => worker::ProxyProtocol::V1,
        ProxyProtocol::V2 => worker::ProxyProtocol::V2,
        ProxyProtocol::Auto => worker::ProxyProtocol::Auto,
    };
    let networks = |networks: &[Network]| networks.iter().map(ToString::to_string).collect();
    worker::Edge {
        keepalive_ms: millis(edge.keepalive),
        forwarded_allow_ips: networks(&edge.forwarded_allow_ips),
        proxy_protocol: proxy_protocol.into(),
        proxy_allow_ips: networks(&edge.proxy_allow_ips),
        access_log: edge.access_log.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
