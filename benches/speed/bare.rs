//! The other side of each comparison, and the worker of both: a static program of a few system calls.
//!
//! The benchmarks compile it themselves (it is no target of the package, since it has neither a standard library nor
//! a start-up worth measuring): what is measured against it is measured against next to nothing.
//!
//! | verb | does |
//! | --- | --- |
//! | `mark` | the worker: writes when it began and who it is to stdout, then waits to be killed |
//! | `once` | the worker on demand: accepts on fd 3, sends one byte, exits |
//! | `start N` | the same mark, then starts N `mark`s |
//! | `respawn` | starts a `mark`, and another one whenever it ends |
//! | `ondemand IP PORT` | listens, and starts `once` for each connection, with the listener as fd 3 |
//! | `listen IP PORT N` | listens on N ports |

#![no_std]
#![no_main]

use core::ffi::{c_char, c_int, c_long, c_short, c_void};
use core::ptr::{null, null_mut};

#[repr(C)]
struct Timespec {
    seconds: c_long,
    nanoseconds: c_long,
}

#[repr(C)]
struct Mark {
    nanoseconds: u64,
    pid: u64,
}

#[repr(C)]
struct SockaddrIn {
    family: u16,
    port: u16,
    address: u32,
    padding: [u8; 8],
}

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: c_short,
    revents: c_short,
}

const CLOCK_MONOTONIC: c_int = 1;
const PR_SET_PDEATHSIG: c_int = 1;
const SIGKILL: c_long = 9;
const SIGCHLD: c_int = 17;
const CLONE_VM: c_int = 0x100;
const CLONE_VFORK: c_int = 0x4000;
const AF_INET: c_int = 2;
const SOCK_STREAM: c_int = 1;
const POLLIN: c_short = 1;

unsafe extern "C" {
    static environ: *const *const c_char;
    fn _exit(code: c_int) -> !;
    fn accept(fd: c_int, address: *mut c_void, length: *mut u32) -> c_int;
    fn bind(fd: c_int, address: *const SockaddrIn, length: u32) -> c_int;
    fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
    fn clone(
        run: extern "C" fn(*mut c_void) -> c_int,
        stack: *mut c_void,
        flags: c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn execve(path: *const c_char, argv: *const *const c_char, env: *const *const c_char) -> c_int;
    fn getpid() -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn pause() -> c_int;
    fn poll(fds: *mut PollFd, count: u64, timeout: c_int) -> c_int;
    fn prctl(option: c_int, argument: c_long) -> c_int;
    fn setsid() -> c_int;
    fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn write(fd: c_int, bytes: *const c_void, length: usize) -> isize;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe { _exit(101) }
}

type Args = *const *const c_char;

#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, args: Args) -> c_int {
    // The benchmarks give each verb the arguments that it takes.
    unsafe {
        match **args.add(1) as u8 {
            b'm' => mark_and_wait(),
            b's' => start(args),
            b'r' => respawn(args),
            b'l' => listen_many(args),
            b'o' if *(*args.add(1)).add(2) as u8 == b'c' => once(),
            b'o' => on_demand(args),
            _ => 2,
        }
    }
}

unsafe fn mark(ends_with_parent: bool) {
    let mut time = Timespec {
        seconds: 0,
        nanoseconds: 0,
    };
    unsafe {
        clock_gettime(CLOCK_MONOTONIC, &mut time);
        let mark = Mark {
            nanoseconds: time.seconds as u64 * 1_000_000_000 + time.nanoseconds as u64,
            pid: getpid() as u64,
        };
        if ends_with_parent {
            // Nothing is left behind, whatever becomes of the parent: who reads the mark can rely on it.
            prctl(PR_SET_PDEATHSIG, SIGKILL);
        }
        write(1, (&raw const mark).cast(), size_of::<Mark>());
    }
}

unsafe fn mark_and_wait() -> c_int {
    unsafe {
        mark(true);
        loop {
            pause();
        }
    }
}

unsafe fn once() -> c_int {
    unsafe {
        let connection = accept(3, null_mut(), null_mut());
        write(connection, c"x".as_ptr().cast(), 1);
        _exit(0)
    }
}

unsafe fn start(args: Args) -> c_int {
    unsafe {
        mark(false);
        for _ in 0..number(*args.add(2)) {
            spawn(*args, c"mark".as_ptr(), -1);
        }
        loop {
            pause();
        }
    }
}

unsafe fn respawn(args: Args) -> c_int {
    unsafe {
        loop {
            spawn(*args, c"mark".as_ptr(), -1);
            waitpid(-1, null_mut(), 0);
        }
    }
}

unsafe fn on_demand(args: Args) -> c_int {
    unsafe {
        let listener = listener(number(*args.add(2)), number(*args.add(3)));
        loop {
            let mut ready = PollFd {
                fd: listener,
                events: POLLIN,
                revents: 0,
            };
            poll(&mut ready, 1, -1);
            spawn(*args, c"once".as_ptr(), listener);
            waitpid(-1, null_mut(), 0);
        }
    }
}

unsafe fn listen_many(args: Args) -> c_int {
    unsafe {
        let (address, port) = (number(*args.add(2)), number(*args.add(3)));
        for index in 0..number(*args.add(4)) {
            listener(address, port + index);
        }
        loop {
            pause();
        }
    }
}

unsafe fn listener(address: u32, port: u32) -> c_int {
    let address = SockaddrIn {
        family: AF_INET as u16,
        port: (port as u16).to_be(),
        address: address.to_be(),
        padding: [0; 8],
    };
    unsafe {
        let fd = socket(AF_INET, SOCK_STREAM, 0);
        let bound = bind(fd, &address, size_of::<SockaddrIn>() as u32);
        if bound != 0 || listen(fd, 4096) != 0 {
            _exit(1);
        }
        fd
    }
}

struct Job {
    path: *const c_char,
    argv: [*const c_char; 3],
    listener: c_int,
}

#[repr(align(16))]
struct Stack {
    _bytes: [u8; 16384],
}

unsafe fn spawn(path: *const c_char, verb: *const c_char, listener: c_int) {
    let mut stack = core::mem::MaybeUninit::<Stack>::uninit();
    let mut job = Job {
        path,
        argv: [path, verb, null()],
        listener,
    };
    unsafe {
        let top = stack.as_mut_ptr().add(1).cast();
        let flags = CLONE_VM | CLONE_VFORK | SIGCHLD;
        clone(begin, top, flags, (&raw mut job).cast());
    }
}

extern "C" fn begin(job: *mut c_void) -> c_int {
    unsafe {
        let job = &*job.cast::<Job>();
        setsid();
        if job.listener > 3 {
            dup2(job.listener, 3);
        }
        execve(job.path, job.argv.as_ptr(), environ);
        _exit(127)
    }
}

unsafe fn number(text: *const c_char) -> u32 {
    let mut number = 0u32;
    let mut at = text;
    unsafe {
        while (*at as u8).is_ascii_digit() {
            number = number
                .wrapping_mul(10)
                .wrapping_add(u32::from(*at as u8 - b'0'));
            at = at.add(1);
        }
    }
    number
}
