//! The file of a unix socket.

use crate::sys::socket::{self, FileId};
use crate::unit::path::FilePath;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A file that we made, known by its inode: what somebody else has put in its place is not ours to remove.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    path: FilePath,
    device: u64,
    inode: u64,
}

impl Node {
    /// The file that has just been made at `path`.
    pub fn made_at(path: &Path) -> Option<Node> {
        let data = std::fs::symlink_metadata(path).ok()?;
        Some(Node {
            path: path.into(),
            device: data.dev(),
            inode: data.ino(),
        })
    }

    /// The file itself, whatever its path.
    pub fn id(&self) -> FileId {
        (self.device, self.inode)
    }

    /// Whether a path leads to it.
    pub fn is_at(&self, path: &Path) -> bool {
        file_at(path) == Some(self.id())
    }

    /// Whether it is still there: `None` if another stands in its place.
    pub fn is_there(&self) -> Option<bool> {
        match std::fs::symlink_metadata(&*self.path) {
            Ok(data) if (data.dev(), data.ino()) == self.id() => Some(true),
            Ok(_) => None,
            Err(_) => Some(false),
        }
    }

    /// Changes its mode, and its group where one is given, if it is still there.
    pub fn restrict(&self, mode: u32, gid: Option<u32>) -> std::io::Result<()> {
        let access = socket::set_access(&self.path, Some(self.id()), (None, gid), mode);
        access.map(|_is_there| ())
    }

    /// Removes it, if it is still there.
    pub fn remove(&self) {
        let Ok(data) = std::fs::symlink_metadata(&*self.path) else {
            return;
        };
        if (data.dev(), data.ino()) != (self.device, self.inode) {
            return;
        }
        if let Err(error) = std::fs::remove_file(&*self.path)
            && error.kind() != ErrorKind::NotFound
        {
            log::warn!(target: "manager", "{} could not be removed: {error}", self.path.display());
        }
    }
}

/// The file at a path.
pub fn file_at(path: &Path) -> Option<FileId> {
    let data = std::fs::symlink_metadata(path).ok()?;
    Some((data.dev(), data.ino()))
}
