//! Boots real Servery clusters for the black-box tests: comes in the path of a `servery` binary and a plan, goes out running
//! processes, clients, load, faults and intruders. Knows the command line, the configuration, the ports and the protocols,
//! and no service's code.
//!
//! Setting something up panics with what was wrong; a request that fails is data and comes back as a value.

pub mod client;
pub mod cluster;
mod control;
mod crowd;
mod dispatched;
mod dns;
mod eventually;
mod exposition;
mod footprint;
pub mod intruder;
mod listening;
mod load;
pub mod malformed;
mod member;
mod process;
mod raw;
mod roster;
mod run;
mod site;
mod slow;
mod standalone;
mod tls;

pub use client::{Answer, Client, Protocol};
pub use cluster::{Cluster, Plan};
pub use control::control_time;
pub use crowd::{Arrival, Crowd, Outcome, Visit, evenly, percentile};
pub use dispatched::{DEBUG_HEADER, Dispatched};
pub use dns::Dns;
pub use eventually::{ensure, eventually};
pub use exposition::{Exposition, Sample};
pub use footprint::Footprint;
pub use listening::listening_addresses;
pub use load::{Load, Tally};
pub use member::{Member, Role};
pub use process::{Kin, Process, Signal, descendants_of};
pub use raw::Raw;
pub use roster::WorkerRow;
pub use run::{Ended, forget_servery, run};
pub use site::Site;
pub use slow::Slow;
pub use standalone::{Standalone, StandalonePlan};
