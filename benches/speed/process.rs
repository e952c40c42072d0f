//! Processes of a benchmark: started with the time of their exec, told apart by their marks, ended without a trace.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Whatever a benchmark waits for comes within this, or never.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Room for the marks of 10,000 workers, so that none of them waits for us.
const PIPE_BYTES: libc::c_int = 1 << 20;

/// The clock of the marks, in nanoseconds.
pub fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes to a structure of this frame.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What a worker writes as the first thing it does.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub at: u64,
    pub pid: i32,
}

/// A running program, whose standard output is the pipe of its marks. Dropping it ends it.
pub struct Running {
    child: Child,
    marks: PipeReader,
    /// When it was exec'd.
    pub began: u64,
    end_by: libc::c_int,
}

impl Running {
    /// Starts a program. `end_by` is the signal at which it ends with everything that it has started.
    pub fn start(command: &mut Command, stderr: File, end_by: libc::c_int) -> Result<Running> {
        let (marks, stdout) = std::io::pipe()?;
        // SAFETY: plain calls on a descriptor of ours.
        unsafe {
            libc::fcntl(marks.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES);
            libc::fcntl(marks.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK);
        }
        let began = shared_clock()?;
        // SAFETY: the closure makes two system calls and writes to a shared mapping.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, end_by);
                began.store(now(), Ordering::Relaxed);
                Ok(())
            });
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        // The command holds the writing end until it is set anew.
        command.stdout(Stdio::null());
        Ok(Running {
            child,
            marks,
            began: began.load(Ordering::Relaxed),
            end_by,
        })
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits for so many marks. They carry their time, so being late here costs nothing but patience.
    pub fn marks(&mut self, count: usize) -> Result<Vec<Mark>> {
        let mut bytes = vec![0; count * 16];
        let mut filled = 0;
        let deadline = Instant::now() + DEADLINE;
        while filled < bytes.len() {
            match self.marks.read(&mut bytes[filled..]) {
                Ok(0) => bail!("it ended after {} of {count} marks", filled / 16),
                Ok(more) => filled += more,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if Instant::now() > deadline {
                        bail!("{} of {count} marks came in time", filled / 16);
                    }
                    std::thread::sleep(Duration::from_micros(300));
                }
                Err(error) => return Err(error).context("read the marks"),
            }
        }
        let number = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        let marks = bytes.chunks(16).map(|mark| Mark {
            at: number(&mark[..8]),
            pid: number(&mark[8..]) as i32,
        });
        Ok(marks.collect())
    }

    /// When the last of so many marks was made.
    pub fn last_mark(&mut self, count: usize) -> Result<u64> {
        Ok(self
            .marks(count)?
            .iter()
            .map(|mark| mark.at)
            .max()
            .unwrap_or(0))
    }

    /// Asks it to end; the answer is what it has had of the processors by then, in nanoseconds.
    pub fn end(&mut self) -> Result<u64> {
        kill(self.pid(), self.end_by);
        self.await_end(DEADLINE)?;
        let (ran, _) = activity(self.pid())?;
        self.child.wait()?;
        Ok(ran)
    }

    fn await_end(&self, patience: Duration) -> Result<()> {
        // SAFETY: takes no pointers.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid(), 0) } as libc::c_int;
        let mut ended = libc::pollfd {
            fd: pidfd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure of this frame; the descriptor is ours.
        let count = unsafe {
            let count = libc::poll(&mut ended, 1, patience.as_millis() as libc::c_int);
            libc::close(pidfd);
            count
        };
        if count != 1 {
            bail!("pid {} does not end", self.pid());
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        kill(self.pid(), self.end_by);
        if self.await_end(Duration::from_secs(20)).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Nanoseconds that a process has had of the processors, and how often it was put on one. Its children are not in it.
pub fn activity(pid: i32) -> Result<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let numbers: Vec<u64> = text
        .split_whitespace()
        .map_while(|number| number.parse().ok())
        .collect();
    let &[ran, _waited, times] = numbers.as_slice() else {
        bail!("schedstat is {text:?}");
    };
    Ok((ran, times))
}

pub fn kill(pid: i32, signal: libc::c_int) {
    // SAFETY: takes no pointers.
    unsafe { libc::kill(pid, signal) };
}

/// Memory that is shared with children, in which one leaves a time. One is started after the other, so one is enough.
fn shared_clock() -> Result<&'static AtomicU64> {
    static CLOCK: OnceLock<&AtomicU64> = OnceLock::new();
    if let Some(clock) = CLOCK.get() {
        return Ok(clock);
    }
    // SAFETY: a new mapping at a place of the kernel's choice.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<AtomicU64>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).context("map a page");
    }
    // SAFETY: it stays mapped for ever, and zero is a valid value.
    Ok(CLOCK.get_or_init(|| unsafe { &*at.cast() }))
}

/// Compiles `bare.rs`: static where the machine has what that needs.
pub fn compile_bare(dir: &Path) -> Result<std::path::PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/speed/bare.rs");
    let archive = dir.join("libbare.a");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    run(Command::new(rustc)
        .args([
            "--edition=2024",
            "-O",
            "-Cpanic=abort",
            "--crate-type=staticlib",
            "-o",
        ])
        .arg(&archive)
        .arg(source))?;
    let program = dir.join("bare");
    let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let link = |how: &[&str]| {
        run(Command::new(&cc)
            .args(how)
            .arg("-o")
            .arg(&program)
            .arg(&archive))
    };
    link(&["-static"]).or_else(|_| link(&[]))?;
    Ok(program)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(())
}
