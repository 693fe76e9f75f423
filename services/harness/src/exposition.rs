//! Prometheus' text format: comes in what `/metrics` answered, goes out its samples, or what is wrong with it. Strict, because
//! Prometheus drops the whole scrape for one bad line.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail, ensure};

/// One line of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// A whole scrape.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    pub samples: Vec<Sample>,
    /// Type of each metric family that declares one.
    pub types: BTreeMap<String, String>,
}

impl Exposition {
    /// Reads a scrape; refuses a malformed line, a sample given twice and a family declared twice.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut exposition = Self::default();
        let mut seen = BTreeSet::new();
        for (number, line) in text.lines().enumerate() {
            let at = || format!("line {}: {line:?}", number + 1);
            if let Some(comment) = line.strip_prefix("# TYPE ") {
                let (name, kind) = comment.split_once(' ').with_context(at)?;
                ensure!(matches!(kind, "counter" | "gauge" | "histogram" | "summary" | "untyped"), at());
                let before = exposition.types.insert(name.to_owned(), kind.to_owned());
                ensure!(before.is_none(), "{name} has two TYPE lines");
            } else if !line.starts_with('#') && !line.trim().is_empty() {
                let sample = parse_sample(line).with_context(at)?;
                ensure!(seen.insert((sample.name.clone(), sample.labels.clone())), "given twice: {}", at());
                exposition.samples.push(sample);
            }
        }
        ensure!(text.is_empty() || text.ends_with('\n'), "the last line has no end");
        Ok(exposition)
    }

    /// The sum of the samples of this name that have all of these labels; 0 when there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// The samples of this name that have all of these labels.
    pub fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|given| given == value))
        })
    }
}

fn parse_sample(line: &str) -> anyhow::Result<Sample> {
    let name_end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).context("no value")?;
    let (name, mut rest) = line.split_at(name_end);
    ensure!(name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'), "a bad metric name");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = parse_labels(inside, &mut labels)?;
    }
    let mut fields = rest.split_whitespace();
    let value = fields.next().context("no value")?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        number => number.parse().context("no number")?,
    };
    if let Some(timestamp) = fields.next() {
        timestamp.parse::<i64>().context("no timestamp")?;
    }
    ensure!(fields.next().is_none(), "too many fields");
    Ok(Sample { name: name.to_owned(), labels, value })
}

fn parse_labels<'a>(mut rest: &'a str, labels: &mut BTreeMap<String, String>) -> anyhow::Result<&'a str> {
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(after);
        }
        let (name, after) = rest.split_once("=\"").context("a label without a value")?;
        ensure!(
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'),
            "a bad label name"
        );
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next().context("a label value without an end")? {
                (index, '"') => break index + 1,
                (_, '\\') => match characters.next().map(|(_, escaped)| escaped) {
                    Some('n') => value.push('\n'),
                    Some(escaped @ ('\\' | '"')) => value.push(escaped),
                    _ => bail!("an unknown escape"),
                },
                (_, character) => value.push(character),
            }
        };
        ensure!(labels.insert(name.to_owned(), value).is_none(), "a label given twice");
        rest = &after[end..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_types_and_escapes_are_read() {
        let text = "# HELP x_total What.\n# TYPE x_total counter\nx_total{a=\"1\",b=\"q\\\"\\n\"} 3\nx_total{a=\"2\"} 4.5 1700000000000\ny +Inf\n";
        let scrape = Exposition::parse(text).expect("good");
        assert_eq!(scrape.sum("x_total", &[]), 7.5);
        assert_eq!(scrape.sum("x_total", &[("a", "1")]), 3.0);
        assert_eq!(scrape.samples[0].labels["b"], "q\"\n");
        assert_eq!(scrape.sum("y", &[]), f64::INFINITY);
        assert_eq!(scrape.types["x_total"], "counter");
    }

    #[test]
    fn what_prometheus_would_drop_is_refused() {
        for bad in ["x{a=1} 2\n", "x\n", "x one\n", "1x 2\n", "x{a=\"1} 2\n", "x 1\nx 1\n", "x 1", "# TYPE x gouge\n"] {
            assert!(Exposition::parse(bad).is_err(), "{bad:?}");
        }
    }
}
