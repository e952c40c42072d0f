//! Text to typed units: what a unit file may say, and what it says.
//!
//! A *front door* (here: TOML) reads text and yields [`Units`]. Everything downstream works on these types and never
//! looks at text again. Every mistake is a [`Finding`] with a [`Place`]; all of a file's mistakes are reported at once.

#![deny(clippy::disallowed_methods)]

mod address;
mod arrange;
mod document;
mod doubt;
mod field;
mod finding;
mod hash;
mod keys;
mod load;
mod nearest;
pub mod path;
mod toml;
mod value;

pub use address::parse_address;
pub use arrange::{Arrange, Gather};
pub use doubt::{Doubt, Doubts};
pub use finding::{Finding, Findings, Place, Severity, Sources};
pub use hash::NameMap;
pub use load::{Loaded, Search, load, read_text, reason};
pub use nearest::nearest;
pub use value::{parse_duration, parse_signal, signal_name};

use path::FilePath;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A table of a unit file, with what each field is where its key is absent. A record of one holds what differs from that
/// and nothing else: most of most units is as it comes.
macro_rules! table {
    (
        $(#[$about:meta])*
        pub struct $table:ident {
            $($(#[$what:meta])* pub $field:ident: $type:ty = $usual:expr,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $table {
            $($(#[$what])* pub $field: $type,)*
        }

        impl Default for $table {
            fn default() -> Self {
                $table { $($field: $usual,)* }
            }
        }

        impl Serialize for $table {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let usual = $table::default();
                let mut fields = serializer.serialize_map(None)?;
                $(if self.$field != usual.$field {
                    fields.serialize_entry(stringify!($field), &self.$field)?;
                })*
                fields.end()
            }
        }

        impl<'de> Deserialize<'de> for $table {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(field_identifier)]
                #[allow(non_camel_case_types)]
                enum Key {
                    $($field,)*
                    #[serde(other)]
                    other,
                }
                struct Fields;
                impl<'de> Visitor<'de> for Fields {
                    type Value = $table;
                    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                        f.write_str(concat!("the fields of a ", stringify!($table)))
                    }
                    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<$table, A::Error> {
                        let mut table = $table::default();
                        while let Some(key) = fields.next_key()? {
                            match key {
                                $(Key::$field => table.$field = fields.next_value()?,)*
                                Key::other => {
                                    fields.next_value::<IgnoredAny>()?;
                                }
                            }
                        }
                        Ok(table)
                    }
                }
                deserializer.deserialize_map(Fields)
            }
        }
    };
}

/// A value and where in the unit files it stands. Equality looks at the value alone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct At<T> {
    /// What was written.
    pub value: T,
    /// Where it was written; [`Place::NOWHERE`] for a default.
    #[serde(skip)]
    pub place: Place,
}

impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for At<T> {}

impl<T> At<T> {
    /// A value that stands in no file, such as a default.
    pub fn nowhere(value: T) -> Self {
        At {
            value,
            place: Place::NOWHERE,
        }
    }
}

/// All units of one run, in order of name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Units {
    /// The `[manager]` table.
    pub manager: Manager,
    /// The `[socket.NAME]` tables, in order of name. Boxed, since they are large and on their way to a plan.
    pub sockets: Vec<Box<Socket>>,
    /// The `[watcher.NAME]` tables, in order of name.
    pub watchers: Vec<Box<Watcher>>,
}

impl Units {
    /// Puts them in order of name.
    pub fn sort(&mut self) {
        let (sockets, watchers) = (&mut self.sockets, &mut self.watchers);
        sockets.arrange_by(|a, b| a.name.value.cmp(&b.name.value));
        watchers.arrange_by(|a, b| a.name.value.cmp(&b.name.value));
    }
}

/// Names a unit: printable text without `/`, at most 255 bytes.
pub type Name = String;

table! {
    /// The `[manager]` table.
    pub struct Manager {
        /// Path of the control socket.
        pub control: Option<At<FilePath>> = None,
        /// Group that may connect to the control socket besides root and the manager's own user.
        pub control_group: Option<At<Principal>> = None,
        /// Mode of the control socket, if it was written.
        pub control_mode: Option<Mode> = None,
        /// Pause between starting one watcher and the next.
        pub warmup_delay: Duration = Duration::ZERO,
        /// The whole stop is forced after this; `None` is never.
        pub shutdown_timeout: Option<Duration> = Some(Duration::from_secs(90)),
        /// Least important level that is logged.
        pub log_level: LogLevel = LogLevel::Info,
        /// How a log line looks.
        pub log_format: LogFormat = LogFormat::Text,
        /// Environment for all watchers, in order of name.
        pub env: Vec<(String, At<String>)> = Vec::new(),
    }
}

impl Manager {
    /// Mode of the control socket: without one a group could do nothing.
    pub fn control_mode(&self) -> Mode {
        let usual = match self.control_group {
            None => Mode(0o600),
            Some(_) => Mode(0o660),
        };
        self.control_mode.unwrap_or(usual)
    }
}

/// Least important level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One sentence a line.
    Text,
    /// One JSON object a line.
    Json,
}

/// File mode or umask: the low 12 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mode(pub u32);

/// A user or group as it was written: by name or by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Principal {
    /// A name, to be looked up in the user or group database.
    Name(String),
    /// A numeric id.
    Id(u32),
}

table! {
    /// A `[socket.NAME]` table.
    pub struct Socket {
        /// Its name; the place is that of the table's header.
        pub name: At<Name> = At::default(),
        /// What it listens on.
        pub address: At<Address> = At::nowhere(Address::Port(0)),
        /// stream, dgram or seqpacket.
        pub kind: SocketKind = SocketKind::Stream,
        /// Address family asked for; `None` takes it from the address.
        pub family: Option<Family> = None,
        /// Longest queue of connections that nobody has accepted; the kernel caps it at `net.core.somaxconn`.
        pub backlog: u32 = 4096,
        /// SO_BINDTODEVICE.
        pub interface: Option<At<String>> = None,
        /// One kernel queue for each worker.
        pub so_reuseport: At<bool> = At::nowhere(false),
        /// False sets O_NONBLOCK on the shared open file description.
        pub blocking: bool = true,
        /// umask while a unix socket is bound; `mode` is applied all the same where it is given.
        pub umask: Option<Mode> = None,
        /// Owner of a unix socket's file.
        pub user: Option<At<Principal>> = None,
        /// Group of a unix socket's file.
        pub group: Option<At<Principal>> = None,
        /// Mode of a unix socket's file; `None` means 0666, or what `umask` leaves of it.
        pub mode: Option<Mode> = None,
        /// Mode of parent directories that the manager creates.
        pub directory_mode: Mode = Mode(0o755),
        /// Unlink a stale socket file.
        pub replace: bool = true,
        /// A failed bind is a warning and is tried again.
        pub optional: bool = false,
        /// Unlink the socket file when the socket is closed for good.
        pub remove_on_stop: bool = true,
        /// Name in LISTEN_FDNAMES; `None` is the unit's own.
        pub fd_name: Option<String> = None,
        /// Whether to take a matching socket that the manager was given.
        pub inherit: Inherit = Inherit::Auto,
        /// Activations beyond this pause the socket.
        pub trigger_limit: TriggerLimit = TriggerLimit::default(),
    }
}

impl Socket {
    /// A socket of which nothing but its name and address was written.
    pub fn new(name: At<Name>, address: At<Address>) -> Self {
        Socket {
            name,
            address,
            ..Socket::default()
        }
    }
}

/// What a socket listens on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Address {
    /// All addresses of both families (of IPv4 alone where the kernel has no IPv6, or `family` says so).
    Port(u16),
    /// A numeric address, IPv6 ones with their scope.
    Ip(std::net::SocketAddr),
    /// A host name, looked up when the socket is bound; the first usable address is taken.
    Host(String, u16),
    /// A unix socket's path, absolute.
    Path(#[serde(with = "path")] PathBuf),
    /// A unix socket's abstract name, without the leading `@`.
    Abstract(String),
}

impl Address {
    /// The port of an internet address; 0 is of the kernel's choice.
    pub fn port(&self) -> Option<u16> {
        match self {
            Address::Port(port) | Address::Host(_, port) => Some(*port),
            Address::Ip(address) => Some(address.port()),
            Address::Path(_) | Address::Abstract(_) => None,
        }
    }
}

/// Type of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum SocketKind {
    Stream,
    Dgram,
    Seqpacket,
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Family {
    Inet,
    Inet6,
    Unix,
}

/// Whether a socket may come from the manager's own LISTEN_FDS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inherit {
    /// Take a match, else bind.
    Auto,
    /// Take a match, else fail.
    Require,
    /// Always bind.
    Never,
}

/// At most `burst` activations in each `interval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerLimit {
    /// Activations allowed in one interval; 0 is no limit.
    pub burst: u32,
    /// Length of the interval; zero is no limit.
    pub interval: Duration,
}

impl Default for TriggerLimit {
    fn default() -> Self {
        TriggerLimit {
            burst: 20,
            interval: Duration::from_secs(2),
        }
    }
}

table! {
    /// A `[watcher.NAME]` table.
    pub struct Watcher {
        /// Its name; the place is that of the table's header.
        pub name: At<Name> = At::default(),
        /// Folder of the unit file, absolute: relative paths start here.
        pub folder: FilePath = FilePath::default(),
        /// The command: words of a list, or text that is not split yet.
        pub cmd: At<Words> = At::nowhere(Words::List(Vec::new())),
        /// Further arguments.
        pub args: Option<Box<At<Words>>> = None,
        /// What to exec instead of argv\[0\].
        pub executable: Option<Box<At<String>>> = None,
        /// Run through `/bin/sh -c`.
        pub shell: bool = false,
        /// Arguments after `sh -c CMD`.
        pub shell_args: Option<Box<At<Words>>> = None,
        /// Sockets in fd order; `None` where the key is absent.
        pub sockets: Option<Vec<At<Name>>> = None,
        /// Pass every socket, in order of name.
        pub use_sockets: bool = false,
        /// Whether LISTEN_* are set.
        pub listen_fds: bool = true,
        /// fd 0, unless `stdin_socket` is given.
        pub stdin: Stdin = Stdin::Null,
        /// Socket that becomes fd 0.
        pub stdin_socket: Option<Box<At<Name>>> = None,
        /// Workers to keep.
        pub numprocesses: At<u32> = At::nowhere(1),
        /// Never more than one worker.
        pub singleton: bool = false,
        /// When a worker is ready.
        pub kind: WatcherKind = WatcherKind::Exec,
        /// Pause between the spawns of its workers.
        pub warmup_delay: Duration = Duration::ZERO,
        /// Ready only after it also stayed alive this long.
        pub ready_delay: Duration = Duration::ZERO,
        /// Not ready by then is a failure; `None` is no limit.
        pub start_timeout: Option<Duration> = Some(Duration::from_secs(90)),
        /// WATCHDOG=1 must come this often.
        pub watchdog: Option<Duration> = None,
        /// Sent when the watchdog ran out.
        pub watchdog_signal: Signal = Signal(libc::SIGABRT),
        /// Whose notifications count.
        pub notify_access: NotifyAccess = NotifyAccess::Main,
        /// Start with the manager.
        pub autostart: bool = true,
        /// Start at the first traffic.
        pub on_demand: At<bool> = At::nowhere(false),
        /// What happens when a worker ends by itself.
        pub restart: Restart = Restart::Always,
        /// First delay of the backoff.
        pub restart_delay: Duration = Duration::from_millis(100),
        /// Longest delay of the backoff.
        pub restart_max_delay: Duration = Duration::from_secs(30),
        /// A worker that lived this long starts the backoff over.
        pub restart_reset: Duration = Duration::from_secs(10),
        /// Failed starts in a row before the watcher is failed; `None` is never.
        pub max_retry: Option<u32> = None,
        /// First signal of a stop.
        pub stop_signal: Signal = Signal(libc::SIGTERM),
        /// KILL follows after this; `None` is never.
        pub graceful_timeout: Option<Duration> = Some(Duration::from_secs(30)),
        /// Send `stop_signal` to the whole process group.
        pub stop_children: bool = false,
        /// How a reload replaces or tells its workers.
        pub reload: Reload = Reload::Rolling,
        /// How many workers a rolling reload may run beside those that it replaces; at least 1.
        pub reload_surge: u32 = 1,
        /// A worker of this age is replaced, the rolling way; `None` is never.
        pub max_age: Option<Duration> = None,
        /// Up to this much is added to `max_age`, for each worker anew, so that they are not all replaced at once.
        pub max_age_variance: Duration = Duration::from_secs(30),
        /// The manager ends with this watcher.
        pub critical: bool = false,
        /// Higher starts first.
        pub priority: i32 = 0,
        /// Wait until these are ready.
        pub after: Vec<At<Name>> = Vec::new(),
        /// As `after`, and fail with them.
        pub requires: Vec<At<Name>> = Vec::new(),
        /// User to run as.
        pub user: Option<Box<At<Principal>>> = None,
        /// Group to run as.
        pub group: Option<Box<At<Principal>>> = None,
        /// Supplementary groups; `None` takes the user's from the group database.
        pub supplementary_groups: Option<Vec<At<Principal>>> = None,
        /// umask of the workers.
        pub umask: Option<Mode> = None,
        /// Working directory, with substitutions; relative to `folder`.
        pub working_dir: Option<Box<At<String>>> = None,
        /// Nice value, -20 to 19.
        pub nice: Option<i32> = None,
        /// -1000 to 1000.
        pub oom_score_adj: Option<i32> = None,
        /// CPU numbers.
        pub cpu_affinity: Option<Vec<u32>> = None,
        /// Resource limits, in order of resource.
        pub rlimits: Vec<(Resource, Limit)> = Vec::new(),
        /// Environment, in order of name.
        pub env: Vec<(String, At<String>)> = Vec::new(),
        /// File of KEY=VALUE lines, with substitutions; a leading `-` allows it to be missing.
        pub env_file: Option<Box<At<String>>> = None,
        /// Start from the manager's own environment.
        pub copy_env: bool = true,
        /// A Python virtual environment: its `bin` leads PATH.
        pub virtualenv: Option<Box<At<String>>> = None,
        /// fd 1.
        pub stdout: Output = Output::Inherit,
        /// fd 2.
        pub stderr: Output = Output::Inherit,
    }
}

impl Watcher {
    /// Whether each of its workers is to run once.
    pub fn runs_once(&self) -> bool {
        self.kind == WatcherKind::Oneshot || self.restart == Restart::Never
    }

    /// A watcher of which nothing but its name and command was written, in a file that stands in `folder`.
    pub fn new(name: At<Name>, folder: PathBuf, cmd: At<Words>) -> Self {
        Watcher {
            name,
            folder: folder.into(),
            cmd,
            ..Watcher::default()
        }
    }
}

/// A command as it was written, and so in a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Words {
    /// One text, split as a POSIX shell splits words.
    Text(String),
    /// Words that are taken as they are.
    List(Vec<At<String>>),
}

/// What serde derives for this keeps whatever it reads in a form of its own first, which takes a good deal of code.
impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl<'de> Visitor<'de> for Written {
            type Value = Words;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("text or a list of it")
            }
            fn visit_str<E>(self, text: &str) -> Result<Words, E> {
                Ok(Words::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<Words, A::Error> {
                let mut list = Vec::new();
                while let Some(word) = words.next_element()? {
                    list.push(word);
                }
                Ok(Words::List(list))
            }
        }
        deserializer.deserialize_any(Written)
    }
}

/// When a worker is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WatcherKind {
    /// When its exec succeeded.
    Exec,
    /// When it said READY=1.
    Notify,
    /// When it exited 0.
    Oneshot,
}

/// Whose notifications count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NotifyAccess {
    /// Nobody's.
    None,
    /// The main process's.
    Main,
    /// Those of every process of the worker.
    All,
}

/// What happens when a worker ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Restart {
    Always,
    OnFailure,
    Never,
}

/// What a reload does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reload {
    /// Starts a replacement beside each worker, and stops the old one when the new one is ready.
    Rolling,
    /// Sends this signal to each worker.
    Signal(Signal),
}

/// fd 0 of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stdin {
    /// /dev/null.
    Null,
    /// A file, opened for reading, with substitutions; relative to the unit's folder.
    File(At<String>),
}

/// fd 1 or 2 of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// The manager's own.
    Inherit,
    /// /dev/null.
    Null,
    /// A file, opened for appending, with substitutions; relative to the unit's folder.
    File(At<String>),
}

/// A signal's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal(pub i32);

/// A resource of setrlimit(2), by its name without `RLIMIT_`, lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Resource {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

/// Soft and hard limit; `None` is infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The limit that is enforced.
    pub soft: Option<u64>,
    /// How far the process may raise it.
    pub hard: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_recorded_as_it_was_written() {
        let list = vec![At::nowhere("a b".to_owned())];
        for (words, record) in [
            (Words::Text("a b".into()), "\"a b\""),
            (Words::List(list), "[\"a b\"]"),
        ] {
            assert_eq!(serde_json::to_string(&words).unwrap(), record);
            assert_eq!(serde_json::from_str::<Words>(record).unwrap(), words);
        }
        assert!(serde_json::from_str::<Words>("7").is_err());
    }
}
