//! Any configuration is read or refused with what to do about it; what was read holds what the rest relies on.
#![no_main]

use balancer::Config;
use chassis::config::{Layers, Reader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let layers = Layers::from_text("servery.toml", text, [], Vec::new());
    let mut reader = Reader::new(&layers);
    let config = Config::read(&mut reader);
    if let Err(problems) = reader.finish() {
        assert!(problems.iter().count() > 0);
        assert!(problems.iter().all(|problem| !problem.to_string().is_empty()));
        return;
    }
    assert!(config.threads >= 1 && config.max_connections >= 1);
    assert!(config.routes.iter().all(|route| route.prefix.as_str().starts_with('/')));
});
