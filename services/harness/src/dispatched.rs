//! What a balancer says of how it dispatched a request, to who asks and may know: comes in the field `Servery-Debug` of an answer,
//! goes out what it means.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;

use crate::client::Answer;

/// Asks for it in a request, and carries it in the answer.
pub const DEBUG_HEADER: &str = "servery-debug";

/// How one request was dispatched.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatched {
    pub queue: Duration,
    pub attempts: u32,
    /// Node and worker; of the last attempt.
    pub to: (String, u32),
    pub why: String,
}

impl Answer {
    /// How this answer's request was dispatched.
    pub fn dispatched(&self) -> anyhow::Result<Dispatched> {
        let field = self.header(DEBUG_HEADER);
        Dispatched::parse(field)
            .with_context(|| format!("{DEBUG_HEADER}: {field:?} of {} {}", self.status, self.text()))
    }
}

impl Dispatched {
    fn parse(field: &str) -> anyhow::Result<Self> {
        let pairs: BTreeMap<&str, &str> = field
            .split(", ")
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key, value.trim_matches('"')))
            .collect();
        let value = |key: &str| pairs.get(key).copied().with_context(|| format!("no {key}"));
        Ok(Self {
            queue: Duration::from_secs_f64(value("queue_ms")?.parse::<f64>()? / 1000.0),
            attempts: value("attempts")?.parse()?,
            to: (value("node")?.to_owned(), value("worker")?.parse()?),
            why: value("why")?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_no_default() {
        let field = "queue_ms=1.500, attempts=2, node=\"node-0-ab\", worker=3, generation=1, why=queued";
        let dispatched = Dispatched::parse(field).expect("whole");
        let expected = Dispatched {
            queue: Duration::from_micros(1500),
            attempts: 2,
            to: ("node-0-ab".to_owned(), 3),
            why: "queued".to_owned(),
        };
        assert_eq!(dispatched, expected);
        assert!(Dispatched::parse("queue_ms=0.1, attempts=1").is_err());
        assert!(Dispatched::parse("").is_err());
    }
}
