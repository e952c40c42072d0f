//! The keys of `[watcher.NAME]`, and what does not go together in it.

use super::super::doubt::Doubt;
use super::super::field::{Field, Vocabulary};
use super::super::nearest::nearest;
use super::super::value::{in_quotes, signal_name, split_words};
use super::super::{
    Arrange, At, Finding, Findings, NotifyAccess, Output, Principal, Reload, Restart, Signal,
    Stdin, Watcher, WatcherKind, Words,
};
use super::{Key, Reading, Slot, Table};
use std::time::Duration;

keys! {
    WATCHER: WatcherDraft = |d, f| {
        "cmd" => f.words() => d.cmd;
        "args" => f.split_words() => d.watcher.args;
        "executable" => f.filled_text() => d.watcher.executable;
        "shell" => f.boolean() => d.watcher.shell;
        "shell_args" => f.split_words() => d.watcher.shell_args;
        "sockets" => f.names() => d.watcher.sockets;
        "use_sockets" => f.boolean() => d.watcher.use_sockets;
        "listen_fds" => f.boolean() => d.watcher.listen_fds;
        "stdin" => stdin(f) => d.watcher.stdin;
        "stdin_socket" => f.filled_text() => d.watcher.stdin_socket;
        "numprocesses" => f.integer(0..=100_000) => d.watcher.numprocesses;
        "singleton" => f.boolean() => d.watcher.singleton;
        "type" => f.word(WATCHER_KINDS) => d.watcher.kind;
        "warmup_delay" => f.duration() => d.watcher.warmup_delay;
        "ready_delay" => f.duration() => d.watcher.ready_delay;
        "start_timeout" => f.timeout_or_zero() => d.watcher.start_timeout;
        "watchdog" => f.interval_or_off() => d.watcher.watchdog;
        "watchdog_signal" => f.signal() => d.watcher.watchdog_signal;
        "notify_access" => f.word(NOTIFY_ACCESSES) => d.watcher.notify_access;
        "autostart" => f.boolean() => d.watcher.autostart;
        "on_demand" => f.boolean() => d.watcher.on_demand;
        "restart" instead of ["respawn"] => f.word(RESTARTS) => d.restart;
        "respawn" instead of ["restart"] => f.boolean() => d.respawn;
        "restart_delay" => f.duration() => d.watcher.restart_delay;
        "restart_max_delay" => f.tick() => d.restart_max_delay;
        "restart_reset" => f.tick() => d.watcher.restart_reset;
        "max_retry" => max_retry(f) => d.watcher.max_retry;
        "stop_signal" => f.signal() => d.watcher.stop_signal;
        "graceful_timeout" => f.timeout() => d.watcher.graceful_timeout;
        "stop_children" => f.boolean() => d.watcher.stop_children;
        "reload" instead of ["send_hup"] => reload(f) => d.reload;
        "send_hup" instead of ["reload"] => f.boolean() => d.send_hup;
        "reload_surge" => f.integer(1..=100_000) => d.watcher.reload_surge;
        "max_age" => f.interval_or_off() => d.watcher.max_age;
        "max_age_variance" => f.duration() => d.watcher.max_age_variance;
        "critical" => f.boolean() => d.watcher.critical;
        "priority" => f.integer(i32::MIN..=i32::MAX) => d.watcher.priority;
        "after" => f.names() => d.watcher.after;
        "requires" => f.names() => d.watcher.requires;
        "user" instead of ["uid"] => f.principal() => d.watcher.user;
        "uid" instead of ["user"] => f.principal() => d.watcher.user;
        "group" instead of ["gid"] => f.principal() => d.watcher.group;
        "gid" instead of ["group"] => f.principal() => d.watcher.group;
        "supplementary_groups" => groups(f) => d.watcher.supplementary_groups;
        "umask" => f.mode(0o777) => d.watcher.umask;
        "working_dir" => f.filled_text() => d.watcher.working_dir;
        "nice" => f.integer(-20..=19) => d.watcher.nice;
        "oom_score_adj" => f.integer(-1000..=1000) => d.watcher.oom_score_adj;
        "cpu_affinity" => cpu_affinity(f) => d.watcher.cpu_affinity;
        "rlimits" => f.limits() => d.watcher.rlimits;
        "env" => f.environment() => d.watcher.env;
        "env_file" => env_file(f) => d.watcher.env_file;
        "copy_env" => f.boolean() => d.watcher.copy_env;
        "virtualenv" => f.filled_text() => d.watcher.virtualenv;
        "stdout" => output(f) => d.watcher.stdout;
        "stderr" => output(f) => d.watcher.stderr;
    }
    unbuilt:
        "idle_timeout", "accept", "max_connections", "max_connections_per_source",
        "autoscale", "no_new_privileges", "capabilities", "ambient_capabilities",
        "read_only_paths", "read_write_paths", "system_call_filter", "hooks",
        "fdstore_max", "healthcheck";
}

const WATCHER_KINDS: Vocabulary<WatcherKind> = &[
    ("exec", Some(WatcherKind::Exec)),
    ("notify", Some(WatcherKind::Notify)),
    ("oneshot", Some(WatcherKind::Oneshot)),
];

const NOTIFY_ACCESSES: Vocabulary<NotifyAccess> = &[
    ("none", Some(NotifyAccess::None)),
    ("main", Some(NotifyAccess::Main)),
    ("all", Some(NotifyAccess::All)),
];

const RESTARTS: Vocabulary<Restart> = &[
    ("always", Some(Restart::Always)),
    ("on-failure", Some(Restart::OnFailure)),
    ("never", Some(Restart::Never)),
];

/// A path has a table of its own.
#[derive(Clone, Copy)]
enum OutputWord {
    Inherit,
    Null,
}

const OUTPUTS: Vocabulary<OutputWord> = &[
    ("inherit", Some(OutputWord::Inherit)),
    ("null", Some(OutputWord::Null)),
    ("journal", None),
    ("prefix", None),
];

/// A watcher before its keys are held against each other.
pub(super) struct WatcherDraft {
    watcher: Watcher,
    cmd: Option<At<Words>>,
    restart: Option<At<Restart>>,
    respawn: Option<At<bool>>,
    restart_max_delay: Option<At<Duration>>,
    reload: Option<At<Reload>>,
    send_hup: Option<At<bool>>,
}

/// The `[watcher.NAME]` table. Where its command is not known, it gets one in which nothing is wrong.
pub fn watcher(table: &Table<'_>, findings: &mut Findings) -> Reading<Watcher> {
    let before = findings.errors();
    let name = At {
        value: table.name.to_string(),
        place: table.header,
    };
    let no_cmd = At::nowhere(Words::List(Vec::new()));
    let mut draft = WatcherDraft {
        // The command is replaced below.
        watcher: Watcher::new(name, table.folder.to_path_buf(), no_cmd),
        cmd: None,
        restart: None,
        respawn: None,
        restart_max_delay: None,
        reload: None,
        send_hup: None,
    };
    let mut doubt = table.read(WATCHER, &mut draft, findings);
    if !table.is_partial {
        let is_good = check_command(table, &draft, &doubt, findings);
        draft.cmd = draft.cmd.filter(|_| is_good);
        settle_restart(table, &mut draft, &doubt, findings);
        settle_reload(table, &mut draft, &doubt, findings);
        check_watcher(table, &draft.watcher, &doubt, findings);
    }
    draft.watcher.cmd = draft.cmd.unwrap_or_else(|| {
        doubt.add(["cmd"]);
        At::nowhere(Words::List(vec![At::nowhere("unknown".to_string())]))
    });
    Reading::new(draft.watcher, doubt, table, findings.errors() > before)
}

/// Whether the command can be executed, as far as it is known.
fn check_command(
    table: &Table<'_>,
    draft: &WatcherDraft,
    doubt: &Doubt,
    findings: &mut Findings,
) -> bool {
    let label = table.label();
    if table.place("cmd").is_none() && !doubt.is_about(&["cmd"]) {
        let message = format!("{label} has no command; write `cmd = \"...\"`");
        findings.push(Finding::error(table.header, message));
    }
    let Some(cmd) = &draft.cmd else { return true };
    let fault = match &cmd.value {
        Words::Text(_) if doubt.is_about(&["shell"]) => None,
        // The shell splits it, by rules of its own.
        Words::Text(text) if draft.watcher.shell => {
            text.trim().is_empty().then(|| "is empty".to_string())
        }
        Words::Text(text) => match split_words(text) {
            Err(why) => Some(format!("cannot be split into words: {why}")),
            Ok(words) => fault_of_words(words.first()),
        },
        Words::List(words) => fault_of_words(words.first().map(|word| &word.value)),
    };
    if let Some(fault) = fault {
        findings.push(Finding::error(
            cmd.place,
            format!("`cmd` of {label} {fault}"),
        ));
        return false;
    }
    true
}

fn fault_of_words(first: Option<&String>) -> Option<String> {
    match first {
        None => Some("is empty; write a program and its arguments".to_string()),
        Some(first) if first.trim().is_empty() => {
            Some("has an empty first word; write a program there".to_string())
        }
        Some(_) => None,
    }
}

/// Brings `restart`, Circus's `respawn`, the type and the delays together.
fn settle_restart(
    table: &Table<'_>,
    draft: &mut WatcherDraft,
    doubt: &Doubt,
    findings: &mut Findings,
) {
    let label = table.label();
    let watcher = &mut draft.watcher;
    let is_oneshot = watcher.kind == WatcherKind::Oneshot;
    watcher.restart = match (&draft.restart, &draft.respawn) {
        (Some(restart), Some(respawn)) => {
            if respawn.value == (restart.value == Restart::Never) {
                let message = format!(
                    "`respawn = {}` of {label} contradicts its `restart`; remove `respawn`",
                    respawn.value
                );
                findings.push(Finding::error(respawn.place, message));
            }
            restart.value
        }
        (Some(restart), None) => restart.value,
        (None, Some(respawn)) if !respawn.value => Restart::Never,
        (None, _) if is_oneshot => Restart::OnFailure,
        (None, _) => Restart::Always,
    };
    let always = match (&draft.restart, &draft.respawn) {
        (Some(restart), _) if restart.value == Restart::Always => {
            Some((restart.place, "restart = \"always\""))
        }
        (None, Some(respawn)) if respawn.value => Some((respawn.place, "respawn = true")),
        _ => None,
    };
    if let Some((place, always)) = always
        && is_oneshot
    {
        let message = format!(
            "`{always}` of {label} would run a `oneshot` for ever; write `restart = \"on-failure\"` or `\"never\"`"
        );
        findings.push(Finding::error(place, message));
    }
    match &draft.restart_max_delay {
        Some(most) if most.value < watcher.restart_delay && !doubt.is_about(&["restart_delay"]) => {
            let message =
                format!("`restart_max_delay` of {label} is shorter than its `restart_delay`");
            findings.push(Finding::error(most.place, message));
        }
        Some(most) => watcher.restart_max_delay = most.value,
        None => watcher.restart_max_delay = watcher.restart_max_delay.max(watcher.restart_delay),
    }
}

/// Brings `reload` and Circus's `send_hup` together.
fn settle_reload(
    table: &Table<'_>,
    draft: &mut WatcherDraft,
    doubt: &Doubt,
    findings: &mut Findings,
) {
    const HUP: Reload = Reload::Signal(Signal(libc::SIGHUP));
    let label = table.label();
    draft.watcher.reload = match (&draft.reload, &draft.send_hup) {
        (Some(reload), Some(send_hup)) => {
            if send_hup.value != (reload.value == HUP) {
                let message = format!(
                    "`send_hup = {}` of {label} contradicts its `reload`; remove `send_hup`",
                    send_hup.value
                );
                findings.push(Finding::error(send_hup.place, message));
            }
            reload.value
        }
        (Some(reload), None) => reload.value,
        (None, Some(send_hup)) if send_hup.value => HUP,
        (None, _) => Reload::Rolling,
    };
    if draft.watcher.max_age.is_none()
        && !doubt.is_about(&["max_age"])
        && let Some(place) = table.key_place("max_age_variance")
    {
        let message = format!("`max_age_variance` of {label} has no effect without `max_age`");
        findings.push(Finding::warning(place, message));
    }
}

/// What does not go together in a watcher.
fn check_watcher(table: &Table<'_>, watcher: &Watcher, doubt: &Doubt, findings: &mut Findings) {
    let label = table.label();
    for (ours, circus) in [("user", "uid"), ("group", "gid")] {
        if let (Some(_), Some(place)) = (table.place(ours), table.key_place(circus)) {
            let message =
                format!("{label} has both `{ours}` and `{circus}`, which are the same; keep one");
            findings.push(Finding::error(place, message));
        }
    }
    let numprocesses = watcher.numprocesses.value;
    if watcher.singleton && numprocesses > 1 {
        let message = format!(
            "`numprocesses` of {label} is {numprocesses}, and `singleton` forbids more than 1"
        );
        findings.push(Finding::error(watcher.numprocesses.place, message));
    }
    if watcher.use_sockets
        && let Some(place) = table.key_place("sockets")
    {
        let message = format!(
            "{label} has `sockets`, and `use_sockets`, which passes every socket; keep one"
        );
        findings.push(Finding::error(place, message));
    }
    if let (Some(_), Some(place)) = (table.place("stdin_socket"), table.key_place("stdin")) {
        let message = format!("{label} has both `stdin` and `stdin_socket`; keep one");
        findings.push(Finding::error(place, message));
    }
    if watcher.notify_access == NotifyAccess::None
        && let Some(place) = table.place("notify_access")
    {
        let needs = if watcher.kind == WatcherKind::Notify {
            Some("`type = \"notify\"`")
        } else {
            watcher.watchdog.map(|_| "`watchdog`")
        };
        if let Some(needs) = needs {
            let message = format!(
                "`notify_access = \"none\"` of {label} shuts out what its {needs} waits for"
            );
            findings.push(Finding::error(place, message));
        }
    }
    if !watcher.shell
        && !doubt.is_about(&["shell"])
        && let Some(place) = table.key_place("shell_args")
    {
        let message = format!("`shell_args` of {label} has no effect without `shell = true`");
        findings.push(Finding::warning(place, message));
    }
}

fn stdin(field: &mut Field<'_, '_>) -> Option<Stdin> {
    match field.text()? {
        "null" => Some(Stdin::Null),
        "socket" => {
            field.refuse_unbuilt("socket");
            None
        }
        text if text.contains('/') || text.contains('.') || text.trim().is_empty() => {
            field.filled_text_here().map(Stdin::File)
        }
        text => {
            field.refuse(format_args!(
                "must be `\"null\"` or a file; write `{}` for a file in the unit file's folder",
                in_quotes(&format!("./{text}"))
            ));
            None
        }
    }
}

fn output(field: &mut Field<'_, '_>) -> Option<Output> {
    const EXAMPLE: &str = "{ file = \"/var/log/web.log\" }";
    if field.is_table() {
        let table = field.table(
            EXAMPLE,
            &["file"],
            &["max_bytes", "backup_count", "time_format"],
        )?;
        let Some(mut file) = field.part(table, "file") else {
            field.refuse(format_args!("has no `file`; write `{EXAMPLE}`"));
            return None;
        };
        return file.filled_text_here().map(Output::File);
    }
    if let Some(text) = field.as_text()
        && (text.contains('/') || text.contains('.'))
    {
        field.refuse(format_args!(
            "is a path; write `{{ file = {} }}`",
            in_quotes(text)
        ));
        return None;
    }
    Some(match field.word(OUTPUTS)? {
        OutputWord::Inherit => Output::Inherit,
        OutputWord::Null => Output::Null,
    })
}

/// `"rolling"`, or a signal that a program can act on.
fn reload(field: &mut Field<'_, '_>) -> Option<Reload> {
    const ROLLING: &str = "rolling";
    match field.as_text() {
        Some(ROLLING) => return Some(Reload::Rolling),
        // Else it would be taken for the name of a signal that was mistyped.
        Some(text) if nearest(text, [ROLLING]).is_some() => {
            let wanted = "`\"rolling\"` or a signal such as `\"HUP\"`";
            field.mismatch_but(wanted, "; did you mean `\"rolling\"`?");
            return None;
        }
        None if !field.is_number() => {
            field.mismatch("`\"rolling\"` or a signal such as `\"HUP\"`");
            return None;
        }
        Some(_) | None => (),
    }
    let signal = field.signal()?;
    if signal.0 == libc::SIGKILL || signal.0 == libc::SIGSTOP {
        field.refuse(format_args!(
            "can't be `{}`, which no program can catch; write `\"rolling\"`, or the signal on which it reloads",
            signal_name(signal)
        ));
        return None;
    }
    Some(Reload::Signal(signal))
}

fn max_retry(field: &mut Field<'_, '_>) -> Option<Option<u32>> {
    let most = field.integer(-1..=i64::from(i32::MAX))?;
    // -1 does not fit, and is never.
    Some(u32::try_from(most).ok())
}

fn groups(field: &mut Field<'_, '_>) -> Option<Vec<At<Principal>>> {
    field.list("names and numbers, such as `[\"adm\", 33]`", |group| {
        group.principal()
    })
}

fn cpu_affinity(field: &mut Field<'_, '_>) -> Option<Vec<u32>> {
    if let Some(meant) = field.as_text().and_then(cpus_meant) {
        field.mismatch(format_args!("a list of CPU numbers, here `{meant:?}`"));
        return None;
    }
    let items = field.list("CPU numbers, such as `[0, 2]`", |cpu| cpu.integer(0..=1023))?;
    let mut cpus: Vec<u32> = items.into_iter().map(|cpu| cpu.value).collect();
    if cpus.is_empty() {
        field.refuse("is empty; write the CPUs to run on, such as `[0, 2]`");
        return None;
    }
    cpus.arrange();
    cpus.dedup();
    Some(cpus)
}

/// The CPUs of a text such as `0-3,8`, if they are few enough to be written out.
fn cpus_meant(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.split([',', ' ']).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > 1023 || cpus.len() > 16 {
            return None;
        }
        cpus.extend((first..=last).take(17));
    }
    (1..=16).contains(&cpus.len()).then_some(cpus)
}

fn env_file(field: &mut Field<'_, '_>) -> Option<String> {
    let text = field.filled_text()?;
    if text == "-" {
        field.refuse("has no path after `-`");
        return None;
    }
    Some(text)
}
