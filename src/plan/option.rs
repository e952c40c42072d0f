//! What `$(circus.OPTION)` stands for.

use super::Identity;
use super::substitute::TextOption;
use crate::unit::{
    At, NotifyAccess, Output, Principal, Reload, Restart, Signal, Stdin, Watcher, WatcherKind,
    signal_name,
};
use std::time::Duration;

/// What a name in a substitution stands for.
#[derive(Debug, PartialEq)]
pub(super) enum Value {
    /// This text, for every worker.
    Fixed(String),
    /// Text that may hold substitutions itself.
    Text(TextOption),
    /// An option that the watcher does not set and that has no default.
    Unset,
    /// A list or a table, which is no single value.
    Many,
    /// No option.
    Unknown,
}

/// The options that have a value, for hints.
pub(super) const NAMES: [&str; 53] = [
    "autostart",
    "copy_env",
    "critical",
    "env_file",
    "executable",
    "gid",
    "graceful_timeout",
    "group",
    "listen_fds",
    "max_age",
    "max_age_variance",
    "max_retry",
    "name",
    "nice",
    "notify_access",
    "numprocesses",
    "on_demand",
    "oom_score_adj",
    "priority",
    "ready_delay",
    "reload",
    "reload_surge",
    "respawn",
    "restart",
    "restart_delay",
    "restart_max_delay",
    "restart_reset",
    "rlimits.nofile",
    "send_hup",
    "shell",
    "singleton",
    "socket",
    "sockets",
    "start_timeout",
    "stderr",
    "stdin",
    "stdin_socket",
    "stdout",
    "stop_children",
    "stop_signal",
    "type",
    "uid",
    "umask",
    "use_sockets",
    "user",
    "virtualenv",
    "warmup_delay",
    "watchdog",
    "watchdog_signal",
    "wid",
    "working_dir",
    "env",
    "rlimits",
];

/// The value of the option `name`, in any case. Durations are seconds, an absent limit is `infinity`, and `max_retry`
/// without one is -1, as in Circus.
pub(super) fn value(watcher: &Watcher, identity: Option<&Identity>, name: &str) -> Value {
    let fixed = |value: &dyn ToString| Value::Fixed(value.to_string());
    let maybe = |value: Option<String>| value.map_or(Value::Unset, Value::Fixed);
    let number = |value: Option<i64>| value.map_or(Value::Unset, |n| Value::Fixed(n.to_string()));
    let text = |set: bool, option| {
        if set {
            Value::Text(option)
        } else {
            Value::Unset
        }
    };
    let limit =
        |value: Option<Duration>| Value::Fixed(value.map_or_else(|| "infinity".into(), seconds));
    let name = name.to_ascii_lowercase();
    if let Some(resource) = name.strip_prefix("rlimits.") {
        return maybe(soft_limit(watcher, resource));
    }
    match name.as_str() {
        "name" => fixed(&watcher.name.value),
        "numprocesses" => fixed(&watcher.numprocesses.value),
        "singleton" => fixed(&watcher.singleton),
        "type" => fixed(&match watcher.kind {
            WatcherKind::Exec => "exec",
            WatcherKind::Notify => "notify",
            WatcherKind::Oneshot => "oneshot",
        }),
        "warmup_delay" => Value::Fixed(seconds(watcher.warmup_delay)),
        "ready_delay" => Value::Fixed(seconds(watcher.ready_delay)),
        "start_timeout" => limit(watcher.start_timeout),
        "watchdog" => maybe(watcher.watchdog.map(seconds)),
        "watchdog_signal" => Value::Fixed(signal_name(watcher.watchdog_signal)),
        "notify_access" => fixed(&match watcher.notify_access {
            NotifyAccess::None => "none",
            NotifyAccess::Main => "main",
            NotifyAccess::All => "all",
        }),
        "autostart" => fixed(&watcher.autostart),
        "on_demand" => fixed(&watcher.on_demand.value),
        "restart" => fixed(&match watcher.restart {
            Restart::Always => "always",
            Restart::OnFailure => "on-failure",
            Restart::Never => "never",
        }),
        "respawn" => fixed(&(watcher.restart != Restart::Never)),
        "restart_delay" => Value::Fixed(seconds(watcher.restart_delay)),
        "restart_max_delay" => Value::Fixed(seconds(watcher.restart_max_delay)),
        "restart_reset" => Value::Fixed(seconds(watcher.restart_reset)),
        "max_retry" => Value::Fixed(
            watcher
                .max_retry
                .map_or_else(|| "-1".into(), |n| n.to_string()),
        ),
        "stop_signal" => Value::Fixed(signal_name(watcher.stop_signal)),
        "graceful_timeout" => limit(watcher.graceful_timeout),
        "stop_children" => fixed(&watcher.stop_children),
        "reload" => Value::Fixed(match watcher.reload {
            Reload::Rolling => "rolling".into(),
            Reload::Signal(signal) => signal_name(signal),
        }),
        "send_hup" => fixed(&(watcher.reload == Reload::Signal(Signal(libc::SIGHUP)))),
        "reload_surge" => fixed(&watcher.reload_surge),
        "max_age" => maybe(watcher.max_age.map(seconds)),
        "max_age_variance" => Value::Fixed(seconds(watcher.max_age_variance)),
        "critical" => fixed(&watcher.critical),
        "priority" => fixed(&watcher.priority),
        "shell" => fixed(&watcher.shell),
        "use_sockets" => fixed(&watcher.use_sockets),
        "listen_fds" => fixed(&watcher.listen_fds),
        "copy_env" => fixed(&watcher.copy_env),
        "stdin_socket" => maybe(watcher.stdin_socket.as_ref().map(|at| at.value.clone())),
        "user" => maybe(watcher.user.as_ref().map(|at| principal(&at.value))),
        "group" => maybe(watcher.group.as_ref().map(|at| principal(&at.value))),
        "uid" => number(identity.and_then(|identity| identity.uid).map(i64::from)),
        "gid" => number(identity.and_then(|identity| identity.gid).map(i64::from)),
        "umask" => maybe(watcher.umask.map(|mode| format!("{:04o}", mode.0))),
        "nice" => number(watcher.nice.map(i64::from)),
        "oom_score_adj" => number(watcher.oom_score_adj.map(i64::from)),
        "executable" => text(watcher.executable.is_some(), TextOption::Executable),
        "working_dir" => text(watcher.working_dir.is_some(), TextOption::WorkingDir),
        "env_file" => text(watcher.env_file.is_some(), TextOption::EnvFile),
        "virtualenv" => text(watcher.virtualenv.is_some(), TextOption::Virtualenv),
        "stdin" => match &watcher.stdin {
            Stdin::Null => fixed(&"null"),
            Stdin::File(_) => Value::Text(TextOption::Stdin),
        },
        "stdout" => output(&watcher.stdout, TextOption::Stdout),
        "stderr" => output(&watcher.stderr, TextOption::Stderr),
        "cmd"
        | "args"
        | "shell_args"
        | "socket"
        | "sockets"
        | "after"
        | "requires"
        | "supplementary_groups"
        | "cpu_affinity"
        | "rlimits"
        | "env" => Value::Many,
        _ => Value::Unknown,
    }
}

/// The text of `option` as the unit has it; `None` where there is none.
pub(super) fn text(watcher: &Watcher, option: TextOption) -> Option<&str> {
    let text = written(watcher, option)?.value.as_str();
    Some(match option {
        TextOption::EnvFile => text.strip_prefix('-').unwrap_or(text),
        _ => text,
    })
}

/// The value of `option`, and where it stands.
pub(super) fn written(watcher: &Watcher, option: TextOption) -> Option<&At<String>> {
    match option {
        TextOption::Executable => watcher.executable.as_deref(),
        TextOption::WorkingDir => watcher.working_dir.as_deref(),
        TextOption::Virtualenv => watcher.virtualenv.as_deref(),
        TextOption::EnvFile => watcher.env_file.as_deref(),
        TextOption::Stdin => match &watcher.stdin {
            Stdin::Null => None,
            Stdin::File(path) => Some(path),
        },
        TextOption::Stdout => file(&watcher.stdout),
        TextOption::Stderr => file(&watcher.stderr),
    }
}

fn file(output: &Output) -> Option<&At<String>> {
    match output {
        Output::Inherit | Output::Null => None,
        Output::File(path) => Some(path),
    }
}

fn output(output: &Output, option: TextOption) -> Value {
    match output {
        Output::Inherit => Value::Fixed("inherit".into()),
        Output::Null => Value::Fixed("null".into()),
        Output::File(_) => Value::Text(option),
    }
}

fn principal(principal: &Principal) -> String {
    match principal {
        Principal::Name(name) => name.clone(),
        Principal::Id(id) => id.to_string(),
    }
}

fn soft_limit(watcher: &Watcher, resource: &str) -> Option<String> {
    watcher
        .rlimits
        .iter()
        .find(|(known, _)| format!("{known:?}").eq_ignore_ascii_case(resource))
        .map(|(_, limit)| {
            limit
                .soft
                .map_or_else(|| "infinity".into(), |n| n.to_string())
        })
}

/// `30`, `0.5`.
fn seconds(duration: Duration) -> String {
    let nanos = duration.subsec_nanos();
    if nanos == 0 {
        return duration.as_secs().to_string();
    }
    let fraction = format!("{nanos:09}");
    format!("{}.{}", duration.as_secs(), fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::super::testing::watcher;
    use super::*;
    use crate::unit::{Limit, Mode, Resource};

    fn fixed(text: &str) -> Value {
        Value::Fixed(text.into())
    }

    #[test]
    fn durations_are_seconds() {
        assert_eq!(seconds(Duration::from_secs(30)), "30");
        assert_eq!(seconds(Duration::from_millis(500)), "0.5");
        assert_eq!(seconds(Duration::from_nanos(1)), "0.000000001");
        assert_eq!(seconds(Duration::from_millis(90_250)), "90.25");
    }

    #[test]
    fn options_have_the_values_that_were_set_or_their_defaults() {
        let mut unit = watcher("web", "true");
        unit.numprocesses = At::nowhere(5);
        unit.umask = Some(Mode(0o22));
        unit.user = Some(At::nowhere(Principal::Name("deploy".into())).into());
        unit.stdout = Output::File(At::nowhere("log".into()));
        unit.stderr = Output::Null;
        unit.reload = Reload::Signal(Signal(libc::SIGHUP));
        unit.rlimits = vec![(
            Resource::Nofile,
            Limit {
                soft: Some(4096),
                hard: None,
            },
        )];
        let identity = Identity {
            user: None,
            uid: Some(1000),
            gid: Some(33),
            groups: None,
        };
        for (name, wanted) in [
            ("name", fixed("web")),
            ("numprocesses", fixed("5")),
            ("NumProcesses", fixed("5")),
            ("warmup_delay", fixed("0")),
            ("graceful_timeout", fixed("30")),
            ("restart_delay", fixed("0.1")),
            ("max_retry", fixed("-1")),
            ("copy_env", fixed("true")),
            ("shell", fixed("false")),
            ("restart", fixed("always")),
            ("type", fixed("exec")),
            ("user", fixed("deploy")),
            ("uid", fixed("1000")),
            ("gid", fixed("33")),
            ("umask", fixed("0022")),
            ("stdout", Value::Text(TextOption::Stdout)),
            ("stderr", fixed("null")),
            ("rlimits.nofile", fixed("4096")),
            ("rlimits.core", Value::Unset),
            ("group", Value::Unset),
            ("nice", Value::Unset),
            ("watchdog", Value::Unset),
            ("reload", fixed("HUP")),
            ("send_hup", fixed("true")),
            ("reload_surge", fixed("1")),
            ("max_age", Value::Unset),
            ("max_age_variance", fixed("30")),
            ("working_dir", Value::Unset),
            ("cmd", Value::Many),
            ("after", Value::Many),
            ("listen_fd", Value::Unknown),
            ("", Value::Unknown),
        ] {
            assert_eq!(value(&unit, Some(&identity), name), wanted, "{name}");
        }
    }

    #[test]
    fn every_name_that_is_hinted_at_is_known() {
        let unit = watcher("web", "true");
        for name in NAMES.into_iter().filter(|name| *name != "wid") {
            assert_ne!(value(&unit, None, name), Value::Unknown, "{name}");
        }
    }
}
