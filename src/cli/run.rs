//! The manager itself: run.

use super::{Error, ExitCode, Surroundings, units};
use crate::runtime::{self, Options};
use std::path::PathBuf;

/// Runs the manager in the foreground until it is told to stop.
pub(super) fn run(
    paths: Vec<PathBuf>,
    control: Option<PathBuf>,
    keeper: bool,
    surroundings: &Surroundings,
) -> Result<ExitCode, Error> {
    let options = Options {
        search: units::search(paths, surroundings),
        control,
        default_control: surroundings.own_control(),
        keeper,
    };
    let code = runtime::run(&options).map_err(anyhow::Error::from)?;
    // What a process can exit with is one byte, as exit(3) says.
    Ok(ExitCode::from((code & 0xff) as u8))
}
