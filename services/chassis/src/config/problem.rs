//! What is wrong with a configuration, and where. In: findings of the reader. Out: one line of text for each, in the
//! order in which a person would correct them.

use std::fmt;

/// Where a value stands. Ordered: the file from top to bottom, then variables, then flags.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    File {
        name: String,
        line: usize,
    },
    Variable(String),
    Flag(String),
    /// No layer mentions the key: a default does not fit, or something that must be there is missing.
    Nowhere,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub location: Location,
    /// Absent where the location says it all (a variable, a flag, a syntax error).
    pub key: Option<String>,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Location::File { name, line } => write!(f, "{name}:{line}: ")?,
            Location::Variable(name) | Location::Flag(name) => write!(f, "{name}: ")?,
            Location::Nowhere => {}
        }
        if let (Location::File { .. } | Location::Nowhere, Some(key)) = (&self.location, &self.key) {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Every mistake of one run; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorted, each once. `None` if there is nothing wrong.
    pub fn collect(mut problems: Vec<Problem>) -> Option<Self> {
        problems.sort();
        problems.dedup();
        (!problems.is_empty()).then_some(Self(problems))
    }

    pub fn one(problem: Problem) -> Self {
        Self(vec![problem])
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
