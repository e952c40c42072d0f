//! What this machine says of users, groups and the environment.

use crate::plan::{Host, User};
use crate::sys::users;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The machine we run on.
#[derive(Debug, Default)]
pub struct System {
    _private: (),
}

impl System {
    /// The machine we run on.
    pub fn new() -> System {
        System::default()
    }
}

impl Host for System {
    fn user_by_name(&self, name: &str) -> Option<User> {
        users::user_by_name(name).map(user)
    }

    fn user_by_id(&self, uid: u32) -> Option<User> {
        users::user_by_uid(uid).map(user)
    }

    fn group_by_name(&self, name: &str) -> Option<u32> {
        users::group_by_name(name)
    }

    fn groups_of(&self, user: &str, gid: u32) -> Vec<u32> {
        users::groups_of(user, gid)
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        std::env::vars_os().collect()
    }

    fn user_names(&self) -> Vec<String> {
        users::user_names()
    }

    fn group_names(&self) -> Vec<String> {
        users::group_names()
    }

    fn is_root(&self) -> bool {
        users::geteuid() == 0
    }

    fn own_ids(&self) -> (u32, u32) {
        (users::geteuid(), users::getegid())
    }

    fn resolve(&self, path: &Path) -> PathBuf {
        let mut known = path.ancestors().filter_map(|ancestor| {
            let real = std::fs::canonicalize(ancestor).ok()?;
            Some(real.join(path.strip_prefix(ancestor).ok()?))
        });
        known.next().unwrap_or_else(|| path.to_path_buf())
    }

    fn has_folder(&self, path: &Path) -> bool {
        match std::fs::metadata(path) {
            Ok(found) => found.is_dir(),
            Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
        }
    }
}

fn user(user: users::User) -> User {
    User {
        name: user.name,
        uid: user.uid,
        gid: user.gid,
        home: user.home,
        shell: user.shell,
    }
}
