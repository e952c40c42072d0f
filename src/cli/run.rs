//! The manager itself: run.

use super::{Error, ExitCode, Surroundings, complain, units};
use crate::runtime::{self, Options, StartError};
use std::path::PathBuf;

/// What a manager exits with that could not go on where another has ended (EX_TEMPFAIL of sysexits.h). Nothing is lost yet:
/// `tentpole.service` has systemd start the next one.
const TRY_AGAIN: u8 = 75;

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
    let code = match runtime::run(&options) {
        Err(error @ StartError::Again(_)) => {
            complain(&error.to_string());
            return Ok(ExitCode::from(TRY_AGAIN));
        }
        ended => ended.map_err(anyhow::Error::from)?,
    };
    // What a process can exit with is one byte, as exit(3) says.
    Ok(ExitCode::from((code & 0xff) as u8))
}
