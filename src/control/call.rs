//! What a client may ask for, and what it can be answered.

use super::document::{ChangeDocument, Status};
pub use crate::supervise::Amount;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::fmt;

/// Name of the interface that drives the manager.
pub const INTERFACE: &str = "io.tentpole.Manager";

/// Name of the interface that every Varlink service has.
pub const SERVICE: &str = "org.varlink.service";

/// Interfaces and their descriptions.
pub const INTERFACES: [(&str, &str); 2] = [
    (SERVICE, include_str!("org.varlink.service.varlink")),
    (INTERFACE, include_str!("io.tentpole.Manager.varlink")),
];

/// Methods of [`INTERFACE`] that are planned and not built: they answer [`Failure::MethodNotImplemented`].
const NOT_BUILT: [&str; 5] = ["Pause", "Resume", "Logs", "Events", "Metrics"];

/// So many mistakes in unit files are sent at most: nobody reads more, and a message has an end.
const MOST_FINDINGS: usize = 200;

/// One message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it asks for, or the answer to give at once: it asks for nothing that can be done.
    pub call: Result<Call, Failure>,
    /// It takes several replies. Never together with `oneway`.
    pub more: bool,
    /// It takes no reply: neither a result nor an error may be sent.
    pub oneway: bool,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// The status of everything, or of the named units.
    Status {
        /// Empty is all.
        names: Vec<String>,
    },
    /// Start watchers.
    Start {
        /// Which; empty with `all`, never empty without.
        names: Vec<String>,
        /// Every watcher that starts by itself.
        all: bool,
        /// Answer when it is done.
        wait: bool,
    },
    /// Stop watchers.
    Stop {
        /// Which; empty with `all`, never empty without.
        names: Vec<String>,
        /// Every watcher.
        all: bool,
        /// Answer when it is done.
        wait: bool,
    },
    /// Stop watchers and start them anew.
    Restart {
        /// Which; empty with `all`, never empty without.
        names: Vec<String>,
        /// Every watcher that runs.
        all: bool,
        /// Answer when it is done.
        wait: bool,
    },
    /// Replace the workers of watchers without a gap, or send them their `reload` signal.
    Reload {
        /// Which; empty with `all`, never empty without.
        names: Vec<String>,
        /// Every watcher that runs.
        all: bool,
        /// Answer when it is done.
        wait: bool,
    },
    /// Read all unit files anew, and change what runs to what they say; answered by [`Reply::Changes`].
    Apply {
        /// Change nothing, only tell what would change.
        dry_run: bool,
        /// Answer when it is done.
        wait: bool,
    },
    /// Tell what [`Call::Apply`] would change; answered by [`Reply::Changes`].
    Plan,
    /// Go on as the binary that now stands where this manager was started from.
    Upgrade {
        /// Answer when the new one has taken over.
        wait: bool,
    },
    /// Change how many workers a watcher keeps.
    Scale {
        /// The watcher.
        name: String,
        /// How many.
        to: Amount,
        /// Answer when it is done.
        wait: bool,
    },
    /// Send a signal to workers.
    Signal {
        /// The watcher.
        name: String,
        /// As it was typed: a name with or without `SIG`, or a number.
        signal: String,
        /// This worker alone; never 0.
        wid: Option<u32>,
        /// To the whole process group.
        children: bool,
    },
    /// Stop everything, then the manager.
    Shutdown {
        /// Answer when every worker has ended.
        wait: bool,
    },
    /// What this service is; answered by [`Reply::info`].
    GetInfo,
    /// The text of an interface; answered by [`Reply::description`].
    GetInterfaceDescription {
        /// Its name.
        interface: String,
    },
}

/// An answer that is not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To [`Call::Status`].
    Status(Box<Status>),
    /// It is done, or begun where the call did not want to wait.
    Done {
        /// What is worth knowing about it, as a sentence.
        message: Option<String>,
    },
    /// To [`Call::Apply`] and [`Call::Plan`].
    Changes {
        /// What changes, or would change, in the order in which it is done. A unit that stays as it is has none.
        changes: Vec<ChangeDocument>,
        /// What is worth knowing about it, as a sentence.
        message: Option<String>,
    },
    /// It goes on: sent with `continues`, and only to a call with `more`.
    Progress {
        /// How far it is, for people.
        text: String,
        /// The watcher that it is about.
        unit: String,
        /// Steps done.
        done: u32,
        /// Steps to do.
        wanted: u32,
    },
    /// To [`Call::GetInfo`].
    Info {
        /// Who makes it.
        vendor: String,
        /// What it is.
        product: String,
        /// The version of the binary that runs.
        version: String,
        /// Where to read about it.
        url: String,
        /// Its interfaces.
        interfaces: Vec<String>,
    },
    /// To [`Call::GetInterfaceDescription`].
    Description(String),
}

impl Reply {
    /// The answer to [`Call::GetInfo`].
    pub fn info() -> Reply {
        Reply::Info {
            vendor: "tentpole".into(),
            product: "tentpole".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            url: env!("CARGO_PKG_REPOSITORY").into(),
            interfaces: INTERFACES
                .iter()
                .map(|(name, _)| (*name).to_owned())
                .collect(),
        }
    }

    /// The answer to [`Call::GetInterfaceDescription`].
    pub fn description(interface: &str) -> Result<Reply, Failure> {
        INTERFACES
            .iter()
            .find(|(name, _)| *name == interface)
            .map(|(_, text)| Reply::Description((*text).to_owned()))
            .ok_or_else(|| Failure::InterfaceNotFound {
                interface: interface.to_owned(),
            })
    }
}

/// An answer that is an error. As text it is a sentence for people, without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no unit of this name, and nothing was done.
    NoSuchUnit {
        /// As it was asked for.
        name: String,
        /// The nearest name that there is, if one is near.
        nearest: Option<String>,
    },
    /// There is a socket of this name, and no watcher, which is what the command takes; nothing was done.
    IsSocket {
        /// As it was asked for.
        name: String,
        /// The watchers that it serves.
        watchers: Vec<String>,
    },
    /// It can't be done now, or not to this unit; nothing was done.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// The unit files have mistakes, and nothing was done. [`Failure::invalid_units`] makes it.
    InvalidUnits {
        /// Each as a user reads it: the sentence with its place, then the line and a caret.
        findings: Vec<String>,
    },
    /// It was begun, and did not end well.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
    /// The manager is stopping.
    ShuttingDown,
    /// A later order for the same unit took over.
    Superseded {
        /// Which order, such as `stop`.
        by: String,
    },
    /// What was sent is not a call.
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// The peer may not use this control socket.
    PermissionDenied,
    /// The service has no such interface.
    InterfaceNotFound {
        /// Its name.
        interface: String,
    },
    /// The interface has no such method.
    MethodNotFound {
        /// Its full name.
        method: String,
    },
    /// The method is planned and not built.
    MethodNotImplemented {
        /// Its full name.
        method: String,
    },
    /// A parameter is missing, unknown, of the wrong type, or at odds with another one.
    InvalidParameter {
        /// Its name.
        parameter: String,
    },
    /// The method answers only to calls with `more`.
    ExpectedMore,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NoSuchUnit { name, nearest } => {
                write!(f, "no such unit `{}`", on_one_line(name))?;
                match nearest {
                    Some(nearest) => write!(f, "; did you mean `{nearest}`?"),
                    None => f.write_str("; `tentpole status` lists them"),
                }
            }
            Failure::IsSocket { name, watchers } => {
                write!(f, "`{name}` is a socket, and this command takes watchers")?;
                match watchers.as_slice() {
                    [] => f.write_str("; no watcher has it"),
                    [one] => write!(f, "; its watcher is `{one}`"),
                    several => write!(f, "; its watchers are `{}`", several.join("`, `")),
                }
            }
            Failure::Refused { reason } | Failure::Failed { reason } => f.write_str(reason),
            Failure::InvalidUnits { .. } => f.write_str(
                "the unit files have mistakes, so nothing was changed; mend what `tentpole check` finds in them",
            ),
            Failure::ShuttingDown => f.write_str("the manager is shutting down and takes no more orders"),
            Failure::Superseded { by } => write!(f, "a later `{by}` took over before this was done"),
            Failure::Malformed { reason } => write!(f, "the manager could not read the call: {reason}"),
            Failure::PermissionDenied => f.write_str(
                "the manager takes orders only from root, from its own user and from its `control_group`; \
                 run the command as one of them",
            ),
            Failure::InterfaceNotFound { interface } => {
                write!(f, "the service has no interface `{interface}`")
            }
            Failure::MethodNotFound { method } => {
                write!(f, "the manager has no method `{method}`; is it of an older version?")
            }
            Failure::MethodNotImplemented { method } => write!(f, "`{method}` is not built yet"),
            Failure::InvalidParameter { parameter } => {
                write!(f, "the manager does not take the parameter `{parameter}` as it was given")
            }
            Failure::ExpectedMore => f.write_str("the manager answers this only with a stream; call it with `more`"),
        }
    }
}

impl std::error::Error for Failure {}

/// What somebody else has written, for a sentence: nothing in it ends the line, or moves a cursor.
pub fn on_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

impl Failure {
    /// What to answer where the unit files are wrong, from the rendered findings. Of very many only the first are kept.
    pub fn invalid_units(findings: impl IntoIterator<Item = String>) -> Failure {
        let mut rest = findings.into_iter();
        let mut findings: Vec<String> = rest.by_ref().take(MOST_FINDINGS).collect();
        match rest.count() {
            0 => {}
            more => findings.push(format!("and {more} more")),
        }
        Failure::InvalidUnits { findings }
    }

    /// Its full name on the wire.
    pub(super) fn error(&self) -> &'static str {
        match self {
            Failure::NoSuchUnit { .. } | Failure::IsSocket { .. } => {
                "io.tentpole.Manager.NoSuchUnit"
            }
            Failure::Refused { .. } => "io.tentpole.Manager.Refused",
            Failure::InvalidUnits { .. } => "io.tentpole.Manager.InvalidUnits",
            Failure::Failed { .. } => "io.tentpole.Manager.Failed",
            Failure::ShuttingDown => "io.tentpole.Manager.ShuttingDown",
            Failure::Superseded { .. } => "io.tentpole.Manager.Superseded",
            Failure::Malformed { .. } => "io.tentpole.Manager.Malformed",
            Failure::PermissionDenied => "org.varlink.service.PermissionDenied",
            Failure::InterfaceNotFound { .. } => "org.varlink.service.InterfaceNotFound",
            Failure::MethodNotFound { .. } => "org.varlink.service.MethodNotFound",
            Failure::MethodNotImplemented { .. } => "org.varlink.service.MethodNotImplemented",
            Failure::InvalidParameter { .. } => "org.varlink.service.InvalidParameter",
            Failure::ExpectedMore => "org.varlink.service.ExpectedMore",
        }
    }
}

impl Call {
    /// The method's full name.
    pub fn method(&self) -> &'static str {
        match self {
            Call::Status { .. } => "io.tentpole.Manager.Status",
            Call::Start { .. } => "io.tentpole.Manager.Start",
            Call::Stop { .. } => "io.tentpole.Manager.Stop",
            Call::Restart { .. } => "io.tentpole.Manager.Restart",
            Call::Reload { .. } => "io.tentpole.Manager.Reload",
            Call::Apply { .. } => "io.tentpole.Manager.Apply",
            Call::Plan => "io.tentpole.Manager.Plan",
            Call::Upgrade { .. } => "io.tentpole.Manager.Upgrade",
            Call::Scale { .. } => "io.tentpole.Manager.Scale",
            Call::Signal { .. } => "io.tentpole.Manager.Signal",
            Call::Shutdown { .. } => "io.tentpole.Manager.Shutdown",
            Call::GetInfo => "org.varlink.service.GetInfo",
            Call::GetInterfaceDescription { .. } => "org.varlink.service.GetInterfaceDescription",
        }
    }

    /// The parameters as they are sent.
    pub(super) fn parameters(&self) -> Value {
        match self {
            Call::Status { names } => json!({ "names": names }),
            Call::Start { names, all, wait }
            | Call::Stop { names, all, wait }
            | Call::Restart { names, all, wait }
            | Call::Reload { names, all, wait } => {
                json!({ "names": names, "all": all, "wait": wait })
            }
            Call::Scale { name, to, wait } => match to {
                Amount::To(count) => json!({ "name": name, "numprocesses": count, "wait": wait }),
                Amount::By(change) => json!({ "name": name, "by": change, "wait": wait }),
            },
            Call::Signal {
                name,
                signal,
                wid,
                children,
            } => json!({ "name": name, "signal": signal, "wid": wid, "children": children }),
            Call::Apply { dry_run, wait } => json!({ "dry_run": dry_run, "wait": wait }),
            Call::Shutdown { wait } | Call::Upgrade { wait } => json!({ "wait": wait }),
            Call::Plan | Call::GetInfo => json!({}),
            Call::GetInterfaceDescription { interface } => json!({ "interface": interface }),
        }
    }

    /// Reads a call from what was sent. The error is what to answer.
    pub(super) fn read(method: &str, parameters: Option<Value>) -> Result<Call, Failure> {
        let (interface, short) = method.rsplit_once('.').unwrap_or((method, ""));
        let mut given = match parameters {
            None | Some(Value::Null) => Given(Map::new()),
            Some(Value::Object(map)) => Given(map),
            Some(_) => return Err(invalid("parameters")),
        };
        let call = match (interface, short) {
            (INTERFACE, "Status") => Call::Status {
                names: given.take("names")?.unwrap_or_default(),
            },
            (INTERFACE, "Start") => {
                let (names, all, wait) = given.which()?;
                Call::Start { names, all, wait }
            }
            (INTERFACE, "Stop") => {
                let (names, all, wait) = given.which()?;
                Call::Stop { names, all, wait }
            }
            (INTERFACE, "Restart") => {
                let (names, all, wait) = given.which()?;
                Call::Restart { names, all, wait }
            }
            (INTERFACE, "Reload") => {
                let (names, all, wait) = given.which()?;
                Call::Reload { names, all, wait }
            }
            (INTERFACE, "Apply") => Call::Apply {
                dry_run: given.take("dry_run")?.unwrap_or(false),
                wait: given.wait()?,
            },
            (INTERFACE, "Plan") => Call::Plan,
            (INTERFACE, "Upgrade") => Call::Upgrade {
                wait: given.wait()?,
            },
            (INTERFACE, "Scale") => Call::Scale {
                name: given.need("name")?,
                to: given.amount()?,
                wait: given.wait()?,
            },
            (INTERFACE, "Signal") => Call::Signal {
                name: given.need("name")?,
                signal: given.need("signal")?,
                wid: match given.take("wid")? {
                    Some(0) => return Err(invalid("wid")),
                    wid => wid,
                },
                children: given.take("children")?.unwrap_or(false),
            },
            (INTERFACE, "Shutdown") => Call::Shutdown {
                wait: given.wait()?,
            },
            (SERVICE, "GetInfo") => Call::GetInfo,
            (SERVICE, "GetInterfaceDescription") => Call::GetInterfaceDescription {
                interface: given.need("interface")?,
            },
            (INTERFACE, short) if NOT_BUILT.contains(&short) => {
                return Err(Failure::MethodNotImplemented {
                    method: method.into(),
                });
            }
            (INTERFACE | SERVICE, _) => {
                return Err(Failure::MethodNotFound {
                    method: method.into(),
                });
            }
            (_, _) => {
                return Err(Failure::InterfaceNotFound {
                    interface: interface.into(),
                });
            }
        };
        given.end()?;
        Ok(call)
    }
}

/// Parameters that are still to be read. One that is null is as one that is absent, as Varlink's `?` means it.
struct Given(Map<String, Value>);

impl Given {
    fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Failure> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(value) => serde_json::from_value(value).map_err(|_| invalid(name)),
        }
    }

    fn need<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Failure> {
        self.take(name)?.ok_or_else(|| invalid(name))
    }

    fn wait(&mut self) -> Result<bool, Failure> {
        Ok(self.take("wait")?.unwrap_or(true))
    }

    /// Which watchers: either names or all, so that a forgotten name never stops everything.
    fn which(&mut self) -> Result<(Vec<String>, bool, bool), Failure> {
        let names: Vec<String> = self.take("names")?.unwrap_or_default();
        let all = self.take("all")?.unwrap_or(false);
        match (names.is_empty(), all) {
            (true, false) => Err(invalid("names")),
            (false, true) => Err(invalid("all")),
            (true, true) | (false, false) => Ok((names, all, self.wait()?)),
        }
    }

    fn amount(&mut self) -> Result<Amount, Failure> {
        match (self.take("numprocesses")?, self.take("by")?) {
            (Some(count), None) => Ok(Amount::To(count)),
            (None, Some(change)) => Ok(Amount::By(change)),
            (None, None) => Err(invalid("numprocesses")),
            (Some(_), Some(_)) => Err(invalid("by")),
        }
    }

    /// Refuses what was not asked for: a misspelt parameter must not be taken as one that was left out.
    fn end(self) -> Result<(), Failure> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(invalid(name)),
        }
    }
}

fn invalid(parameter: &str) -> Failure {
    Failure::InvalidParameter {
        parameter: parameter.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, parameters: Value) -> Result<Call, Failure> {
        Call::read(&format!("{INTERFACE}.{method}"), Some(parameters))
    }

    #[track_caller]
    fn refuses(method: &str, parameters: Value, parameter: &str) {
        assert_eq!(read(method, parameters), Err(invalid(parameter)));
    }

    #[test]
    fn a_call_waits_unless_it_says_otherwise() {
        let start = |wait| Call::Start {
            names: vec!["web".into()],
            all: false,
            wait,
        };
        assert_eq!(read("Start", json!({"names": ["web"]})), Ok(start(true)));
        assert_eq!(
            read("Start", json!({"names": ["web"], "wait": null})),
            Ok(start(true))
        );
        assert_eq!(
            read("Start", json!({"names": ["web"], "wait": false})),
            Ok(start(false))
        );
        assert_eq!(
            read("Shutdown", json!({})),
            Ok(Call::Shutdown { wait: true })
        );
    }

    #[test]
    fn parameters_may_be_left_out_where_all_are_optional() {
        let all = Ok(Call::Status { names: vec![] });
        assert_eq!(Call::read("io.tentpole.Manager.Status", None), all);
        assert_eq!(
            Call::read("io.tentpole.Manager.Status", Some(Value::Null)),
            all
        );
        assert_eq!(read("Status", json!({})), all);
    }

    #[test]
    fn a_forgotten_name_is_not_everything() {
        for method in ["Start", "Stop", "Restart", "Reload"] {
            refuses(method, json!({}), "names");
            refuses(method, json!({"names": []}), "names");
            refuses(method, json!({"all": false}), "names");
            refuses(method, json!({"names": ["web"], "all": true}), "all");
        }
    }

    #[test]
    fn scale_takes_a_number_or_a_change_and_not_both() {
        let scale = |to| {
            Ok(Call::Scale {
                name: "web".into(),
                to,
                wait: true,
            })
        };
        assert_eq!(
            read("Scale", json!({"name": "web", "numprocesses": 0})),
            scale(Amount::To(0))
        );
        assert_eq!(
            read("Scale", json!({"name": "web", "by": -2})),
            scale(Amount::By(-2))
        );
        refuses("Scale", json!({"name": "web"}), "numprocesses");
        refuses(
            "Scale",
            json!({"name": "web", "numprocesses": 1, "by": 1}),
            "by",
        );
        refuses(
            "Scale",
            json!({"name": "web", "numprocesses": -1}),
            "numprocesses",
        );
        refuses(
            "Scale",
            json!({"name": "web", "numprocesses": 4_294_967_296_u64}),
            "numprocesses",
        );
        refuses(
            "Scale",
            json!({"name": "web", "numprocesses": 1.5}),
            "numprocesses",
        );
        refuses("Scale", json!({"numprocesses": 1}), "name");
    }

    #[test]
    fn signal_is_kept_as_typed_and_wid_is_never_zero() {
        assert_eq!(
            read(
                "Signal",
                json!({"name": "web", "signal": "SIGuSr1", "wid": 3, "children": true})
            ),
            Ok(Call::Signal {
                name: "web".into(),
                signal: "SIGuSr1".into(),
                wid: Some(3),
                children: true
            })
        );
        refuses(
            "Signal",
            json!({"name": "web", "signal": "HUP", "wid": 0}),
            "wid",
        );
        refuses("Signal", json!({"name": "web"}), "signal");
        refuses("Signal", json!({"name": "web", "signal": 1}), "signal");
    }

    #[test]
    fn apply_changes_something_unless_it_says_otherwise() {
        let apply = |dry_run, wait| Ok(Call::Apply { dry_run, wait });
        assert_eq!(read("Apply", json!({})), apply(false, true));
        assert_eq!(read("Apply", json!({"dry_run": null})), apply(false, true));
        assert_eq!(read("Apply", json!({"dry_run": true})), apply(true, true));
        assert_eq!(read("Apply", json!({"wait": false})), apply(false, false));
        // Spelled another way it must not apply.
        refuses("Apply", json!({"dry-run": true}), "dry-run");
        refuses("Apply", json!({"dry_run": 1}), "dry_run");
        refuses("Plan", json!({"dry_run": true}), "dry_run");
        assert_eq!(read("Plan", json!({})), Ok(Call::Plan));
        assert_eq!(read("Upgrade", json!({})), Ok(Call::Upgrade { wait: true }));
        refuses("Upgrade", json!({"to": "0.2"}), "to");
    }

    #[test]
    fn of_very_many_mistakes_the_first_are_told_and_the_rest_counted() {
        let told = |count: usize| match Failure::invalid_units((0..count).map(|n| n.to_string())) {
            Failure::InvalidUnits { findings } => findings,
            other => panic!("{other:?}"),
        };
        assert_eq!(told(2), ["0", "1"]);
        assert_eq!(told(MOST_FINDINGS).len(), MOST_FINDINGS);
        let many = told(MOST_FINDINGS + 3);
        assert_eq!(many.len(), MOST_FINDINGS + 1);
        assert_eq!(many.last().map(String::as_str), Some("and 3 more"));
    }

    #[test]
    fn an_unknown_parameter_is_named() {
        refuses("Status", json!({"name": "web"}), "name");
        refuses("Stop", json!({"names": ["web"], "al": true}), "al");
        refuses("Status", json!(["web"]), "parameters");
        assert_eq!(
            Call::read("org.varlink.service.GetInfo", Some(json!({"x": 1}))),
            Err(invalid("x"))
        );
    }

    #[test]
    fn what_is_not_there_and_what_is_not_built_are_told_apart() {
        let answer = |method: &str| Call::read(method, None).unwrap_err();
        for short in NOT_BUILT {
            let method = format!("{INTERFACE}.{short}");
            assert_eq!(
                answer(&method),
                Failure::MethodNotImplemented {
                    method: method.clone()
                }
            );
        }
        for method in [
            "io.tentpole.Manager.status",
            "io.tentpole.Manager.",
            "org.varlink.service.Pause",
        ] {
            assert_eq!(
                answer(method),
                Failure::MethodNotFound {
                    method: method.into()
                }
            );
        }
        for (method, interface) in [
            ("io.tentpole.Status", "io.tentpole"),
            ("io.tentpole.manager.Status", "io.tentpole.manager"),
            ("Status", "Status"),
            ("", ""),
            (".Status", ""),
        ] {
            assert_eq!(
                answer(method),
                Failure::InterfaceNotFound {
                    interface: interface.into()
                }
            );
        }
    }

    #[test]
    fn both_interfaces_describe_themselves_and_others_do_not() {
        for (name, _) in INTERFACES {
            let Ok(Reply::Description(text)) = Reply::description(name) else {
                panic!("no description of {name}");
            };
            assert!(text.contains(&format!("\ninterface {name}\n")));
        }
        assert_eq!(
            Reply::description("io.tentpole"),
            Err(Failure::InterfaceNotFound {
                interface: "io.tentpole".into()
            })
        );
    }
}
