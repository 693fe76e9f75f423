//! The protocols between Servery's processes, generated from the `.proto` files beside this crate's manifest.
//!
//! Neighbours one version apart work together: fields are only ever added, and a reader ignores what it does not know.
#![allow(
    clippy::allow_attributes_without_reason,
    clippy::use_self,
    clippy::large_enum_variant,
    clippy::needless_pass_by_value,
    clippy::or_fun_call,
    elided_lifetimes_in_paths,
    unused_qualifications,
    unreachable_pub,
    reason = "generated code keeps the generator's habits"
)]

pub mod access_line;
pub mod alarm;
pub mod forwarding;
pub mod framing;
pub mod proxy_protocol;

/// Enrolment and renewal of a process's mTLS identity.
pub mod identity {
    tonic::include_proto!("servery.identity.v1");
}

/// Public certificates, from the cert-sidecar to every balancer.
pub mod certificates {
    tonic::include_proto!("servery.certificates.v1");
}

/// A node's registration with a balancer.
pub mod registry {
    tonic::include_proto!("servery.registry.v1");
}

/// A supervisor and one of its workers.
pub mod worker {
    tonic::include_proto!("servery.worker.v1");
}

/// The version of the registry and worker protocols that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// Carries the node's pass, in lower-case hexadecimal, with every upstream request. Stripped from clients' requests and applications' responses.
pub const PASS_HEADER: &str = "servery-pass";

/// On a 503 made by a worker's front: the request reached no application and may be tried elsewhere.
/// Stripped from clients' requests and applications' responses.
pub const REFUSED_HEADER: &str = "servery-refused";

/// Numbers a balancer's connection to a worker: 16 lower-case hexadecimal digits, the same with every request on it. The
/// upper half is the balancer's, drawn when its process starts; the lower half counts. A worker names the number when the
/// connection has ended and nothing of it runs any more. Stripped as the pass is.
pub const CONNECTION_HEADER: &str = "servery-connection";

/// The last words of a balancer that stops in good order, with code UNAVAILABLE: there is no fault to look for.
pub const STOPPING: &str = "this balancer stops";

/// Upper bounds of the buckets in which durations are counted, in seconds: from a hello over loopback to half of the
/// default response timeout. Three to a decade, so that a quantile is off by less than a factor of 2.5.
pub const DURATION_BOUNDS_S: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
