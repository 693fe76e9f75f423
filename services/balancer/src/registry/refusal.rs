//! Why a node may not register, or may not stay. In: what was found wrong. Out: what the node is told, under which
//! code, and the name it is counted by. Says nothing about other nodes but the name of the app that holds a prefix.

use crate::{config::APP_NAME, route::RouteError};
use chassis::identity::Role;
use thiserror::Error;
use tonic::{Code, Status};

/// One reason each; the first that is found is told.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum Refusal {
    #[error("a client certificate is needed")]
    NoCertificate,
    #[error("the certificate is of the cluster {theirs:?}, this balancer is of {ours:?}")]
    Cluster { theirs: String, ours: String },
    #[error("only an app_server may register, the certificate says {0}")]
    Role(Role),
    #[error("this instance is denied")]
    Denied,
    #[error("the certificate has expired")]
    Expired,
    #[error("too many registrations: {0}")]
    Full(&'static str),
    #[error("no Hello within {0} seconds")]
    NoHello(u64),
    #[error("the first message, and only the first, is Hello")]
    HelloFirst,
    #[error("protocol version {theirs} is not understood, this balancer speaks {ours} and its neighbours")]
    Version { theirs: u32, ours: u32 },
    #[error("an app's name is {APP_NAME}")]
    AppName,
    #[error("the certificate does not name the app {0:?}")]
    App(String),
    #[error("the certificate does not name the prefix {prefix:?} for the app {app:?}")]
    Prefix { app: String, prefix: String },
    #[error("the prefix {prefix:?} is held by the app {holder:?}, which has live nodes")]
    Taken { prefix: String, holder: String },
    #[error("a declared route is wrong: {0}")]
    Route(#[from] RouteError),
    #[error("two of the routes have the same host and prefix {0:?}")]
    SameRoute(String),
    #[error("{0:?} is not the address this stream comes from, nor in the balancer's advertised_networks")]
    Advertised(String),
    #[error("a worker's port is from 1024 to 65535, not {0}")]
    Port(u32),
    #[error("{what} is from {least} to {most}, not {found}")]
    Bounds { what: &'static str, least: u64, most: u64, found: u64 },
    #[error("two workers have the same {0}")]
    SameWorker(&'static str),
    /// It was never read: the decoder gave up at the limit.
    #[error("a message is longer than this balancer reads")]
    TooLong,
}

impl Refusal {
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::NoCertificate | Self::Expired => Code::Unauthenticated,
            Self::Cluster { .. }
            | Self::Role(_)
            | Self::Denied
            | Self::App(_)
            | Self::Prefix { .. }
            | Self::Advertised(_) => Code::PermissionDenied,
            Self::Full(_) => Code::ResourceExhausted,
            Self::NoHello(_) => Code::DeadlineExceeded,
            Self::Version { .. } => Code::FailedPrecondition,
            Self::Taken { .. } => Code::AlreadyExists,
            Self::HelloFirst
            | Self::AppName
            | Self::Route(_)
            | Self::SameRoute(_)
            | Self::Port(_)
            | Self::Bounds { .. }
            | Self::SameWorker(_)
            | Self::TooLong => Code::InvalidArgument,
        }
    }

    /// In `servery_balancer_registrations_total{result}`.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Cluster { .. } => "wrong_cluster",
            Self::Role(_) => "wrong_role",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Full(_) => "full",
            Self::NoHello(_) => "no_hello",
            Self::Version { .. } => "wrong_version",
            Self::App(_) => "app_not_allowed",
            Self::Prefix { .. } => "prefix_not_allowed",
            Self::Taken { .. } => "prefix_taken",
            Self::Advertised(_) => "address_not_allowed",
            Self::HelloFirst
            | Self::AppName
            | Self::Route(_)
            | Self::SameRoute(_)
            | Self::Port(_)
            | Self::Bounds { .. }
            | Self::SameWorker(_)
            | Self::TooLong => "malformed",
        }
    }

    pub(crate) fn status(&self) -> Status {
        Status::new(self.code(), self.to_string())
    }
}
