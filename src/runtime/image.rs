//! What another image of this program is executed with: by an upgrade in place of this one, by the keeper beside it.

use crate::sys::process::Pid;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;

/// Tells a program that is executed in an upgrade the number of the ledger.
pub const UPGRADE: &str = "TENTPOLE_UPGRADE";

/// Tells a manager the number of its end of the link to its keeper.
pub const KEEPER: &str = "TENTPOLE_KEEPER";

/// What was said by the environment of descriptors that came along: they are taken by now, and another image has none of
/// them, or is told anew.
const TAKEN: [&str; 6] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    UPGRADE,
    KEEPER,
];

/// Our own arguments, the program's name first.
pub fn arguments() -> Vec<CString> {
    std::env::args_os().map(c_string).collect()
}

/// Our own environment, with these variables and without those of `stale`.
pub fn environment(variables: &[(&str, String)], stale: &[&str]) -> Vec<CString> {
    let own = std::env::vars_os();
    merged(own, variables, stale).map(c_string).collect()
}

fn merged(
    own: impl Iterator<Item = (OsString, OsString)>,
    variables: &[(&str, String)],
    stale: &[&str],
) -> impl Iterator<Item = OsString> {
    let kept = own.filter(move |(name, _)| {
        let new = variables.iter().map(|(other, _)| other);
        let mut dropped = TAKEN.iter().chain(stale).chain(new);
        dropped.all(|other| name != *other)
    });
    let new = variables.iter();
    kept.chain(new.map(|(name, value)| (OsString::from(name), OsString::from(value))))
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        })
}

/// What is said of the parent's watchdog and is not for a manager that this process is the parent of: all of it, if it is meant for
/// another process than this one; else the pid, since keep-alives go by way of us.
pub fn stale_watchdog() -> &'static [&'static str] {
    match std::env::var_os("WATCHDOG_PID") {
        Some(pid) if *pid != *Pid::own().to_string() => &["WATCHDOG_PID", "WATCHDOG_USEC"],
        _ => &["WATCHDOG_PID"],
    }
}

/// What came to us from execve(2), or is a path that we were started by: it holds no NUL byte.
pub fn c_string(text: OsString) -> CString {
    CString::new(text.into_vec()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_image_finds_what_is_true_for_it() {
        let own = [
            ("PATH", "/bin"),
            ("LISTEN_PID", "42"),
            ("LISTEN_FDS", "2"),
            ("LISTEN_FDNAMES", "a:b"),
            ("LISTEN_PIDFDID", "9"),
            ("NOTIFY_SOCKET", "/run/n"),
            ("TENTPOLE_KEEPER", "7"),
            ("TENTPOLE_UPGRADE", "9"),
            ("WATCHDOG_USEC", "1000"),
            ("WATCHDOG_PID", "42"),
        ];
        let own = own.map(|(name, value)| (name.into(), value.into()));
        let new = [("TENTPOLE_KEEPER", "3".to_owned())];
        let found: Vec<_> = merged(own.into_iter(), &new, &["WATCHDOG_PID"]).collect();
        let expected = [
            "PATH=/bin",
            "NOTIFY_SOCKET=/run/n",
            "WATCHDOG_USEC=1000",
            "TENTPOLE_KEEPER=3",
        ];
        assert_eq!(found, expected);
    }
}
