//! What `status` and `apply` say: plain documents that the runtime fills and the command line shows.
//!
//! The names of fields and states and their order are a contract with scripts. A field that a reader does not know is
//! ignored, so that an old command line can ask a newer manager.

pub use crate::supervise::{Action, SocketState, WatcherState, WorkerState};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::time::{Duration, SystemTime};

/// The whole of `status --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon itself.
    pub manager: ManagerStatus,
    /// Sockets, in order of name.
    pub sockets: Vec<SocketStatus>,
    /// Watchers, in order of name.
    pub watchers: Vec<WatcherStatus>,
}

/// The daemon itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerStatus {
    /// Its pid, in its own pid namespace.
    pub pid: u32,
    /// The version of the binary that runs.
    pub version: String,
    /// What it is doing.
    pub state: ManagerState,
    /// When it was started.
    pub since: Timestamp,
}

/// What the manager is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ManagerState {
    /// Not every autostart watcher is running or waiting yet.
    Starting,
    /// It is up.
    Running,
    /// It is stopping everything, and ends after that.
    Stopping,
}

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketStatus {
    /// Name of the unit.
    pub name: String,
    /// What it is bound to; a port that was asked for as 0 is the one the kernel gave.
    pub address: String,
    /// `stream`, `dgram`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// What happens to its traffic.
    pub state: SocketState,
    /// Connections that nobody has accepted yet; `None` where the kernel counts none (datagrams, not bound).
    pub queue: Option<u32>,
    /// The kernel's limit of that queue.
    pub queue_limit: Option<u32>,
    /// Names of the watchers that it serves, in order of name.
    pub watchers: Vec<String>,
    /// Why it is `failed` or `paused`; the field is absent where there is nothing to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One watcher and its workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatcherStatus {
    /// Name of the unit.
    pub name: String,
    /// Where it is in its life.
    pub state: WatcherState,
    /// Workers to keep.
    pub wanted: u32,
    /// Workers that are ready.
    pub ready: u32,
    /// Deaths that were made good.
    pub restarts: u64,
    /// The last reason why something failed, until it works again.
    pub error: Option<String>,
    /// Names of its sockets, in fd order.
    pub sockets: Vec<String>,
    /// Its workers, in order of wid.
    pub workers: Vec<WorkerStatus>,
    /// Names of the watchers that it is `after` and that are not ready yet, in order of name; the field is absent where it
    /// waits for none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<String>,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number: 1, 2, 3...
    pub wid: u32,
    /// Its pid; `None` while it is not spawned. Never 0.
    pub pid: Option<u32>,
    /// Where it is in its life.
    pub state: WorkerState,
    /// When it was spawned.
    pub since: Timestamp,
    /// What it last said with `STATUS=`, as it said it.
    pub status: Option<String>,
    /// 1 for the first process of this wid, one more for each replacement.
    pub generation: u64,
}

/// What `apply` does, or would do, to one unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeDocument {
    /// `manager`, `socket.NAME` or `watcher.NAME`.
    pub unit: String,
    /// What is done.
    pub action: Action,
    /// The keys that differ, as a unit file has them, in order of name; empty where a unit is added or removed.
    pub keys: Vec<String>,
}

/// A moment of the wall clock, in whole seconds; as text it is RFC 3339 in UTC, such as `2026-01-01T00:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(SystemTime);

impl Timestamp {
    /// The last second that RFC 3339 can write: 9999-12-31T23:59:59Z.
    const LAST: u64 = 253_402_300_799;

    /// The moment itself.
    pub fn time(self) -> SystemTime {
        self.0
    }
}

impl From<SystemTime> for Timestamp {
    /// Cuts to whole seconds. A clock outside of what RFC 3339 can write gives the nearest moment that it can.
    fn from(time: SystemTime) -> Self {
        let seconds = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
            .min(Self::LAST);
        Timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Every `Timestamp` was made by `from`, so it is in the range that this can write.
        serializer.collect_str(&humantime::format_rfc3339_seconds(self.0))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text)
            .map(Timestamp::from)
            .map_err(|_| {
                de::Error::invalid_value(
                    de::Unexpected::Str(&text),
                    &"a time such as `2026-01-01T00:00:00Z`",
                )
            })
    }
}

/// A status with something in every field, for the tests of this module's users too.
#[cfg(test)]
pub(crate) fn example() -> Status {
    let since = Timestamp::from(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600));
    Status {
        manager: ManagerStatus {
            pid: 1,
            version: "0.1.0".into(),
            state: ManagerState::Running,
            since,
        },
        sockets: vec![SocketStatus {
            name: "web".into(),
            address: "127.0.0.1:8000".into(),
            kind: "stream".into(),
            state: SocketState::Listening,
            queue: Some(0),
            queue_limit: Some(4096),
            watchers: vec!["web".into()],
            error: None,
        }],
        watchers: vec![WatcherStatus {
            name: "web".into(),
            state: WatcherState::Running,
            wanted: 5,
            ready: 5,
            restarts: 0,
            error: None,
            sockets: vec!["web".into()],
            workers: vec![WorkerStatus {
                wid: 1,
                pid: Some(4242),
                state: WorkerState::Ready,
                since,
                status: None,
                generation: 1,
            }],
            waits_for: vec![],
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = concat!(
        r#"{"manager":{"pid":1,"version":"0.1.0","state":"running","since":"2026-01-01T00:00:00Z"},"#,
        r#""sockets":[{"name":"web","address":"127.0.0.1:8000","type":"stream","state":"listening","#,
        r#""queue":0,"queue_limit":4096,"watchers":["web"]}],"#,
        r#""watchers":[{"name":"web","state":"running","wanted":5,"ready":5,"restarts":0,"error":null,"#,
        r#""sockets":["web"],"#,
        r#""workers":[{"wid":1,"pid":4242,"state":"ready","since":"2026-01-01T00:00:00Z","status":null,"generation":1}]}]}"#,
    );

    #[test]
    fn status_is_written_as_the_contract_shows_it() {
        assert_eq!(serde_json::to_string(&example()).unwrap(), EXAMPLE);
    }

    #[test]
    fn status_is_read_back_as_it_was_written() {
        assert_eq!(serde_json::from_str::<Status>(EXAMPLE).unwrap(), example());
    }

    #[test]
    fn a_field_from_a_newer_manager_is_ignored() {
        let newer = EXAMPLE.replace(r#""pid":1,"#, r#""pid":1,"mood":{"good":[true]},"#);
        assert_ne!(newer, EXAMPLE);
        assert_eq!(serde_json::from_str::<Status>(&newer).unwrap(), example());
    }

    #[test]
    fn the_reason_of_a_failed_socket_comes_last() {
        let mut status = example();
        status.sockets[0].state = SocketState::Failed;
        status.sockets[0].queue = None;
        status.sockets[0].error = Some("bind: Address already in use".into());
        let text = serde_json::to_string(&status.sockets[0]).unwrap();
        assert!(
            text.contains(r#""state":"failed","queue":null,"queue_limit":4096"#),
            "{text}"
        );
        assert!(
            text.ends_with(r#""watchers":["web"],"error":"bind: Address already in use"}"#),
            "{text}"
        );
        assert_eq!(
            serde_json::from_str::<SocketStatus>(&text).unwrap(),
            status.sockets[0]
        );
    }

    #[test]
    fn states_have_the_names_of_the_contract() {
        fn names<S: Serialize>(states: &[S]) -> Vec<String> {
            states
                .iter()
                .map(|state| serde_json::to_string(state).unwrap().replace('"', ""))
                .collect()
        }
        use {ManagerState as M, SocketState as S, WatcherState as W, WorkerState as P};
        assert_eq!(
            names(&[M::Starting, M::Running, M::Stopping]),
            ["starting", "running", "stopping"]
        );
        assert_eq!(
            names(&[S::Listening, S::Armed, S::Paused, S::Failed]),
            ["listening", "armed", "paused", "failed"]
        );
        assert_eq!(
            names(&[
                W::Stopped,
                W::Waiting,
                W::Starting,
                W::Running,
                W::Reloading,
                W::Stopping,
                W::Backoff,
                W::Failed
            ]),
            [
                "stopped",
                "waiting",
                "starting",
                "running",
                "reloading",
                "stopping",
                "backoff",
                "failed"
            ]
        );
        assert_eq!(
            names(&[P::Starting, P::Ready, P::Reloading, P::Stopping]),
            ["starting", "ready", "reloading", "stopping"]
        );
    }

    #[test]
    fn a_change_is_written_as_the_contract_shows_it() {
        let change = ChangeDocument {
            unit: "watcher.web".into(),
            action: Action::Reload,
            keys: vec!["cmd".into()],
        };
        assert_eq!(
            serde_json::to_string(&change).unwrap(),
            r#"{"unit":"watcher.web","action":"reload","keys":["cmd"]}"#
        );
        use Action as A;
        let all = [A::Add, A::Remove, A::Scale, A::Reload, A::Rebind, A::Set];
        assert_eq!(
            serde_json::to_string(&all).unwrap(),
            r#"["add","remove","scale","reload","rebind","set"]"#
        );
    }

    #[test]
    fn a_clock_before_1970_or_after_9999_is_still_written() {
        let early = Timestamp::from(SystemTime::UNIX_EPOCH - Duration::from_secs(1));
        let late = Timestamp::from(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40));
        assert_eq!(
            serde_json::to_string(&early).unwrap(),
            r#""1970-01-01T00:00:00Z""#
        );
        assert_eq!(
            serde_json::to_string(&late).unwrap(),
            r#""9999-12-31T23:59:59Z""#
        );
    }

    #[test]
    fn a_time_that_is_none_is_refused() {
        let error = serde_json::from_str::<Timestamp>(r#""yesterday""#).unwrap_err();
        assert!(
            error.to_string().contains("2026-01-01T00:00:00Z"),
            "{error}"
        );
    }
}
