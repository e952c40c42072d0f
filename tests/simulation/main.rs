//! The real state machine under virtual time, with every event held against [`rules::Rules`].

#[allow(dead_code, reason = "for random schedules")]
mod random;
mod rules;
mod scenario;
mod tables;
#[allow(dead_code, reason = "for random schedules")]
mod units;
