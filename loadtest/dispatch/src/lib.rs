//! Dispatch in virtual time: come in a scenario and the name of a policy, goes out how long requests waited. Servery is
//! the code that ships (`balancer::dispatch`, `servery_app_server::ledger`); beside it run the usual policies and the
//! ideal. No clock is read, nothing is sent; the same seed gives the same result.
//!
//! In reading order: `calendar` (virtual time), `service` and `scenario` (what is simulated), `world` (requests, workers),
//! `policy` and the files below it, `outcome` (what came of it); `table` and `plot` (how it is shown), `cost` (what the
//! app's mutex costs, in real time), `cli`.

pub mod calendar;
pub mod cli;
pub mod cost;
pub mod outcome;
pub mod plot;
pub mod policy;
pub mod scenario;
pub mod service;
pub mod table;
pub mod world;

#[cfg(test)]
mod tests;
