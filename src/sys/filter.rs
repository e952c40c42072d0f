//! Which packets the kernel lets through to a listener.

use super::reuseport::set_option;
use std::io;
use std::os::fd::BorrowedFd;

/// From now on nobody new connects to a TCP listener: it does not hear who asks. Those who are in its queue, or about to be,
/// are not touched, and are accepted as before.
pub fn turn_away(fd: BorrowedFd<'_>) -> io::Result<()> {
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let instruction = |code: u32, k: u32, jump_if_not: u8| {
        // Every code is below 256.
        libc::sock_filter {
            code: code as u16,
            jt: 0,
            jf: jump_if_not,
            k,
        }
    };
    // What the program sees begins with the TCP header. Dropped is what begins a connection, and nothing else.
    let program = [
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, FLAGS, 0),
        instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, SYN | ACK, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, SYN, 1),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, u32::MAX, 0),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    set_option(fd, libc::SO_ATTACH_FILTER, &program)
}

/// It hears everybody again.
pub fn let_in(fd: BorrowedFd<'_>) -> io::Result<()> {
    match set_option(fd, libc::SO_DETACH_FILTER, &0 as &libc::c_int) {
        // There was no program.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::time::Duration;

    #[test]
    fn who_waits_is_served_and_who_comes_is_turned_away() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut early = TcpStream::connect(address).unwrap();
        turn_away(listener.as_fd()).unwrap();
        let late = TcpStream::connect_timeout(&address, Duration::from_millis(200));
        assert!(late.is_err());
        let (mut served, _) = listener.accept().unwrap();
        early.write_all(b"x").unwrap();
        served.read_exact(&mut [0]).unwrap();
        let_in(listener.as_fd()).unwrap();
        let_in(listener.as_fd()).unwrap();
        TcpStream::connect(address).unwrap();
    }
}
