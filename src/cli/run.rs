//! The manager itself: run.

use super::{Error, Surroundings, units};
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs the manager in the foreground until it is told to stop.
pub(super) fn run(
    paths: Vec<PathBuf>,
    control: Option<PathBuf>,
    surroundings: &Surroundings,
) -> Result<ExitCode, Error> {
    let options = unbuilt::Options {
        search: units::search(paths, surroundings),
        control,
        default_control: surroundings.own_control(),
    };
    Ok(unbuilt::run(options)?)
}

/// TODO(runtime): stands in for `crate::runtime` until that is there; replace `unbuilt::` by `crate::runtime::` here and
/// in `units.rs`, and delete this.
pub(super) mod unbuilt {
    use crate::plan::{Host, User};
    use crate::unit::Search;
    use std::ffi::OsString;
    use std::path::PathBuf;
    use std::process::ExitCode;

    /// What the manager is started with.
    #[derive(Clone, Debug)]
    #[allow(dead_code)]
    pub(in super::super) struct Options {
        /// Where the unit files are.
        pub search: Search,
        /// The control socket that the command line or the environment names: it goes before `[manager] control`.
        pub control: Option<PathBuf>,
        /// The control socket if nothing names one.
        pub default_control: PathBuf,
    }

    /// Runs the manager; the answer is what the program exits with.
    pub(in super::super) fn run(_options: Options) -> anyhow::Result<ExitCode> {
        anyhow::bail!("`run` is not built yet")
    }

    /// What the machine says of users, groups and our environment.
    pub(in super::super) struct System;

    impl System {
        pub fn new() -> Self {
            System
        }
    }

    impl Host for System {
        fn user_by_name(&self, _: &str) -> Option<User> {
            None
        }
        fn user_by_id(&self, _: u32) -> Option<User> {
            None
        }
        fn group_by_name(&self, _: &str) -> Option<u32> {
            None
        }
        fn groups_of(&self, _: &str, gid: u32) -> Vec<u32> {
            vec![gid]
        }
        fn environment(&self) -> Vec<(OsString, OsString)> {
            std::env::vars_os().collect()
        }
        fn is_root(&self) -> bool {
            nix::unistd::geteuid().is_root()
        }
    }
}
