//! tentpole: a socket-activation service manager for Linux.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod control;
pub mod plan;
pub mod runtime;
pub mod supervise;
#[allow(unsafe_code)]
pub mod sys;
pub mod unit;

pub mod cli;
