//! tentpole: a socket-activation service manager for Linux.
//!
//! One daemon binds sockets, keeps them open for ever, and starts, watches, scales and replaces the programs that serve
//! them. A program gets its sockets as inherited file descriptors; tentpole never touches a byte of the traffic. This page
//! is for those who work on tentpole; users start with the README and `docs/`.
//!
//! # Architecture
//!
//! One crate: a library, so that tests, the simulator, fuzzers and benchmarks can drive the core (it promises no API), and
//! a binary. One thread. Data flows one way, facts come back as events:
//!
//! ```text
//! unit files -> unit -> plan -> supervise -> effects -> runtime -> sys -> kernel
//!                                   ^                      |
//!                                   +------- events -------+
//! ```
//!
//! | module | charter | may import |
//! | --- | --- | --- |
//! | [`mod@unit`] | text to typed units: the TOML front door, the search path, drop-ins; every mistake has a place | - |
//! | [`plan`] | units to a complete, checked, ordered description of what to run; all substitutions | `unit` |
//! | [`supervise`] | the state machine: events in, effects out; no I/O, no clock, no descriptors | `plan`, `unit` |
//! | [`control`] | the wire: typed calls, replies and errors, the Varlink codec, the status documents | `supervise` |
//! | [`sys`] | safe wrappers of system calls; the only home of `unsafe`; knows nothing of units | - |
//! | [`runtime`] | the loop: readiness to events, effects to system calls; owns every descriptor, decides nothing | all above |
//! | [`cli`] | the command line: one file for each family of commands | all but `sys` |
//!
//! `tests/architecture.rs` holds the code to this table.
//!
//! # Where things are decided
//!
//! A decision lives in [`supervise`] or it lives nowhere. Each slot of a watcher is one enum, in whose variants the data
//! of each state lives; what follows from a state (is the listener watched? which deadline is next?) is computed from it.
//! Inside the loop an error is an event: a failed spawn or bind comes back as a fact like any other.
//!
//! # Four walks
//!
//! - *A connection on an armed socket*: epoll, [`runtime`] reports `Traffic`, [`supervise`] counts it against the trigger
//!   limit and makes the slots due, `Spawn` comes out, [`sys::spawn`] makes the process.
//! - *A death*: signalfd, the exit is peeked at while the zombie still reserves the pid, `Exited` goes in, what the restart
//!   policy says comes out, what the process left behind is killed, and only then it is reaped.
//! - *A command*: [`cli`] sends a Varlink call, [`runtime`] makes a `Command` of it, [`supervise`] remembers who asked, and
//!   answers when it is done or has failed, however long that takes; other commands go on meanwhile.
//!
//! - *A reload*: [`cli`] sends it, [`supervise`] gives a slot a second seat, `Spawn` comes out for the replacement, and when
//!   that is ready the two change places and the old one is stopped. An *apply* goes the same way, but that [`runtime`] first
//!   reads and plans the units anew, takes [`plan::diff`] of what runs and what is to run, and binds the new sockets: until
//!   then nothing has changed. Host names that those need are looked up by children first (`runtime/lookups.rs`): the loop
//!   waits for nobody.
//!
//! # What outlives the manager
//!
//! [`supervise`] hands out its state as records, each of one thing; `runtime/record.rs` adds what the runtime knows of
//! processes and sockets, and commits what has changed to a ledger in memory once a turn. The ledger and all descriptors
//! are held by the keeper (the process that was started, and the manager's parent) or by systemd. From there two ways lead
//! to `runtime/adopt.rs`: a new manager in place of a dead one, which receives the descriptors by name; and an upgrade,
//! where the manager executes another program in its own place, which finds them by number. The units are in the records:
//! nobody reads the files again. Where it is the keeper that dies, the manager forks and becomes the keeper of its own
//! continuation (`runtime/new_keeper.rs`).
//!
//! # The release build
//!
//! It is held under 2 MB, and nothing in it unwinds: a panic says its place and aborts. `sys/unwind.rs` ends every stack at
//! once, so that the code which would name its frames falls away, `build.rs` leaves out the unwinder's tables, and
//! `.cargo/config.toml` has less inlined. Sort and collect with [`unit::Arrange`] and [`unit::Gather`], of which there is one
//! copy for all types, and read tables with their defaults by `table!`. `cargo bench --bench speed -- size` tells.
//!
//! # Where to add what
//!
//! - A key of a unit file: one line in `unit/keys/socket.rs` or `watcher.rs`, a field in [`unit::Watcher`] or [`unit::Socket`], a
//!   row in `docs/units.md`. Then whoever acts on it.
//! - A command: an entry in `cli/words.rs` (what is typed), `control/call.rs` and the `.varlink` file (what is sent), `supervise/request.rs`
//!   (what it means, and when it is done).
//! - A system call: a wrapper in [`sys`], which says why it is sound.
//! - A rule of supervision: `supervise`, and an invariant in `tests/simulation` that would notice its absence.
//! - Something that must survive an upgrade or a crash: if it is the supervisor's, a field of its state; else a field of the
//!   records in `runtime`. A field that older versions did not write needs a default (`#[serde(default)]`).

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod cli;
pub mod control;
pub mod plan;
pub mod runtime;
pub mod supervise;
#[allow(unsafe_code)]
pub mod sys;
pub mod unit;
