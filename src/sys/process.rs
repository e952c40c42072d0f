//! Processes: their ids, signals, exits and relations, and what the manager sets for itself.

use super::check;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// A process id, or the id of a process group or session; always positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(i32);

impl Pid {
    /// The process id `number`; `None` if it is not positive (kill(2) gives 0 and negative numbers other meanings).
    pub fn new(number: i32) -> Option<Pid> {
        (number > 0).then_some(Pid(number))
    }

    /// This process.
    pub fn own() -> Pid {
        // SAFETY: takes nothing, can't fail.
        Pid(unsafe { libc::getpid() })
    }

    /// The number.
    pub fn as_raw(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It called exit with this status, 0 to 255.
    Code(i32),
    /// A signal ended it.
    Signal {
        /// Which one.
        signal: i32,
        /// Whether it left a core dump.
        core: bool,
    },
}

/// Sends `signal` to a process; 0 only asks whether it exists.
pub fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::kill(pid.0, signal) }).map(drop)
}

/// Sends `signal` to every process of a group. Group 1 is refused with EINVAL: -1 means *every process* to kill(2).
pub fn kill_group(group: Pid, signal: i32) -> io::Result<()> {
    if group.0 == 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: takes no pointers.
    check(unsafe { libc::kill(-group.0, signal) }).map(drop)
}

/// Whether the group has a member. A zombie is one, so a group lives at least until its leader was reaped. Where it
/// can't be told (group 1), it has.
pub fn group_exists(group: Pid) -> bool {
    match kill_group(group, 0) {
        Ok(()) => true,
        Err(error) => error.raw_os_error() != Some(libc::ESRCH),
    }
}

/// Whether the group has a member that has not ended. Zombies that somebody else has to reap are told by /proc; without it
/// they count as alive.
pub fn group_lives(group: Pid) -> bool {
    if !group_exists(group) {
        return false;
    }
    if !is_zombie(group) {
        return true;
    }
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str().and_then(parse_pid));
    pids.any(|pid| group_of(pid).is_ok_and(|it| it == group) && !is_zombie(pid))
}

/// Sends `signal` to the process that `pidfd` refers to: never to another that has its number by now.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: no siginfo is given, so the kernel fills it as kill(2) does.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd,
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(result as i32).map(drop)
}

/// A descriptor of the process, readable when it has ended; CLOEXEC.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, 0) } as i32)?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What no other process of this boot has, whatever its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Identity {
    /// The inode of its pidfd, where those are never used twice (pidfs, Linux 6.9).
    Inode(u64),
    /// When it started, in the kernel's ticks.
    Start(u64),
    /// Nobody could tell.
    Unknown,
}

impl Identity {
    /// That of a process that is alive, or a zombie.
    pub fn of(pid: Pid, pidfd: impl AsFd, has_pidfd_ids: bool) -> Identity {
        let inode = has_pidfd_ids
            .then(|| nix::sys::stat::fstat(pidfd).ok())
            .flatten();
        match inode {
            Some(found) => Identity::Inode(found.st_ino),
            None => started_at(pid).map_or(Identity::Unknown, Identity::Start),
        }
    }

    /// A pidfd of the process that has this number, if it is the one that is meant.
    pub fn open(pid: Pid, identity: Option<Identity>) -> io::Result<Option<OwnedFd>> {
        let pidfd = match pidfd_open(pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_same = match identity {
            None | Some(Identity::Unknown) => true,
            Some(Identity::Inode(inode)) => nix::sys::stat::fstat(&pidfd)?.st_ino == inode,
            // Asked for after the pidfd was opened: what it says is of that process, or of none.
            Some(Identity::Start(start)) => started_at(pid).is_ok_and(|found| found == start),
        };
        Ok(is_same.then_some(pidfd))
    }
}

/// Some child that has ended, left as a zombie so that its pid stays taken; `None` if there is none. The same one is
/// seen again until it is [reaped](reap).
pub fn peek_exit() -> io::Result<Option<(Pid, Exit)>> {
    wait(libc::P_ALL, 0, libc::WNOHANG | libc::WNOWAIT)
}

/// Whether this process has a child, be it a zombie.
pub fn has_children() -> bool {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: nothing is asked for but whether there is anybody to wait for.
    check(unsafe { libc::waitid(libc::P_ALL, 0, std::ptr::null_mut(), flags) }).is_ok()
}

/// How the child `pid` ended, left as a zombie; `None` if it still runs. Fails with ECHILD if it is no child.
pub fn peek_exit_of(pid: Pid) -> io::Result<Option<Exit>> {
    match wait(libc::P_PID, pid.0, libc::WNOHANG | libc::WNOWAIT)? {
        Some((_, exit)) => Ok(Some(exit)),
        None => match kill(pid, 0) {
            Ok(()) => Ok(None),
            Err(_) => Err(io::Error::from_raw_os_error(libc::ECHILD)),
        },
    }
}

/// Takes the exit of the child `pid`, whose number may be used again from then on. Never blocks: fails with EAGAIN while
/// the child runs, with ECHILD if it is no child.
pub fn reap(pid: Pid) -> io::Result<Exit> {
    match wait(libc::P_PID, pid.0, libc::WNOHANG) {
        Ok(Some((_, exit))) => Ok(exit),
        Ok(None) => match kill(pid, 0) {
            Ok(()) => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            Err(_) => Err(io::Error::from_raw_os_error(libc::ECHILD)),
        },
        Err(error) => Err(error),
    }
}

/// `None` where nothing has ended; without any child as well.
pub(super) fn wait(kind: libc::idtype_t, id: i32, flags: i32) -> io::Result<Option<(Pid, Exit)>> {
    loop {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: `info` has room for the structure.
        let result = unsafe {
            libc::waitid(
                kind,
                id as libc::id_t,
                info.as_mut_ptr(),
                libc::WEXITED | flags,
            )
        };
        if let Err(error) = check(result) {
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::ECHILD) if kind == libc::P_ALL => return Ok(None),
                _ => return Err(error),
            }
        }
        // SAFETY: it was zeroed, which is a valid value, and the kernel may have written it since.
        let info = unsafe { info.assume_init() };
        // SAFETY: waitid(2) sets these fields, or leaves them 0 where nothing has ended.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        return Ok(Pid::new(pid).map(|pid| {
            let exit = match info.si_code {
                libc::CLD_EXITED => Exit::Code(status),
                code => Exit::Signal {
                    signal: status,
                    core: code == libc::CLD_DUMPED,
                },
            };
            (pid, exit)
        }));
    }
}

/// The process group of a process.
pub fn group_of(pid: Pid) -> io::Result<Pid> {
    // SAFETY: takes no pointers.
    id_or_foreign(check(unsafe { libc::getpgid(pid.0) })?)
}

/// The session of a process.
pub fn session_of(pid: Pid) -> io::Result<Pid> {
    // SAFETY: takes no pointers.
    id_or_foreign(check(unsafe { libc::getsid(pid.0) })?)
}

/// The kernel says 0 for a group or session whose leader is in an outer pid namespace.
fn id_or_foreign(id: i32) -> io::Result<Pid> {
    Pid::new(id).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// The manager's own direct children, zombies among them, in order of number. Needs /proc.
pub fn children() -> io::Result<Vec<Pid>> {
    children_of(Pid::own())
}

/// The direct children of a process, zombies among them, in order of number. Needs /proc.
pub fn children_of(pid: Pid) -> io::Result<Vec<Pid>> {
    match listed_children(pid) {
        Ok(children) => Ok(children),
        Err(_) => Ok(family_tree()?.remove(&pid).unwrap_or_default()),
    }
}

/// Whether a process is in the same control groups as we are, as far as that can be told. Needs /proc.
pub fn shares_cgroups(pid: Pid) -> bool {
    let of = |pid: Pid| fs::read(format!("/proc/{pid}/cgroup")).ok();
    of(pid) == of(Pid::own())
}

/// Our parent; `None` if it is in an outer pid namespace.
pub fn parent() -> Option<Pid> {
    Pid::new(nix::unistd::getppid().as_raw())
}

/// Every process below `pid`, zombies among them, parents before their children. Needs /proc. A process that forks or
/// ends at this moment may be missed, or its children, so who wants to end them all asks again until there are none.
pub fn descendants(pid: Pid) -> io::Result<Vec<Pid>> {
    let (mut children, mut tree) = match listed_children(pid) {
        Ok(children) => (children, None),
        Err(_) => (Vec::new(), Some(family_tree()?)),
    };
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([pid]);
    let mut next = 0;
    let mut of = pid;
    loop {
        if let Some(tree) = &mut tree {
            children = tree.remove(&of).unwrap_or_default();
        } else if of != pid {
            children = listed_children(of).unwrap_or_default();
        }
        // A tree that was read while it changed could have a cycle.
        found.extend(children.drain(..).filter(|&child| seen.insert(child)));
        let Some(&parent) = found.get(next) else {
            return Ok(found);
        };
        (of, next) = (parent, next + 1);
    }
}

/// By the kernel's own lists, one for each thread (CONFIG_PROC_CHILDREN).
///
/// While children end, a list may lack some of the others, says proc_pid_task_tid_children(5). So it is read until it is
/// the same twice, a few times at most, and what was seen at any time counts.
fn listed_children(pid: Pid) -> io::Result<Vec<Pid>> {
    const READS: usize = 4;
    let mut seen = Vec::new();
    let mut before = None;
    for _ in 0..READS {
        let mut now = Vec::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let list = fs::read_to_string(task?.path().join("children"))?;
            now.extend(list.split_ascii_whitespace().filter_map(parse_pid));
        }
        now.sort_unstable();
        if before.as_ref() == Some(&now) {
            break;
        }
        seen.extend_from_slice(&now);
        before = Some(now);
    }
    seen.sort_unstable();
    seen.dedup();
    Ok(seen)
}

/// Every process's children, in order of number.
fn family_tree() -> io::Result<BTreeMap<Pid, Vec<Pid>>> {
    let mut tree: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(parse_pid) else {
            continue;
        };
        if let Ok(parent) = parent_of(pid) {
            tree.entry(parent).or_default().push(pid);
        }
    }
    for children in tree.values_mut() {
        children.sort_unstable();
    }
    Ok(tree)
}

fn parse_pid(text: &str) -> Option<Pid> {
    text.parse().ok().and_then(Pid::new)
}

/// The parent of a process. Needs /proc. Fails with ESRCH for the topmost process of a pid namespace.
pub fn parent_of(pid: Pid) -> io::Result<Pid> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    let parent =
        parent_in_stat(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Pid::new(parent).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// The fourth field of proc_pid_stat(5). The second is the name in parentheses, which may itself hold blanks and
/// parentheses, so the fields are counted from the last parenthesis.
fn parent_in_stat(stat: &[u8]) -> Option<i32> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    std::str::from_utf8(stat.get(end + 1..)?)
        .ok()?
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// One of the fields of proc_pid_stat(5), which counts them from 1. Only those after the name can be asked for.
fn stat_field(pid: Pid, number: usize) -> io::Result<String> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    (field_in_stat(&stat, number).map(str::to_owned))
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn field_in_stat(stat: &[u8], number: usize) -> Option<&str> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)
}

/// When a process started, in ticks of CLOCK_BOOTTIME (proc_pid_stat(5)). Needs /proc.
pub fn started_at(pid: Pid) -> io::Result<u64> {
    stat_field(pid, 22)?
        .parse()
        .map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The same clock's present time: a process that is made from now on has started no earlier.
pub fn start_clock() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    // A tick is a hundredth of a second in all that the kernel tells; the call can't fail.
    now.map_or(0, |now| {
        let hundredths = now.tv_sec() * 100 + now.tv_nsec() / 10_000_000;
        u64::try_from(hundredths).unwrap_or(0)
    })
}

/// Whether a process has ended and was not reaped. Needs /proc; false without.
pub fn is_zombie(pid: Pid) -> bool {
    stat_field(pid, 3).is_ok_and(|state| state == "Z" || state == "X")
}

/// Whether a process is this very program. Needs /proc and the right to look; false without.
pub fn has_own_image(pid: Pid) -> bool {
    use std::os::unix::fs::MetadataExt;
    let image = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    match (image("/proc/self/exe"), image(&format!("/proc/{pid}/exe"))) {
        (Ok(own), Ok(other)) => own == other,
        _ => false,
    }
}

/// How a process ended that need not be our child. `pid` is its number, and `pidfd` is readable: it has ended. As long as
/// its parent has not reaped it, /proc tells (Linux 3.5); once it has, the pidfd does (6.15); else nobody does.
pub fn exit_of(pid: Pid, pidfd: impl AsFd) -> Option<Exit> {
    // In this order: if nobody had reaped it after it was looked at, what was seen was of this process.
    let seen = zombie_exit(pid);
    let is_there = || match pidfd_send_signal(&pidfd, 0) {
        Ok(()) => true,
        Err(error) => error.raw_os_error() != Some(libc::ESRCH),
    };
    told_exit(&pidfd).or_else(|| seen.filter(|_| is_there()))
}

/// How the zombie `pid` ended.
fn zombie_exit(pid: Pid) -> Option<Exit> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    if field_in_stat(&stat, 3)? != "Z" {
        return None;
    }
    let status = field_in_stat(&stat, 52)?.parse().ok()?;
    // The kernel says 0 to those who may not trace it, who may not read this either (proc(5)).
    let is_shown = status != 0 || fs::read_link(format!("/proc/{pid}/ns/user")).is_ok();
    is_shown.then(|| exit_in_status(status))
}

/// By the pidfd of a process that was reaped: PIDFD_GET_INFO.
fn told_exit(pidfd: impl AsFd) -> Option<Exit> {
    /// `struct pidfd_info` of linux/pidfd.h, in its first version.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const EXIT: u64 = 1 << 3;
    const SIZE: libc::Ioctl = size_of::<Info>() as libc::Ioctl;
    // _IOWR(0xff, 11, struct pidfd_info)
    const GET_INFO: libc::Ioctl = (3 << 30) | (SIZE << 16) | (0xff << 8) | 11;
    let mut info = Info {
        mask: EXIT,
        ..Info::default()
    };
    // SAFETY: `info` has the size that is part of the request's number, and the kernel writes no more.
    let result = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), GET_INFO, &raw mut info) };
    if result != 0 || info.mask & EXIT == 0 {
        return None;
    }
    Some(exit_in_status(info.exit_code))
}

/// What wait(2) says of a status.
fn exit_in_status(status: i32) -> Exit {
    if libc::WIFSIGNALED(status) {
        Exit::Signal {
            signal: libc::WTERMSIG(status),
            core: libc::WCOREDUMP(status),
        }
    } else {
        Exit::Code(libc::WEXITSTATUS(status))
    }
}

/// The name of a process (its `comm`), at most 15 bytes; `None` where it can't be read.
pub fn name_of(pid: Pid) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name = String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name)).into_owned();
    // A process names itself, and the name goes to terminals and logs.
    Some(
        name.chars()
            .map(|char| if char.is_control() { '?' } else { char })
            .collect(),
    )
}

/// The values of these variables in the environment that a process was started with, if it has all of them. Needs /proc
/// and the right to read that process; where that is missing, it has none. At most the first MiB is looked at. A process
/// in the middle of its exec has none for a moment, which a program just [spawned](super::spawn::Spawner::spawn) may be.
pub fn environ_of<const N: usize>(pid: Pid, names: [&str; N]) -> Option<[String; N]> {
    values_of(&environ(pid).ok()?, names)
}

fn values_of<const N: usize>(environment: &[u8], names: [&str; N]) -> Option<[String; N]> {
    let value = |name: &str| {
        let entry = environment.split(|byte| *byte == 0).find_map(|entry| {
            let rest = entry.strip_prefix(name.as_bytes())?;
            rest.strip_prefix(b"=")
        });
        entry.and_then(|value| String::from_utf8(value.to_vec()).ok())
    };
    let values: Vec<String> = names.iter().filter_map(|name| value(name)).collect();
    values.try_into().ok()
}

fn environ(pid: Pid) -> io::Result<Vec<u8>> {
    const LIMIT: u64 = 1 << 20;
    let mut text = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/environ"))?;
    file.take(LIMIT).read_to_end(&mut text)?;
    Ok(text)
}

/// Orphaned descendants become children of this process from now on.
pub fn set_subreaper() -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// The most descriptors that the manager asks for.
const MOST_FDS: u64 = 1 << 20;

/// The soft and the hard limit of open descriptors.
pub fn fd_limit() -> io::Result<(u64, u64)> {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: `limit` has room for the structure.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, limit.as_mut_ptr()) })?;
    // SAFETY: the call succeeded and has filled it.
    let limit = unsafe { limit.assume_init() };
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Raises the soft limit of open descriptors to the hard one, and as root both to what the kernel allows, up to 2^20.
/// Returns the original soft and hard limit, for the children, if they are others now; nothing is ever lowered.
pub fn raise_fd_limit() -> io::Result<Option<(u64, u64)>> {
    let (soft, hard) = fd_limit()?;

    // SAFETY: takes nothing, can't fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let allowed = if is_root && hard < MOST_FDS {
        kernel_fd_limit().min(MOST_FDS)
    } else {
        0
    };
    let set = |soft: u64, hard: u64| {
        let limit = libc::rlimit {
            rlim_cur: soft,
            rlim_max: hard,
        };
        // SAFETY: `limit` outlives the call.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })
    };
    // Root in a container may lack the capability to raise the hard limit; then the hard limit has to do.
    if allowed > hard && set(allowed, allowed).is_ok() {
        return Ok(Some((soft, hard)));
    }
    let wanted = hard.min(MOST_FDS);
    if wanted <= soft {
        return Ok(None);
    }
    set(wanted, hard)?;
    Ok(Some((soft, hard)))
}

fn kernel_fd_limit() -> u64 {
    fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// Sets CLOEXEC on every descriptor from `first` up: those that the manager was started with.
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    let first = first.max(0);
    // SAFETY: takes no pointers, and CLOEXEC takes no descriptor away from its owner.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        return Ok(());
    }
    // A kernel before 5.11, or a system call filter.
    for fd in open_fds()?.into_iter().filter(|&fd| fd >= first) {
        // SAFETY: as above. The number may have been closed since (the folder's own was): EBADF is no error here.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if flags >= 0 {
            // SAFETY: as above.
            check(unsafe { libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) })?;
        }
    }
    Ok(())
}

/// The numbers of the descriptors that are open. Without /proc every number up to the limit is tried.
pub fn open_fds() -> io::Result<Vec<RawFd>> {
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        let fds = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        return Ok(fds.collect());
    }
    // SAFETY: takes no pointers.
    let limit = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
    let limit = RawFd::try_from(limit.clamp(0, MOST_FDS as libc::c_long)).unwrap_or(RawFd::MAX);
    // SAFETY: F_GETFD takes no pointers and changes nothing.
    Ok((0..limit)
        .filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0)
        .collect())
}

/// From now on memory that is freed stays with the heap until [`trim_heap`], where the C library can: what one step of a
/// start has used the next one uses again, and need not have each page zeroed and mapped anew (mallopt(3)).
pub fn keep_heap() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: libc::c_int = 16 << 20;
        // SAFETY: sets numbers in the allocator.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        }
    }
}

/// Gives memory that the heap no longer uses back to the kernel, where the C library can.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches no block that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives back the pages of this program's code and constants. They are the file's, so nothing is lost: the kernel maps
/// those that are used again, and a program that has started needs few of those that starting needed.
pub fn release_code() {
    // SAFETY: `give_back` fits, keeps to what it is given, and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(give_back), std::ptr::null_mut()) };
}

/// For [`libc::dl_iterate_phdr`]: the program itself comes first, and 1 ends the walk.
///
/// # Safety
///
/// `info` must lead to a description as dl_iterate_phdr(3) gives it.
unsafe extern "C" fn give_back(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut libc::c_void,
) -> libc::c_int {
    const PAGE: usize = 4096;
    // SAFETY: the caller's promise.
    let info = unsafe { &*info };
    for index in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: there are so many headers.
        let header = unsafe { &*info.dlpi_phdr.add(index) };
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = info.dlpi_addr as usize + header.p_vaddr as usize;
        let end = start + header.p_memsz as usize;
        let (start, end) = (start.next_multiple_of(PAGE), end & !(PAGE - 1));
        if start < end {
            // SAFETY: whole pages of a segment that is not writable: they are as the file has them and come back from
            // it. Where pages are larger than 4096 bytes the kernel refuses what is not aligned.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
    1
}

/// Time since an arbitrary point before, by CLOCK_MONOTONIC: it never jumps and stands still while the machine sleeps.
pub fn monotonic_now() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` outlives the call. It can't fail: the clock exists on every kernel.
    unsafe { libc::clock_gettime(id, &mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::spawn::tests::{INHERITABLE, Program, wait_for_end};

    #[test]
    fn a_program_goes_on_without_the_pages_that_it_gave_back() {
        release_code();
        assert_eq!(std::hint::black_box("constants too").len(), 13);
    }

    #[test]
    fn only_positive_numbers_are_pids() {
        assert_eq!(Pid::new(0), None);
        assert_eq!(Pid::new(-1), None);
        assert_eq!(Pid::new(7).map(Pid::as_raw), Some(7));
    }

    #[test]
    fn group_one_is_never_signalled() {
        let one = Pid::new(1).unwrap();
        assert_eq!(
            kill_group(one, 0).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
        assert!(group_exists(one));
    }

    #[test]
    fn an_exit_is_peeked_again_and_again_and_reaped_once() {
        let child = Program::shell("exit 3").spawn();
        wait_for_end(&child);
        for _ in 0..2 {
            assert_eq!(peek_exit_of(child.pid).unwrap(), Some(Exit::Code(3)));
        }
        assert!(peek_exit().unwrap().is_some());
        assert!(
            children().unwrap().contains(&child.pid),
            "a zombie is still a child"
        );
        assert_eq!(reap(child.pid).unwrap(), Exit::Code(3));
        assert_eq!(
            peek_exit_of(child.pid).unwrap_err().raw_os_error(),
            Some(libc::ECHILD)
        );
        assert_eq!(
            reap(child.pid).unwrap_err().raw_os_error(),
            Some(libc::ECHILD)
        );
    }

    #[test]
    fn an_exit_is_known_by_the_pidfd_before_and_after_it_was_reaped() {
        for (code, exit) in [(3, Exit::Code(3)), (0, Exit::Code(0))] {
            let child = Program::shell(&format!("exit {code}")).spawn();
            crate::sys::output::wait_for(&[(child.pidfd.as_fd(), false)], None).unwrap();
            assert_eq!(exit_of(child.pid, &child.pidfd), Some(exit));
            reap(child.pid).unwrap();
            // Kernels before 6.15 do not tell any more.
            let told = exit_of(child.pid, &child.pidfd);
            assert!(told.is_none_or(|told| told == exit));
        }
    }

    #[test]
    fn a_process_starts_no_earlier_than_it_is_made() {
        let before = start_clock();
        let child = Program::shell("exec sleep 100").spawn();
        let started = started_at(child.pid).unwrap();
        assert!(before <= started && started <= start_clock());
        kill(child.pid, libc::SIGKILL).unwrap();
        wait(libc::P_PID, child.pid.as_raw(), 0).unwrap();
    }

    #[test]
    fn a_running_child_is_not_waited_for() {
        let child = Program::shell("read line").spawn_held();
        assert_eq!(peek_exit_of(child.pid).unwrap(), None);
        assert_eq!(
            reap(child.pid).unwrap_err().raw_os_error(),
            Some(libc::EAGAIN)
        );
        pidfd_send_signal(&child.pidfd, libc::SIGTERM).unwrap();
        wait_for_end(&child);
        assert_eq!(
            reap(child.pid).unwrap(),
            Exit::Signal {
                signal: libc::SIGTERM,
                core: false
            }
        );
    }

    #[test]
    fn a_group_is_signalled_as_a_whole_and_known_to_be_gone() {
        // The shell's own child keeps the pipe open until it is killed too.
        let (child, output) =
            Program::shell("(trap '' TERM; echo up; exec sleep 1000) & wait").spawn_with_output();
        let mut output = fs::File::from(output);
        output.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(group_of(child.pid).unwrap(), child.pid);
        assert!(group_exists(child.pid));
        kill_group(child.pid, libc::SIGTERM).unwrap();
        wait_for_end(&child);
        assert_eq!(
            reap(child.pid).unwrap(),
            Exit::Signal {
                signal: libc::SIGTERM,
                core: false
            }
        );
        assert!(group_exists(child.pid), "the inner process ignores TERM");
        kill_group(child.pid, libc::SIGKILL).unwrap();
        // The end of the output is the end of the last process that held it.
        output.read_to_end(&mut Vec::new()).unwrap();
    }

    #[test]
    fn descendants_are_found_across_generations() {
        let (child, output) =
            Program::shell("(sleep 1000 & echo up; wait) & wait").spawn_with_output();
        fs::File::from(output).read_exact(&mut [0; 3]).unwrap();
        let found = descendants(child.pid).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(parent_of(found[0]).unwrap(), child.pid);
        assert_eq!(parent_of(found[1]).unwrap(), found[0]);
        assert_eq!(name_of(child.pid).as_deref(), Some("sh"));
        assert_eq!(descendants(found[1]).unwrap(), []);
        let tree = family_tree().unwrap();
        assert_eq!(tree[&child.pid], [found[0]]);
        assert_eq!(listed_children(child.pid).unwrap(), [found[0]]);
        kill_group(child.pid, libc::SIGKILL).unwrap();
        wait_for_end(&child);
        reap(child.pid).unwrap();
    }

    #[test]
    fn the_parent_is_read_past_a_hostile_name() {
        assert_eq!(parent_in_stat(b"42 (a) R 1 (x) S 17 42 42 0"), Some(17));
        assert_eq!(parent_in_stat(b"42 (sh) S 0 42"), Some(0));
        assert_eq!(parent_in_stat(b"42 (sh"), None);
        assert_eq!(parent_in_stat(b""), None);
    }

    #[test]
    fn a_started_process_is_known_by_its_environment() {
        // It stops itself rather than exec another program, whose environment would be empty for a moment.
        let (child, output) = Program::shell("echo up; kill -STOP $$")
            .env("TENTPOLE_WID=12")
            .spawn_with_output();
        fs::File::from(output).read_exact(&mut [0; 3]).unwrap();
        let value = environ_of(child.pid, ["TENTPOLE_WID"]);
        assert_eq!(value, Some(["12".to_string()]));
        assert_eq!(environ_of(child.pid, ["TENTPOLE_WID", "OTHER"]), None);
        kill(child.pid, libc::SIGKILL).unwrap();
        wait_for_end(&child);
        reap(child.pid).unwrap();
        assert_eq!(environ_of(child.pid, []), None);
    }

    #[test]
    fn a_variable_is_matched_whole() {
        let environment = b"A=1\0AB=2\0C=x=y\0";
        let values = |names: [&str; 2]| values_of(environment, names);
        assert_eq!(values(["A", "C"]), Some(["1", "x=y"].map(String::from)));
        assert_eq!(values(["A", "B"]), None);
        assert_eq!(values_of(b"", ["A"]), None);
    }

    #[test]
    fn a_pidfd_is_of_this_process_and_not_inherited() {
        let fd = pidfd_open(Pid::own()).unwrap();
        pidfd_send_signal(&fd, 0).unwrap();
        // SAFETY: F_GETFD takes no pointers.
        assert_eq!(
            unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) },
            libc::FD_CLOEXEC
        );
    }

    #[test]
    fn the_descriptor_limit_is_raised_and_never_lowered() {
        let limit =
            || nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        let (soft, hard) = limit();
        let original = raise_fd_limit().unwrap();
        let (new_soft, new_hard) = limit();
        assert_eq!(original.is_some(), (new_soft, new_hard) != (soft, hard));
        assert!(original.is_none_or(|original| original == (soft, hard)));
        assert!(new_soft >= soft && new_hard >= hard);
        assert!(new_soft >= hard.min(MOST_FDS));
        assert_eq!(raise_fd_limit().unwrap(), None);
    }

    #[test]
    fn an_inherited_descriptor_is_marked() {
        let _alone = INHERITABLE
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        let file = fs::File::open("/dev/null").unwrap();
        // SAFETY: takes no pointers; the copy is ours.
        let copy =
            unsafe { OwnedFd::from_raw_fd(libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, 300)) };
        // SAFETY: F_GETFD takes no pointers.
        let flags = || unsafe { libc::fcntl(copy.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags(), 0);
        close_on_exec_from(300).unwrap();
        assert_eq!(flags(), libc::FD_CLOEXEC);
        assert!(open_fds().unwrap().contains(&copy.as_raw_fd()));
    }

    #[test]
    fn the_clock_goes_forward() {
        let before = monotonic_now();
        assert!(monotonic_now() >= before && before > Duration::ZERO);
        trim_heap();
    }
}
