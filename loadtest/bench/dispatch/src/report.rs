//! Numbers for people: come in times and rates, go out the lines of a Markdown table.

use std::time::Duration;

use servery_harness::percentile;

/// The middle one.
pub(crate) fn median(times: &[Duration]) -> Duration {
    percentile(times.iter().copied(), 50.0)
}

/// The middle one of numbers.
pub(crate) fn middle(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Milliseconds, to a tenth.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

/// A whole table: a title, the columns' names, the rows.
pub(crate) fn table(title: &str, columns: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
    let rule = vec!["---".to_owned(); columns.len()];
    let rows: String = rows.iter().map(|row| line(row)).collect();
    format!("### {title}\n\n{}{}{rows}", line(&columns), line(&rule))
}
