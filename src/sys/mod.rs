//! Safe wrappers of system calls. The only home of `unsafe`; knows nothing of units.
//!
//! Every wrapper is safe with any argument, sets CLOEXEC where it makes a descriptor, and returns the kernel's error as
//! it is: what an error means for a unit is decided elsewhere.

pub mod epoll;
pub mod farewell;
pub mod filter;
pub mod fork;
pub mod inherit;
pub mod lookup;
pub mod memory;
pub mod notify;
pub mod output;
pub mod owner;
pub mod placement;
pub mod process;
pub mod queue;
mod raw;
mod receive;
pub mod reuseport;
pub mod signals;
pub mod socket;
pub mod spawn;
pub mod unix;
#[cfg(all(
    panic = "abort",
    target_env = "gnu",
    not(any(debug_assertions, target_feature = "crt-static"))
))]
mod unwind;
pub mod users;

/// The result of a system call, or why it failed.
fn check(result: i32) -> std::io::Result<i32> {
    if result < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Puts a number at its place in a list in order, unless it is there. One sort less in the program, for short lists.
fn insert_in_order(list: &mut Vec<u32>, number: u32) {
    if let Err(place) = list.binary_search(&number) {
        list.insert(place, number);
    }
}

/// What the C library says of an errno: `No such file or directory`.
fn reason(errno: i32) -> String {
    let mut text = std::io::Error::from_raw_os_error(errno).to_string();
    if let Some(end) = text.find(" (os error") {
        text.truncate(end);
    }
    text
}
