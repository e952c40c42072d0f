//! Why a start has failed, in words: the kernel has one errno for very different mistakes.

use super::child::{Failure, Rlimit, Stage};
use super::{Resource, Spawn, SpawnError, Step};
use std::ffi::{CStr, OsStr};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

impl Failure {
    pub(super) fn explain(self, spawn: &Spawn<'_>, rlimits: &[Rlimit]) -> SpawnError {
        let step = match self.stage {
            Stage::Setsid => Step::Setsid,
            Stage::Fd(fd) => Step::Fd(fd),
            Stage::OomScoreAdj => Step::OomScoreAdj(spawn.oom_score_adj.unwrap_or_default()),
            Stage::CpuAffinity => Step::CpuAffinity,
            Stage::Nice => Step::Nice(spawn.nice.unwrap_or_default()),
            Stage::Rlimit(index) => Step::Rlimit(
                rlimits
                    .get(index)
                    .map_or(Resource::Nofile, |limit| limit.resource),
            ),
            Stage::Groups => Step::Groups,
            Stage::Gid => Step::Gid(spawn.gid.unwrap_or_default()),
            Stage::Uid => Step::Uid(spawn.uid.unwrap_or_default()),
            Stage::Chdir => Step::Chdir(
                spawn
                    .working_dir
                    .map_or_else(PathBuf::new, |path| path_of(path).into()),
            ),
            Stage::Exec(index) => {
                let (path, note) = explain_exec(spawn, index, self.errno);
                Step::Exec { path, note }
            }
        };
        SpawnError {
            step,
            errno: self.errno,
        }
    }
}

fn path_of(path: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(path.to_bytes()))
}

/// Which candidate to name, and what can be said of it.
fn explain_exec(spawn: &Spawn<'_>, index: usize, errno: i32) -> (PathBuf, Option<String>) {
    let in_folder = |path: &Path| match spawn.working_dir {
        Some(folder) => path_of(folder).join(path),
        None => path.to_path_buf(),
    };
    let Some(candidate) = spawn.candidates.get(index).map(|path| path_of(path)) else {
        let name = spawn
            .argv
            .first()
            .map_or_else(PathBuf::new, |name| path_of(name).into());
        return (name, Some("not found in PATH".into()));
    };
    if errno == libc::EINTR {
        let note = "a process of the same user stopped it before its exec, so it was killed";
        return (candidate.into(), Some(note.into()));
    }
    if errno != libc::ENOENT {
        return (
            candidate.into(),
            explain_existing(&in_folder(candidate), errno),
        );
    }
    // "No such file", though there is one: then it is what the file needs that is missing.
    let mut paths = spawn.candidates.iter().map(|path| path_of(path));
    if let Some(path) = paths.find(|path| in_folder(path).is_file()) {
        return (
            path.into(),
            Some(explain_missing_interpreter(&in_folder(path))),
        );
    }
    if spawn.candidates.len() > 1 {
        let name = candidate.file_name().map_or(candidate, Path::new);
        return (name.into(), Some("not found in PATH".into()));
    }
    let note = match fs::symlink_metadata(in_folder(candidate)) {
        Ok(_) => Some("a symbolic link to nothing".into()),
        Err(_) if candidate.is_relative() => spawn
            .working_dir
            .map(|folder| format!("in `{}`", path_of(folder).display())),
        Err(_) => None,
    };
    (candidate.into(), note)
}

fn explain_existing(path: &Path, errno: i32) -> Option<String> {
    let note = match errno {
        libc::EACCES => {
            let metadata = fs::metadata(path).ok()?;
            if metadata.is_dir() {
                "it is a directory".into()
            } else if !metadata.is_file() {
                "it is no regular file".into()
            } else if metadata.permissions().mode() & 0o111 == 0 {
                format!(
                    "the file is not executable; `chmod +x {}` makes it so",
                    path.display()
                )
            } else if is_mounted_noexec(path) {
                "its file system is mounted `noexec`".into()
            } else {
                let interpreter = interpreter_of(path)?;
                let mode = fs::metadata(&interpreter).ok()?.mode();
                if mode & 0o111 != 0 {
                    return None;
                }
                format!(
                    "its interpreter `{}` is not executable",
                    interpreter.display()
                )
            }
        }
        libc::ENOEXEC => match head_of(path).as_deref() {
            Some([]) => "the file is empty".into(),
            Some([0x7f, b'E', b'L', b'F', ..]) => {
                "a program for another kind of machine, or a damaged one".into()
            }
            _ => "a script needs a first line such as `#!/bin/sh`".into(),
        },
        libc::ETXTBSY => "the file is open for writing".into(),
        libc::EAGAIN => "the user's process limit is reached: `rlimits` nproc".into(),
        libc::E2BIG => "its arguments and environment together are too long".into(),
        libc::ELOOP => "a circle of symbolic links, or interpreters that need interpreters".into(),
        _ => return None,
    };
    Some(note)
}

fn explain_missing_interpreter(path: &Path) -> String {
    match interpreter_of(path) {
        Some(interpreter) if interpreter.as_os_str().as_bytes().ends_with(b"\r") => {
            "its first line ends in a carriage return: save the script with Unix line ends".into()
        }
        Some(interpreter) => format!(
            "the file exists, but its interpreter `{}` does not",
            interpreter.display()
        ),
        None => "the file exists, but the dynamic loader that it asks for does not".into(),
    }
}

/// The path in a script's first line.
fn interpreter_of(path: &Path) -> Option<PathBuf> {
    let head = head_of(path)?;
    let line = head
        .strip_prefix(b"#!")?
        .split(|&byte| byte == b'\n')
        .next()?;
    let start = line.iter().position(|byte| !b" \t".contains(byte))?;
    let word = line
        .get(start..)?
        .split(|byte| b" \t".contains(byte))
        .next()?;
    Some(Path::new(OsStr::from_bytes(word)).into())
}

/// The first 256 bytes, which is what the kernel looks at. Opens regular files only: a FIFO would block.
fn head_of(path: &Path) -> Option<Vec<u8>> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut head = Vec::new();
    fs::File::open(path)
        .ok()?
        .take(256)
        .read_to_end(&mut head)
        .ok()?;
    Some(head)
}

fn is_mounted_noexec(path: &Path) -> bool {
    nix::sys::statvfs::statvfs(path)
        .is_ok_and(|fs| fs.flags().contains(nix::sys::statvfs::FsFlags::ST_NOEXEC))
}
