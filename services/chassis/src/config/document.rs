//! The file as a tree whose every value knows its line. In: TOML text. Out: the tree, as far as the text can be
//! understood, and its syntax errors. It never judges a key or a value.

use super::problem::{Location, Problem};
use std::{collections::BTreeMap, fmt};
use toml::de::{DeTable, DeValue};

/// What is quoted of a wrong value: enough to recognise it.
const QUOTED_CHARS_MAX: usize = 60;

/// A value as the file has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Toml {
    Text(String),
    Integer(i128),
    Boolean(bool),
    /// A float, a date, a number beyond `i128`: as written. No key takes one.
    Other(String),
    List(Vec<Located>),
    Table(BTreeMap<String, Located>),
}

/// A value and the line, from 1, of its key (in a table) or of itself (in a list).
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    pub line: usize,
    pub value: Toml,
}

/// Completes "found ...".
impl fmt::Display for Toml {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Boolean(boolean) => write!(f, "{boolean}"),
            Self::Other(text) => f.write_str(text),
            Self::List(_) => f.write_str("a list"),
            Self::Table(_) => f.write_str("a table"),
        }
    }
}

/// `text` in quotes, shortened, with nothing in it that could disturb a terminal.
pub(super) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}

/// One parsed file.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) name: String,
    pub(super) root: BTreeMap<String, Located>,
    pub(super) syntax_errors: Vec<Problem>,
}

impl Document {
    pub(super) fn parse(name: &str, text: &str) -> Self {
        let lines = Lines::of(text);
        let (root, errors) = DeTable::parse_recoverable(text);
        let syntax_errors = errors
            .iter()
            .map(|error| Problem {
                location: Location::File {
                    name: name.to_owned(),
                    line: lines.at(error.span().map_or(text.len(), |span| span.start)),
                },
                key: None,
                message: error.message().to_owned(),
            })
            .collect();
        Self { name: name.to_owned(), root: table(root.get_ref(), &lines), syntax_errors }
    }

    /// The value at a dotted key, if every step to it is a table.
    pub(super) fn find(&self, key: &str) -> Option<&Located> {
        let mut table = &self.root;
        let mut steps = key.split('.').peekable();
        loop {
            let found = table.get(steps.next()?)?;
            if steps.peek().is_none() {
                return Some(found);
            }
            let Toml::Table(inner) = &found.value else { return None };
            table = inner;
        }
    }

    /// The place of `key`, or of the innermost section around it that is there.
    pub(super) fn nearest(&self, key: &str) -> Option<Location> {
        let mut key = key;
        loop {
            if let Some(found) = self.find(key) {
                return Some(self.location(found.line));
            }
            (key, _) = key.rsplit_once('.')?;
        }
    }

    pub(super) fn location(&self, line: usize) -> Location {
        Location::File { name: self.name.clone(), line }
    }
}

fn table(table: &DeTable<'_>, lines: &Lines) -> BTreeMap<String, Located> {
    table
        .iter()
        .map(|(key, value)| {
            let line = lines.at(key.span().start);
            (key.get_ref().clone().into_owned(), Located { line, value: convert(value.get_ref(), lines) })
        })
        .collect()
}

fn convert(value: &DeValue<'_>, lines: &Lines) -> Toml {
    match value {
        DeValue::String(text) => Toml::Text(text.clone().into_owned()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Toml::Other(number.to_string()), Toml::Integer),
        DeValue::Float(number) => Toml::Other(number.to_string()),
        DeValue::Boolean(boolean) => Toml::Boolean(*boolean),
        DeValue::Datetime(time) => Toml::Other(time.to_string()),
        DeValue::Array(array) => Toml::List(
            array
                .iter()
                .map(|item| Located { line: lines.at(item.span().start), value: convert(item.get_ref(), lines) })
                .collect(),
        ),
        DeValue::Table(inner) => Toml::Table(table(inner, lines)),
    }
}

/// Turns byte offsets into line numbers.
struct Lines {
    /// The offset at which each line begins; the first is 0.
    begins: Vec<usize>,
}

impl Lines {
    fn of(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self { begins: std::iter::once(0).chain(ends.map(|(offset, _)| offset + 1)).collect() }
    }

    fn at(&self, offset: usize) -> usize {
        self.begins.partition_point(|begin| *begin <= offset)
    }
}
