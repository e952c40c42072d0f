//! The file of a unix socket: made with its folders, in place of one that nobody listens on, and with its owner and mode.

use super::super::owner::Owner;
use super::super::process::{is_zombie, name_of};
use super::super::{owner, unix};
use super::{Cause, FileId, LONGEST_UNIX, Listen, capped, open_socket, step};
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, umask};
use nix::unistd::{fchownat, getegid, geteuid};
use socket2::{Domain, SockAddr, Socket};
use std::fs;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub(super) fn bind_path(listen: &Listen<'_>, path: &Path) -> Result<Socket, Cause> {
    let length = path.as_os_str().len();
    if length == 0 || length > LONGEST_UNIX {
        return Err(Cause::TooLong(length));
    }
    let address = SockAddr::unix(path).map_err(step("address"))?;
    let socket = open_socket(Domain::UNIX, listen)?;
    let folders = make_folders(path, listen.directory_mode)?;
    let result = bind_node(listen, &socket, &address, path).and_then(|()| {
        let result = finish_node(listen, &socket, path);
        if result.is_err() {
            // Ours since the bind; without it the address would look like a stale one.
            let _ = fs::remove_file(path);
        }
        result
    });
    if result.is_err() {
        for folder in folders.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
    }
    result.map(|()| socket)
}

/// Makes the folders above `path` that are missing; returns those that it made, outermost first.
fn make_folders(path: &Path, mode: u32) -> Result<Vec<PathBuf>, Cause> {
    let mut missing = Vec::new();
    for folder in path.ancestors().skip(1) {
        if folder.as_os_str().is_empty() || folder.exists() {
            break;
        }
        missing.push(folder.to_path_buf());
    }
    let mut made = Vec::new();
    for folder in missing.into_iter().rev() {
        // Never wider than asked, and then exactly as asked, whatever the umask.
        let result = DirBuilder::new()
            .mode(mode & 0o7777)
            .create(&folder)
            .and_then(|()| {
                made.push(folder.clone());
                fs::set_permissions(&folder, Permissions::from_mode(mode & 0o7777))
            });
        match result {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                for folder in made.iter().rev() {
                    let _ = fs::remove_dir(folder);
                }
                return Err(step("mkdir")(error));
            }
            _ => {}
        }
    }
    Ok(made)
}

/// Binds, and clears a stale node out of the way.
fn bind_node(
    listen: &Listen<'_>,
    socket: &Socket,
    address: &SockAddr,
    path: &Path,
) -> Result<(), Cause> {
    let mode = listen.mode.unwrap_or(0o666 & !listen.umask.unwrap_or(0)) & 0o777;
    // The node takes the mode of the socket's own inode, less the umask.
    let has_mode = fchmod(socket, Mode::from_bits_truncate(mode)).is_ok();
    // Somebody may put another node there between our removal and our bind, but not for ever.
    for _ in 0..3 {
        let own = umask(Mode::from_bits_truncate(if has_mode {
            0
        } else {
            !mode & 0o777
        }));
        let result = socket.bind(address);
        umask(own);
        match result {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {
                make_room(listen, address, path)?;
            }
            Err(error) => return Err(step("bind")(error)),
        }
    }
    Err(Cause::InUse(owner::of_unix(path.as_os_str().as_bytes())))
}

/// Removes the node at `path` if it is a socket that nobody listens on and that may be replaced.
fn make_room(listen: &Listen<'_>, address: &SockAddr, path: &Path) -> Result<(), Cause> {
    let look = || fs::symlink_metadata(path);
    let found = match look() {
        Ok(found) => found,
        // It has gone meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(step("stat")(error)),
    };
    let kind = found.file_type();
    if !kind.is_socket() {
        let what = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_symlink() => "a symbolic link",
            () if kind.is_fifo() => "a FIFO",
            () if kind.is_char_device() || kind.is_block_device() => "a device",
            () => "a file",
        };
        return Err(Cause::Occupied(what));
    }
    let id = (found.dev(), found.ino());
    if listen.own.contains(&id) {
        return Err(Cause::Own(id));
    }
    match probe(listen, address, path)? {
        Probe::Live(owner) => Err(Cause::InUse(owner)),
        Probe::Gone => Ok(()),
        Probe::Stale if !listen.replace => Err(Cause::Stale),
        Probe::Stale => {
            let still = look().is_ok_and(|now| (now.dev(), now.ino()) == id);
            if still {
                fs::remove_file(path).map_err(step("unlink"))
            } else {
                Ok(())
            }
        }
    }
}

enum Probe {
    Live(Option<Owner>),
    Stale,
    Gone,
}

/// Connects to a unix socket to learn whether somebody has it. Never blocks; the connection is closed at once.
fn probe(listen: &Listen<'_>, address: &SockAddr, path: &Path) -> Result<Probe, Cause> {
    let socket = open_socket(
        Domain::UNIX,
        &Listen {
            blocking: false,
            ..*listen
        },
    )?;
    let peer = match socket.connect(address) {
        // The credentials are those of the process that called listen(2), which may have handed the socket on and ended.
        Ok(()) => unix::peer(&socket)
            .ok()
            .and_then(|peer| peer.pid)
            .filter(|pid| name_of(*pid).is_some() && !is_zombie(*pid)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => return Ok(Probe::Stale),
            Some(libc::ENOENT) => return Ok(Probe::Gone),
            // Its queue is full; it is of another type; it is a datagram socket that speaks with one other alone.
            Some(libc::EAGAIN | libc::EPROTOTYPE | libc::EPERM) => None,
            _ => return Err(step("connect, to see whether it is in use")(error)),
        },
    };
    let owner = peer
        .filter(|_| listen.kind.has_connections())
        .map(Owner::of);
    Ok(Probe::Live(
        owner.or_else(|| owner::of_unix(path.as_os_str().as_bytes())),
    ))
}

/// Gives the node its owner, then lets connections in.
fn finish_node(listen: &Listen<'_>, socket: &Socket, path: &Path) -> Result<(), Cause> {
    if listen.uid.is_some() || listen.gid.is_some() {
        chown_node(path, listen.uid, listen.gid).map_err(step("chown"))?;
    }
    if listen.kind.has_connections() {
        socket
            .listen(capped(listen.backlog))
            .map_err(step("listen"))?;
    }
    Ok(())
}

/// Changes the owner of a socket's node, and of nothing that somebody may have put in its place.
pub(super) fn chown_node(path: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let (node, found) = open_node(path)?;
    check_is_socket(&found)?;
    chown_opened(&node, uid, gid)
}

/// What stands at a path, to be changed and not to be used.
fn open_node(path: &Path) -> io::Result<(OwnedFd, FileStat)> {
    let node = open(
        path,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let found = fstat(&node)?;
    Ok((node, found))
}

fn check_is_socket(found: &FileStat) -> io::Result<()> {
    match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFSOCK => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ENOTSOCK)),
    }
}

fn chown_opened(node: &OwnedFd, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    Ok(fchownat(
        node,
        "",
        uid.map(Into::into),
        gid.map(Into::into),
        AtFlags::AT_EMPTY_PATH,
    )?)
}

/// Sets the mode of a socket's node, and its owner and group where they are given. If it is known which `file` it is, nothing
/// else is changed that somebody may have put in its place: then the answer is false.
pub fn set_access(
    path: &Path,
    file: Option<FileId>,
    (uid, gid): (Option<u32>, Option<u32>),
    mode: u32,
) -> io::Result<bool> {
    let (node, found) = open_node(path)?;
    if file.is_some_and(|file| file != (found.st_dev, found.st_ino)) {
        return Ok(false);
    }
    check_is_socket(&found)?;
    let is = |wanted: Option<u32>, found: u32| wanted.is_none_or(|wanted| wanted == found);
    if !is(uid, found.st_uid) || !is(gid, found.st_gid) {
        let result = chown_opened(&node, uid, gid);
        result.map_err(|error| told(path, "be given its owner", &error))?;
    }
    let mode = Permissions::from_mode(mode);
    // chmod(2) takes no such descriptor, and the path may lead to another file by now.
    match fs::set_permissions(format!("/proc/self/fd/{}", node.as_raw_fd()), mode.clone()) {
        // There is no /proc.
        Err(error) if error.kind() == ErrorKind::NotFound => fs::set_permissions(path, mode),
        result => result,
    }
    .map_err(|error| told(path, "be given its mode", &error))?;
    Ok(true)
}

/// The same error, which says what of a file could not be done.
fn told(path: &Path, what: &str, error: &io::Error) -> io::Error {
    let number = error.raw_os_error().unwrap_or(libc::EINVAL);
    let reason = nix::errno::Errno::from_raw(number).desc();
    let text = format!("{} can't {what}: {reason}", path.display());
    io::Error::new(error.kind(), text)
}

/// Gives the file of a unix socket the owner and the mode that a new one would have; one that we have not made keeps its
/// owner where none is asked for.
pub(super) fn adjust_node(
    path: &Path,
    listen: &Listen<'_>,
    file: Option<FileId>,
) -> io::Result<()> {
    let (mut uid, mut gid) = (listen.uid, listen.gid);
    if file.is_some() {
        uid = uid.or_else(|| Some(geteuid().as_raw()));
        gid = gid.or_else(|| group_of_new_files(path));
    }
    let mode = listen.mode.unwrap_or(0o666 & !listen.umask.unwrap_or(0)) & 0o777;
    match set_access(path, file, (uid, gid), mode)? {
        true => Ok(()),
        false => Err(io::Error::other(
            "somebody has put another file in its place",
        )),
    }
}

/// The group of what this process makes in the folder of `path`.
fn group_of_new_files(path: &Path) -> Option<u32> {
    let folder = path.parent()?.metadata().ok()?;
    let is_inherited = folder.mode() & libc::S_ISGID != 0;
    Some(if is_inherited {
        folder.gid()
    } else {
        getegid().as_raw()
    })
}
