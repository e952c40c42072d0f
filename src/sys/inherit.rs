//! Descriptors that were given to this process when it was started; sockets by the protocol of sd_listen_fds(3).

use super::process::Pid;
use super::unix;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor of the protocol (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;

/// Takes the descriptors that were meant for this process, each with its name (`unknown` where it has none). A second call
/// finds nothing.
pub fn listen_fds() -> Vec<(OwnedFd, String)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name: &str| std::env::var(name).ok();
    let for_us =
        variable("LISTEN_PID").and_then(|pid| pid.parse().ok()) == Some(Pid::own().as_raw());
    let count: RawFd = variable("LISTEN_FDS")
        .and_then(|count| count.parse().ok())
        .unwrap_or(0);
    if !for_us || count <= 0 || TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    named(count, &names)
        // SAFETY: F_GETFD takes no pointers and changes nothing.
        .filter(|(number, _)| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0)
        .map(|(number, name)| {
            // SAFETY: it is open, our parent gave it to us by the protocol, and it is taken once.
            (unsafe { OwnedFd::from_raw_fd(number) }, name.to_owned())
        })
        .collect()
}

/// The descriptors of the protocol and their names: one that is not open has its name all the same.
fn named(count: RawFd, names: &str) -> impl Iterator<Item = (RawFd, &str)> {
    let mut names = names.split(':');
    (FIRST..FIRST.saturating_add(count)).map(move |number| {
        let name = names.next().filter(|name| !name.is_empty());
        (number, name.unwrap_or("unknown"))
    })
}

/// Takes a descriptor by its number, which this program was told of by the one that has executed it; CLOEXEC from now on.
/// `None` if it is not open, or one of the standard ones. Each may be taken once.
pub fn take(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_SETFD takes no pointers, and fails for what is not open.
    if number <= 2 || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: it is open, and our former self gave it to us.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Lets a descriptor survive the next exec, or not.
pub fn set_inheritable(fd: BorrowedFd<'_>, inheritable: bool) -> std::io::Result<()> {
    let flags = if inheritable { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: F_SETFD takes no pointers.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, flags) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Takes the socket whose number an environment variable holds, if it is what [`unix::message_pair`] makes and this
/// process's parent made it; CLOEXEC from now on. A second call finds nothing.
pub fn message_socket(variable: &str) -> Option<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number: RawFd = std::env::var(variable).ok()?.parse().ok()?;
    // SAFETY: F_GETFD takes no pointers and changes nothing.
    if number <= 2 || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: it is open, and nothing closes it before this function ends.
    let socket = unsafe { BorrowedFd::borrow_raw(number) };
    let parent = nix::unistd::getppid().as_raw();
    let by_parent = unix::peer(socket).is_ok_and(|peer| peer.pid == Pid::new(parent));
    if !by_parent || !unix::is_message_socket(socket) || TAKEN.swap(true, Ordering::SeqCst) {
        return None;
    }
    // SAFETY: our parent gave it to us by this number, and it is taken once.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: F_SETFD takes no pointers. It can't fail for an open descriptor.
    unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_descriptor_has_the_name_of_its_place() {
        let named: Vec<_> = named(4, "a::c").collect();
        assert_eq!(named, [(3, "a"), (4, "unknown"), (5, "c"), (6, "unknown")]);
    }
}
