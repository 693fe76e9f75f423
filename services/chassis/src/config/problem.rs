//! Placeholder.

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {}

#[derive(Debug)]
pub struct Problems(pub Vec<Problem>);

impl std::fmt::Display for Problems {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        unimplemented!()
    }
}

impl std::error::Error for Problems {}
