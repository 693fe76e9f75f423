//! What a node says of its workers: comes in its `/status` and `/metrics`, go out rows and counts. What is missing there is a
//! failed probe, never a default.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::eventually::eventually;
use crate::member::Member;

/// One worker process.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerRow {
    pub position: u64,
    pub generation: u64,
    pub pid: u32,
    pub state: String,
    pub slots: u64,
    pub busy: u64,
    pub served: u64,
    pub restarts: u64,
    pub age_s: f64,
    pub memory_bytes: Option<u64>,
    pub cpu: Option<f64>,
    pub restarts_by_cause: BTreeMap<String, u64>,
}

impl WorkerRow {
    pub fn is_ready(&self) -> bool {
        self.state == "ready"
    }

    fn parse(row: &Value) -> anyhow::Result<Self> {
        let number = |name: &str| row[name].as_u64().with_context(|| format!("no {name} in {row}"));
        let causes = row["restarts_by_cause"].as_object().with_context(|| format!("no restarts_by_cause in {row}"))?;
        Ok(Self {
            position: number("position")?,
            generation: number("generation")?,
            pid: u32::try_from(number("pid")?)?,
            state: row["state"].as_str().with_context(|| format!("no state in {row}"))?.to_owned(),
            slots: number("slots")?,
            busy: number("busy")?,
            served: number("served")?,
            restarts: number("restarts")?,
            age_s: row["age_s"].as_f64().with_context(|| format!("no age_s in {row}"))?,
            memory_bytes: row["memory_bytes"].as_u64(),
            cpu: row["cpu"].as_f64(),
            restarts_by_cause: causes
                .iter()
                .map(|(cause, count)| Ok((cause.clone(), count.as_u64().with_context(|| row.to_string())?)))
                .collect::<anyhow::Result<_>>()?,
        })
    }
}

impl Member {
    /// A node's own word on its workers.
    pub async fn rows(&self) -> anyhow::Result<Vec<WorkerRow>> {
        let status = self.status().await?;
        let workers = status["apps"][0]["nodes"][0]["workers"].as_array();
        workers.with_context(|| format!("no workers in {status}"))?.iter().map(WorkerRow::parse).collect()
    }

    /// Waits until the rows are as wanted, and returns them.
    pub async fn rows_with(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&[WorkerRow]) -> bool,
    ) -> Vec<WorkerRow> {
        eventually(&format!("{} to have {what}", self.name), within, async || {
            let rows = self.rows().await?;
            anyhow::ensure!(wanted(&rows), "it has {rows:?}");
            Ok(rows)
        })
        .await
    }

    /// Waits until there are `count` workers, all of them ready.
    pub async fn ready_rows(&self, count: usize, within: Duration) -> Vec<WorkerRow> {
        let what = format!("{count} workers, all of them ready");
        self.rows_with(&what, within, |rows| rows.len() == count && rows.iter().all(WorkerRow::is_ready)).await
    }

    /// Waits until there are `count` workers, all of them ready and none of them one of `before`.
    pub async fn replaced(&self, before: &[WorkerRow], count: usize, within: Duration) -> Vec<WorkerRow> {
        let what = format!("{count} workers, all of them ready and new");
        let is_new = |row: &WorkerRow| row.is_ready() && before.iter().all(|old| old.pid != row.pid);
        self.rows_with(&what, within, |rows| rows.len() == count && rows.iter().all(is_new)).await
    }

    /// How many workers had to be replaced for this reason, by a node's metrics.
    pub async fn restarts(&self, cause: &str) -> u64 {
        let metrics = self.metrics().await.expect("a running node has metrics");
        let sum = metrics.sum("servery_app_server_worker_restarts_total", &[("cause", cause)]);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter of few")]
        let count = sum as u64;
        count
    }

    /// Every cause that a node has counted, for what a test prints.
    pub async fn restarts_by_cause(&self) -> BTreeMap<String, f64> {
        let metrics = self.metrics().await.expect("a running node has metrics");
        let samples = metrics.matching("servery_app_server_worker_restarts_total", &[]);
        let counted = samples.filter(|sample| sample.value > 0.0);
        counted.map(|sample| (sample.labels.get("cause").cloned().unwrap_or_default(), sample.value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_what_is_promised_is_no_row() {
        let mut row = serde_json::json!({
            "position": 0, "generation": 2, "pid": 17, "state": "ready", "slots": 1, "busy": 0, "served": 5,
            "restarts": 1, "age_s": 0.5, "memory_bytes": null, "restarts_by_cause": {"exit": 1},
        });
        let parsed = WorkerRow::parse(&row).expect("whole");
        assert!(parsed.is_ready() && parsed.memory_bytes.is_none() && parsed.restarts_by_cause["exit"] == 1);
        row["age_s"] = Value::Null;
        assert!(WorkerRow::parse(&row).is_err());
    }
}
