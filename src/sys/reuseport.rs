//! Which sockets of an SO_REUSEPORT group the kernel chooses from.
//!
//! Without a program it spreads connections over all of the group by a hash of both addresses. A shard that is to be
//! drained must get no new ones: a small classic BPF program then picks one of the others at random.

use super::insert_in_order;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The kernel refuses longer programs (BPF_MAXINSNS).
const LONGEST_PROGRAM: usize = 4096;

/// From now on new connections (or datagrams) of the group that `fd` is in go to those sockets alone whose places are
/// in `live`, each as often as the others.
///
/// A place counts from 0 in the order in which the sockets joined the group: that of listen(2) for streams, of bind(2)
/// for datagrams. When one is closed, the last one of the group moves to its place, so the program has to be set anew.
/// Fails with EINVAL where none is live or they are too many (thousands, with gaps).
pub fn choose_among(fd: BorrowedFd<'_>, live: &[u32]) -> io::Result<()> {
    let program = program(live).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let length =
        u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut(),
    };
    set_option(fd, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// From now on the kernel chooses from all of the group again.
pub fn choose_all(fd: BorrowedFd<'_>) -> io::Result<()> {
    match set_option(fd, libc::SO_DETACH_REUSEPORT_BPF, &0 as &libc::c_int) {
        // There was no program.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// Draws x below the number of live places, and returns the x-th of them. Neighbours share their instructions:
/// `if x < end of this run: return x + (first place of the run - x of its first)`.
fn program(places: &[u32]) -> Option<Vec<libc::sock_filter>> {
    let mut live = Vec::with_capacity(places.len());
    places.iter().for_each(|it| insert_in_order(&mut live, *it));
    let count = u32::try_from(live.len()).ok().filter(|&count| count > 0)?;

    let instruction = |code: u32, k: u32, jump_if_not: u8| {
        // Every code is below 256.
        libc::sock_filter {
            code: code as u16,
            jt: 0,
            jf: jump_if_not,
            k,
        }
    };
    // A negative offset, in two's complement, means data of the kernel's own.
    let random = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;
    let mut program = vec![
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, random, 0),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count, 0),
    ];
    let mut drawn = 0;
    for run in live.chunk_by(|place, next| place + 1 == *next) {
        let end = drawn + run.len() as u32;
        // There is no "less than": jump over the two when x is at least `end`.
        program.push(libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16,
            jt: 2,
            jf: 0,
            k: end,
        });
        program.push(instruction(
            libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K,
            run[0].wrapping_sub(drawn),
            0,
        ));
        program.push(instruction(libc::BPF_RET | libc::BPF_A, 0, 0));
        drawn = end;
    }
    // x is below `count`, so this is never reached; the kernel wants a return at the end.
    program.push(instruction(libc::BPF_RET | libc::BPF_K, live[0], 0));
    (program.len() <= LONGEST_PROGRAM).then_some(program)
}

/// Sets an option of SOL_SOCKET.
pub(super) fn set_option<T>(fd: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    let (value, length) = (
        std::ptr::from_ref(value).cast(),
        size_of::<T>() as libc::socklen_t,
    );
    // SAFETY: the value, and the program that it may lead to, outlive the call; the kernel copies and checks them.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, value, length) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use socket2::{Domain, Socket, Type};
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;

    fn group(size: usize, kind: Type) -> (Vec<Socket>, SocketAddr) {
        let mut address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut sockets = Vec::new();
        for _ in 0..size {
            let socket = Socket::new(Domain::IPV4, kind, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&address.into()).unwrap();
            if kind == Type::STREAM {
                socket.listen(1024).unwrap();
            }
            socket.set_nonblocking(true).unwrap();
            address = socket.local_addr().unwrap().as_socket().unwrap();
            sockets.push(socket);
        }
        (sockets, address)
    }

    /// How many of 200 new connections each listener got.
    fn connections(sockets: &[Socket], address: SocketAddr) -> Vec<usize> {
        let clients: Vec<TcpStream> = (0..200)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let counts = sockets.iter().map(|socket| {
            let listener = TcpListener::from(socket.try_clone().unwrap());
            std::iter::from_fn(|| listener.accept().ok()).count()
        });
        let counts: Vec<usize> = counts.collect();
        assert_eq!(counts.iter().sum::<usize>(), clients.len());
        counts
    }

    #[test]
    fn connections_go_to_live_shards_alone() {
        let (sockets, address) = group(5, Type::STREAM);
        assert!(
            connections(&sockets, address)
                .iter()
                .all(|&count| count > 0)
        );
        choose_among(sockets[0].as_fd(), &[3, 1, 4]).unwrap();
        let counts = connections(&sockets, address);
        assert_eq!((counts[0], counts[2]), (0, 0), "{counts:?}");
        assert!(
            counts[1] > 20 && counts[3] > 20 && counts[4] > 20,
            "{counts:?}"
        );
        choose_among(sockets[4].as_fd(), &[2]).unwrap();
        assert_eq!(connections(&sockets, address), [0, 0, 200, 0, 0]);
        choose_all(sockets[1].as_fd()).unwrap();
        choose_all(sockets[1].as_fd()).unwrap();
        assert!(
            connections(&sockets, address)
                .iter()
                .all(|&count| count > 0)
        );
    }

    #[test]
    fn the_last_shard_takes_the_place_of_one_that_was_closed() {
        let (mut sockets, address) = group(4, Type::STREAM);
        choose_among(sockets[0].as_fd(), &[0, 2, 3]).unwrap();
        drop(sockets.swap_remove(1));
        choose_among(sockets[0].as_fd(), &[1]).unwrap();
        assert_eq!(connections(&sockets, address), [0, 200, 0]);
    }

    #[test]
    fn datagrams_go_to_live_shards_alone() {
        let (sockets, address) = group(3, Type::DGRAM);
        choose_among(sockets[0].as_fd(), &[0, 2]).unwrap();
        for _ in 0..100 {
            UdpSocket::bind("127.0.0.1:0")
                .unwrap()
                .send_to(b"x", address)
                .unwrap();
        }
        let counts: Vec<usize> = sockets
            .into_iter()
            .map(|socket| {
                let socket = UdpSocket::from(socket);
                std::iter::from_fn(|| socket.recv(&mut [0; 8]).ok()).count()
            })
            .collect();
        assert_eq!((counts[0] + counts[2], counts[1]), (100, 0), "{counts:?}");
    }

    #[test]
    fn no_live_shard_or_no_group_is_refused() {
        let (sockets, _) = group(2, Type::STREAM);
        assert_eq!(
            choose_among(sockets[0].as_fd(), &[])
                .unwrap_err()
                .raw_os_error(),
            Some(libc::EINVAL)
        );
        let every_other: Vec<u32> = (0..4000).map(|index| index * 2).collect();
        assert_eq!(
            choose_among(sockets[0].as_fd(), &every_other)
                .unwrap_err()
                .raw_os_error(),
            Some(libc::EINVAL)
        );
        let all: Vec<u32> = (0..4000).collect();
        choose_among(sockets[0].as_fd(), &all).unwrap();
        let alone = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(choose_among(alone.as_fd(), &[0]).is_err());
    }

    /// What the kernel would return for a number drawn.
    fn run(program: &[libc::sock_filter], random: u32) -> u32 {
        let (mut a, mut next) = (random, 1);
        loop {
            let step = program[next];
            next += 1;
            let code = u32::from(step.code);
            if code == libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K {
                a %= step.k;
            } else if code == libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K {
                a = a.wrapping_add(step.k);
            } else if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K {
                next += usize::from(if a >= step.k { step.jt } else { step.jf });
            } else if code == libc::BPF_RET | libc::BPF_A {
                return a;
            } else {
                assert_eq!(code, libc::BPF_RET | libc::BPF_K);
                panic!("the last instruction is never reached");
            }
        }
    }

    proptest! {
        #[test]
        fn every_live_place_is_drawn_equally_often(live in proptest::collection::btree_set(0..60u32, 1..40)) {
            let live: Vec<u32> = live.into_iter().collect();
            let program = program(&live).unwrap();
            let drawn: Vec<u32> = (0..live.len() as u32).map(|random| run(&program, random)).collect();
            prop_assert_eq!(&drawn, &live);
            prop_assert!(live.contains(&run(&program, u32::MAX)));
        }
    }
}
