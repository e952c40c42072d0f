//! One message of a socket, with everything that came along: recvmsg(2).

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The most descriptors that the kernel lets one message carry (SCM_MAX_FD).
pub(super) const MOST_FDS: usize = 253;

/// A message as the kernel hands it out; its text is in the caller's buffer.
pub(super) struct Message {
    /// In bytes; with MSG_TRUNC that of the whole message, which may be longer than the buffer.
    pub length: usize,
    /// Of the sender, where SO_PASSCRED asks for them.
    pub credentials: Option<libc::ucred>,
    /// The descriptors that came along, CLOEXEC.
    pub fds: Vec<OwnedFd>,
    /// The text was longer than the buffer, or not everything that came along could be taken.
    pub truncated: bool,
}

/// Receives one message, or fails as recvmsg(2) does, but for EINTR.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: libc::c_int,
) -> io::Result<Message> {
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut control = ControlBuffer {
        bytes: [0; CONTROL_BYTES],
    };
    // SAFETY: all-zero is a valid value of this structure, which has private padding with some C libraries.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control.bytes).cast();
    header.msg_controllen = CONTROL_BYTES as _;
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    let length = loop {
        // SAFETY: the header leads to buffers of the lengths that it gives, which outlive the call.
        match unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, flags) } {
            -1 => {}
            length => break length as usize,
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    // SAFETY: the kernel has just filled it.
    let (credentials, fds) = unsafe { take_control(&header) };
    Ok(Message {
        length,
        credentials,
        fds,
        truncated: header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
    })
}

// SAFETY: a computation without side effects.
const CONTROL_BYTES: usize = unsafe {
    libc::CMSG_SPACE(size_of::<libc::ucred>() as u32)
        + libc::CMSG_SPACE((MOST_FDS * size_of::<libc::c_int>()) as u32)
} as usize;

/// Aligned for the headers that the kernel writes into it.
#[repr(C, align(8))]
struct ControlBuffer {
    bytes: [u8; CONTROL_BYTES],
}

/// The credentials of a received message, and every descriptor that came with it.
///
/// # Safety
///
/// `header` must have been filled by a successful recvmsg with room for control messages, and its descriptors not taken
/// before.
unsafe fn take_control(header: &libc::msghdr) -> (Option<libc::ucred>, Vec<OwnedFd>) {
    let (mut credentials, mut fds) = (None, Vec::new());
    // SAFETY: the caller's promise; the same holds for the walk below, which stays within the control buffer.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: not null, so a whole header within the buffer, which is aligned for it.
        let message = unsafe { *next };
        // SAFETY: as above; only the address is computed.
        let data = unsafe { libc::CMSG_DATA(next) };
        let bytes = (message.cmsg_len as usize).saturating_sub(data.addr() - next.addr());
        match (message.cmsg_level, message.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if bytes >= size_of::<libc::ucred>() => {
                // SAFETY: that many bytes are there, of a plain structure.
                credentials = Some(unsafe { data.cast::<libc::ucred>().read_unaligned() });
            }
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for index in 0..bytes / size_of::<libc::c_int>() {
                    // SAFETY: that many numbers are there, each a new descriptor that nobody else owns.
                    fds.push(unsafe {
                        OwnedFd::from_raw_fd(data.cast::<libc::c_int>().add(index).read_unaligned())
                    });
                }
            }
            _ => {}
        }
        // SAFETY: as for the first.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    (credentials, fds)
}
