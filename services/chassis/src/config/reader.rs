//! Hands out typed values, remembers which keys were asked for, collects what is wrong. In: layers. Out: values; at
//! the end every mistake of the run. A key that nobody asked for is one.

use super::{
    Layers, Location, Mismatch, Problem, Problems, Value,
    document::{Located, Toml},
    flag_name, suggest, variable_name,
};
use std::collections::{BTreeMap, BTreeSet};

/// Reads one set of layers. Every role's section is read from the same reader, then [`Reader::finish`] is called once.
#[derive(Debug)]
pub struct Reader<'a> {
    layers: &'a Layers,
    /// Keys of single values.
    asked: BTreeSet<String>,
    /// Keys of lists of tables; what is inside them has been judged by a [`TableReader`].
    asked_tables: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    pub fn new(layers: &Layers) -> Reader<'_> {
        Reader { layers, asked: BTreeSet::new(), asked_tables: BTreeSet::new(), problems: Vec::new() }
    }

    /// The value of the highest layer that has a valid one.
    pub fn read<T: Value>(&mut self, key: &str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// As [`Self::read`], where absence means something of its own.
    pub fn optional<T: Value>(&mut self, key: &str) -> Option<T> {
        self.asked.insert(key.to_owned());
        let layers = self.layers;
        let mut value = None;
        if let Some(found) = layers.document.find(key) {
            match T::from_toml(&found.value) {
                Ok(found) => value = Some(found),
                Err(mismatch) => {
                    let location = layers.document.location(mismatch.line.unwrap_or(found.line));
                    self.mismatch(location, key, &mismatch);
                }
            }
        }
        let variable = variable_name(key);
        if let Some(text) = layers.variables.get(&variable) {
            match T::from_text(text) {
                Some(found) => value = Some(found),
                None => self.mismatch(Location::Variable(variable), key, &Mismatch::text::<T>(text)),
            }
        }
        if let Some(text) = layers.flags.get(key) {
            match T::from_text(text) {
                Some(found) => value = Some(found),
                None => self.mismatch(Location::Flag(flag_name(key)), key, &Mismatch::text::<T>(text)),
            }
        }
        value
    }

    /// Every table of a list such as `[[balancer.route]]`, in the order of the file; none if there is no such list.
    /// Only the file can hold one.
    pub fn tables<R>(&mut self, key: &str, mut each: impl FnMut(&mut TableReader<'_>) -> R) -> Vec<R> {
        self.asked_tables.insert(key.to_owned());
        let layers = self.layers;
        let Some(found) = layers.document.find(key) else { return Vec::new() };
        let Toml::List(items) = &found.value else {
            let message = format!("is a list of tables: write [[{key}]]");
            self.push(layers.document.location(found.line), key, message);
            return Vec::new();
        };
        let mut results = Vec::with_capacity(items.len());
        for item in items {
            let Toml::Table(table) = &item.value else {
                let message = format!("expected a table, found {}", item.value);
                self.push(layers.document.location(item.line), key, message);
                continue;
            };
            let mut reader =
                TableReader { layers, path: key, line: item.line, table, asked: BTreeSet::new(), problems: Vec::new() };
            results.push(each(&mut reader));
            self.problems.append(&mut reader.finish());
        }
        results
    }

    /// A rule between values is broken; reported where `key` stands. Not reported if that key's value is already
    /// known to be wrong: the rule was then applied to the default.
    pub fn refuse(&mut self, key: &str, message: impl Into<String>) {
        if self.problems.iter().any(|problem| problem.key.as_deref() == Some(key)) {
            return;
        }
        let layers = self.layers;
        let variable = variable_name(key);
        let location = if layers.flags.contains_key(key) {
            Location::Flag(flag_name(key))
        } else if layers.variables.contains_key(&variable) {
            Location::Variable(variable)
        } else {
            layers.document.nearest(key).unwrap_or(Location::Nowhere)
        };
        self.push(location, key, message.into());
    }

    /// Call it when everything has been asked for: what nobody asked for is unknown.
    pub fn finish(mut self) -> Result<(), Problems> {
        let layers = self.layers;
        self.unknown_keys(&layers.document.root, "");
        self.unknown_variables();
        for key in layers.flags.keys().filter(|key| !self.asked.contains(*key)) {
            let message = "does nothing here".to_owned();
            self.problems.push(Problem { location: Location::Flag(flag_name(key)), key: None, message });
        }
        // After a syntax error the parser guesses: what it made of that line is no second mistake of the user's.
        let torn: BTreeSet<&Location> = layers.document.syntax_errors.iter().map(|error| &error.location).collect();
        let mut problems = self.problems;
        problems.retain(|problem| !torn.contains(&problem.location));
        problems.extend(layers.document.syntax_errors.iter().cloned());
        Problems::collect(problems).map_or(Ok(()), Err)
    }

    fn unknown_keys(&mut self, table: &BTreeMap<String, Located>, path: &str) {
        for (name, found) in table {
            let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if self.asked.contains(&key) || self.asked_tables.contains(&key) {
                continue;
            }
            let location = self.layers.document.location(found.line);
            match &found.value {
                Toml::Table(inner) if self.is_section(&key) => self.unknown_keys(inner, &key),
                value if self.is_section(&key) => {
                    let message = format!("expected the section [{key}], found {value}");
                    self.push(location, &key, message);
                }
                _ => {
                    let known = self.known_keys();
                    let message = unknown(&key, known.iter().map(String::as_str));
                    self.push(location, &key, message);
                }
            }
        }
    }

    /// A variable without a double underscore may belong to anybody: Kubernetes makes `SERVERY_PORT` for a service
    /// named `servery`.
    fn unknown_variables(&mut self) {
        let layers = self.layers;
        let names: BTreeSet<String> = self.asked.iter().map(|key| variable_name(key)).collect();
        for name in layers.variables.keys().filter(|name| name.contains("__") && !names.contains(*name)) {
            let message = match self.asked_tables.iter().find(|key| *name == variable_name(key)) {
                Some(key) => format!("[[{key}]] can be set in the configuration file only"),
                None => {
                    let wrong = name.trim_start_matches("SERVERY_").to_ascii_lowercase().replace("__", ".");
                    match suggest::nearest_key(&wrong, self.asked.iter().map(String::as_str)) {
                        Some(key) => format!("unknown variable, did you mean {}?", variable_name(key)),
                        None => "unknown variable".to_owned(),
                    }
                }
            };
            self.problems.push(Problem { location: Location::Variable(name.clone()), key: None, message });
        }
    }

    fn is_section(&self, key: &str) -> bool {
        let inside = |asked: &String| asked.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
        self.asked.iter().any(inside) || self.asked_tables.iter().any(inside)
    }

    /// Values, lists of tables, and the sections around them.
    fn known_keys(&self) -> BTreeSet<String> {
        let leaves = self.asked.iter().chain(&self.asked_tables);
        let sections = leaves.clone().filter_map(|key| key.rsplit_once('.')).map(|(section, _)| section.to_owned());
        leaves.cloned().chain(sections).collect()
    }

    fn mismatch(&mut self, location: Location, key: &str, mismatch: &Mismatch) {
        self.push(location, key, mismatch.to_string());
    }

    fn push(&mut self, location: Location, key: &str, message: String) {
        self.problems.push(Problem { location, key: Some(key.to_owned()), message });
    }
}

/// Reads one table of a list; its keys are relative to the table.
#[derive(Debug)]
pub struct TableReader<'a> {
    layers: &'a Layers,
    /// Of the list, such as `balancer.route`.
    path: &'a str,
    line: usize,
    table: &'a BTreeMap<String, Located>,
    asked: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl TableReader<'_> {
    pub fn read<T: Value>(&mut self, key: &str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    pub fn optional<T: Value>(&mut self, key: &str) -> Option<T> {
        self.asked.insert(key.to_owned());
        let found = self.table.get(key)?;
        match T::from_toml(&found.value) {
            Ok(value) => Some(value),
            Err(mismatch) => {
                self.push(mismatch.line.unwrap_or(found.line), key, mismatch.to_string());
                None
            }
        }
    }

    /// Whether the table has this key at all, even with a wrong value. The key counts as known.
    pub fn has(&mut self, key: &str) -> bool {
        self.asked.insert(key.to_owned());
        self.table.contains_key(key)
    }

    /// As [`Reader::refuse`]; at the table's own line if it lacks the key.
    pub fn refuse(&mut self, key: &str, message: impl Into<String>) {
        let full = format!("{}.{key}", self.path);
        if self.problems.iter().any(|problem| problem.key.as_deref() == Some(&full)) {
            return;
        }
        let line = self.table.get(key).map_or(self.line, |found| found.line);
        self.push(line, key, message.into());
    }

    fn push(&mut self, line: usize, key: &str, message: String) {
        let location = self.layers.document.location(line);
        self.problems.push(Problem { location, key: Some(format!("{}.{key}", self.path)), message });
    }

    fn finish(mut self) -> Vec<Problem> {
        for (name, found) in self.table {
            if !self.asked.contains(name) {
                let message = unknown(name, self.asked.iter().map(String::as_str));
                self.push(found.line, name, message);
            }
        }
        self.problems
    }
}

fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    match suggest::nearest_key(key, known) {
        Some(near) => format!("unknown key, did you mean {near}?"),
        None => "unknown key".to_owned(),
    }
}
