//! Placeholder.

use super::{Layers, Problems, Value};

pub struct Reader<'a> {
    _layers: &'a Layers,
}

impl Reader<'_> {
    pub fn new(layers: &Layers) -> Reader<'_> {
        Reader { _layers: layers }
    }

    pub fn read<T: Value>(&mut self, _key: &str, _default: T) -> T {
        unimplemented!()
    }

    pub fn optional<T: Value>(&mut self, _key: &str) -> Option<T> {
        unimplemented!()
    }

    pub fn tables<R>(&mut self, _key: &str, _each: impl FnMut(&mut TableReader<'_>) -> R) -> Vec<R> {
        unimplemented!()
    }

    pub fn refuse(&mut self, _key: &str, _message: impl Into<String>) {
        unimplemented!()
    }

    pub fn finish(self) -> Result<(), Problems> {
        unimplemented!()
    }
}

pub struct TableReader<'a> {
    _layers: &'a Layers,
}

impl TableReader<'_> {
    pub fn read<T: Value>(&mut self, _key: &str, _default: T) -> T {
        unimplemented!()
    }

    pub fn optional<T: Value>(&mut self, _key: &str) -> Option<T> {
        unimplemented!()
    }

    pub fn refuse(&mut self, _key: &str, _message: impl Into<String>) {
        unimplemented!()
    }
}
