//! The file of a unix socket.

use crate::sys::socket::{self, FileId};
use crate::sys::users;
use crate::unit::path::FilePath;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A file that we made, known by its inode: what somebody else has put in its place is not ours to remove.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    path: FilePath,
    device: u64,
    inode: u64,
    /// A second name of it, by which it can be put back where somebody removes the first.
    #[serde(default)]
    spare: Option<FilePath>,
}

impl Node {
    /// The file that has just been made at `path`.
    pub fn made_at(path: &Path) -> Option<Node> {
        let data = std::fs::symlink_metadata(path).ok()?;
        Some(Node {
            path: path.into(),
            device: data.dev(),
            inode: data.ino(),
            spare: None,
        })
    }

    /// Gives it a second name, if it has none, in a folder beside the file of the control socket that is nobody else's. That
    /// must be on the same file system (link(2)); else it is left at one name.
    pub fn keep_spare(&mut self, control: &Node) {
        if self.spare.is_some() || self.device != control.device {
            return;
        }
        let Some(folder) = control.spares().or_else(|| control.make_spares()) else {
            return;
        };
        let spare = folder.join(self.inode.to_string());
        match std::fs::hard_link(&*self.path, &spare) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                log::debug!(target: "manager", "{} has no second name: {error}", self.path.display());
            }
            // One of another inode would have gone at the start.
            _ if file_at(&spare) == Some(self.id()) => self.spare = Some(spare.as_path().into()),
            _ => {}
        }
    }

    /// Whether it can be put back where it is gone from.
    pub fn has_spare(&self) -> bool {
        let spare = self.spare.as_ref();
        spare.is_some_and(|spare| file_at(spare) == Some(self.id()))
    }

    /// Puts it back at its path, where it is gone from.
    pub fn put_back(&self) -> std::io::Result<()> {
        match &self.spare {
            Some(spare) if self.has_spare() => std::fs::hard_link(&**spare, &*self.path),
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    /// Removes the second name.
    pub fn give_up_spare(&self) {
        if let Some(spare) = &self.spare
            && file_at(spare) == Some(self.id())
        {
            let _ = std::fs::remove_file(&**spare);
        }
    }

    /// Removes what an earlier manager on this control socket has left in the folder of second names.
    pub fn empty_spares(&self) {
        let entries = self.spares().and_then(|it| std::fs::read_dir(it).ok());
        for entry in entries.into_iter().flatten().flatten() {
            let is_inode = |name: &OsStr| name.as_bytes().iter().all(u8::is_ascii_digit);
            let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
            if is_socket && is_inode(&entry.file_name()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Removes the folder of second names, which is empty at the end.
    pub fn remove_spares(&self) {
        if let Some(folder) = self.spares() {
            let _ = std::fs::remove_dir(folder);
        }
    }

    /// The folder of second names, if it is there. One that somebody else has made, or may write to, is none: it might be a
    /// way to the sockets, or lead to other files.
    fn spares(&self) -> Option<PathBuf> {
        let folder = self.path_of_spares();
        let found = std::fs::symlink_metadata(&folder).ok()?;
        let is_ours = found.uid() == users::geteuid() && found.mode() & 0o077 == 0;
        (found.is_dir() && is_ours).then_some(folder)
    }

    fn make_spares(&self) -> Option<PathBuf> {
        let made = DirBuilder::new().mode(0o700).create(self.path_of_spares());
        made.ok().and_then(|()| self.spares())
    }

    fn path_of_spares(&self) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".spare");
        self.path.with_file_name(name)
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
