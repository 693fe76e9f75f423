//! The policies by name.

mod central;
mod idle;
mod local;
mod maxconn;
mod ours;
mod prequal;

use crate::{
    outcome::Outcome,
    scenario::Scenario,
    world::{self, Deck},
};
use std::{fmt, str::FromStr, time::Duration};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyName {
    Ideal,
    Servery,
    MaxConn,
    JoinIdle,
    Prequal,
    LeastConnections,
    PeakEwma,
    TwoChoices,
    RoundRobin,
}

impl PolicyName {
    /// In the order of the tables.
    pub const ALL: [Self; 9] = [
        Self::Ideal,
        Self::Servery,
        Self::MaxConn,
        Self::JoinIdle,
        Self::Prequal,
        Self::LeastConnections,
        Self::PeakEwma,
        Self::TwoChoices,
        Self::RoundRobin,
    ];

    /// On the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ideal => "ideal",
            Self::Servery => "servery",
            Self::MaxConn => "maxconn",
            Self::JoinIdle => "jiq",
            Self::Prequal => "prequal",
            Self::LeastConnections => "least",
            Self::PeakEwma => "ewma",
            Self::TwoChoices => "p2c",
            Self::RoundRobin => "rr",
        }
    }

    /// In tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::Ideal => "ideal: one queue, no delay",
            Self::Servery => "Servery",
            Self::MaxConn => "least connections, maxconn (HAProxy)",
            Self::JoinIdle => "Join-Idle-Queue",
            Self::Prequal => "Prequal-like",
            Self::LeastConnections => "least connections",
            Self::PeakEwma => "peak EWMA of two",
            Self::TwoChoices => "power of two choices",
            Self::RoundRobin => "round robin",
        }
    }

    /// Runs the scenario under this policy.
    pub fn run(self, scenario: &Scenario) -> Outcome {
        use local::{Local, Rule};
        let local = |rule| world::run(scenario, None, &mut Local::new(scenario, rule));
        match self {
            Self::Ideal => {
                let scenario = Scenario { network: Duration::ZERO, ..scenario.clone() };
                world::run(&scenario, None, &mut central::Central::new(&scenario))
            }
            Self::Servery => {
                let deck = Deck { places: 4, patience: Duration::from_millis(20) };
                world::run(scenario, Some(deck), &mut ours::Ours::new(scenario))
            }
            Self::MaxConn => world::run(scenario, None, &mut maxconn::MaxConn::new(scenario)),
            Self::JoinIdle => world::run(scenario, None, &mut idle::JoinIdle::new(scenario)),
            Self::Prequal => world::run(scenario, None, &mut prequal::Prequal::new(scenario)),
            Self::LeastConnections => local(Rule::Least),
            Self::PeakEwma => local(Rule::PeakEwma),
            Self::TwoChoices => local(Rule::TwoChoices),
            Self::RoundRobin => local(Rule::RoundRobin),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("there is no policy of that name; there are: {}", PolicyName::ALL.map(PolicyName::as_str).join(", "))]
pub struct NoSuchPolicy;

impl FromStr for PolicyName {
    type Err = NoSuchPolicy;

    fn from_str(text: &str) -> Result<Self, NoSuchPolicy> {
        Self::ALL.into_iter().find(|name| name.as_str() == text).ok_or(NoSuchPolicy)
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
