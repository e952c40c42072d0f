//! Host names, looked up by a process of their own.
//!
//! The C library's resolver waits for name servers, ten seconds and more for those that do not answer, and can do nothing
//! else meanwhile. So a child does that, and writes what it has learned into a pipe. The kernel ends it when its time is
//! over, or when its parent has ended; the pipe is empty then.

use super::fork::{self, Side};
use super::process::Pid;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::pipe2;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

/// No lookup takes longer.
pub const LONGEST: Duration = Duration::from_secs(10);

/// So many addresses of a name are of use.
const MOST_ADDRESSES: usize = 64;

/// What begins an answer.
const FOUND: &str = "found";
const FAILED: &str = "failed";

/// The addresses of a name, without a port, in the order in which they are to be tried; or why there are none.
pub type Found = Result<Vec<SocketAddr>, String>;

/// A name that is being looked up.
#[derive(Debug)]
pub struct Lookup {
    pipe: File,
    answer: Vec<u8>,
}

impl Lookup {
    /// Makes the child. Whoever reaps this process's children reaps it too.
    pub fn begin(name: &str) -> io::Result<Lookup> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let parent = Pid::own();
        match fork::fork()? {
            Side::Parent(_) => Ok(Lookup {
                pipe: read.into(),
                answer: Vec::new(),
            }),
            Side::Child => fork::leave_for(&[write.as_raw_fd()], || {
                limit_life(parent);
                // What does not fit into an empty pipe is longer than any answer.
                let told = File::from(write).write_all(look_up(name).as_bytes());
                i32::from(told.is_err())
            }),
        }
    }

    /// What has come of it; `None` as long as there is nothing.
    pub fn outcome(&mut self) -> Option<Found> {
        match self.pipe.read_to_end(&mut self.answer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(Err(error.to_string())),
            Ok(_) => Some(read_answer(&String::from_utf8_lossy(&self.answer))),
        }
    }
}

impl AsFd for Lookup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Has the kernel end this process in time.
fn limit_life(parent: Pid) {
    // SAFETY: neither takes pointers, and the default action of SIGALRM runs no code of ours.
    unsafe {
        libc::signal(libc::SIGALRM, libc::SIG_DFL);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::alarm(LONGEST.as_secs() as libc::c_uint);
    }
    // It can't fail for a signal that there is.
    let _ = SigSet::from(Signal::SIGALRM).thread_unblock();
    if nix::unistd::getppid().as_raw() != parent.as_raw() {
        // It has ended before it was to be told.
        std::process::exit(1);
    }
}

fn look_up(name: &str) -> String {
    let found = (name, 0).to_socket_addrs().map_err(|error| {
        let text = error.to_string();
        text.rsplit_once(": ")
            .map_or(text.clone(), |(_, reason)| reason.into())
    });
    write_answer(found.map(|found| found.take(MOST_ADDRESSES).collect()))
}

fn write_answer(found: Found) -> String {
    let (first, lines) = match found {
        Ok(addresses) => (FOUND, addresses.iter().map(SocketAddr::to_string).collect()),
        Err(reason) => (FAILED, vec![reason]),
    };
    format!("{first}\n{}\n", lines.join("\n"))
}

fn read_answer(answer: &str) -> Found {
    match answer.split_once('\n') {
        Some((FOUND, addresses)) => Ok(addresses
            .lines()
            .filter_map(|address| address.parse().ok())
            .collect()),
        Some((FAILED, reason)) => Err(reason.trim_end().to_owned()),
        Some(_) | None => Err(format!("there was no answer within {LONGEST:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_out_of_the_pipe_as_it_went_in() {
        let addresses = ["127.0.0.1:0", "[::1]:0", "[fe80::1%2]:0"];
        let found: Found = Ok(addresses.map(|text| text.parse().unwrap()).to_vec());
        for found in [
            found,
            Ok(Vec::new()),
            Err("Name or service not known".into()),
        ] {
            assert_eq!(read_answer(&write_answer(found.clone())), found);
        }
    }

    #[test]
    fn a_child_that_was_killed_has_not_answered() {
        for text in ["", "fou"] {
            let reason = read_answer(text).unwrap_err();
            assert_eq!(reason, "there was no answer within 10s");
        }
    }
}
