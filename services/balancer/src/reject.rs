//! Answers of our own.
