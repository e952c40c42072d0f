//! The command line: each command's name, what may follow it, and what that means.

use super::apply::Style;
use super::{Order, Surroundings, Task};
use crate::control::call::{Amount, Call};
use crate::runtime;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// A command.
struct Verb {
    name: &'static str,
    /// Adds what may follow its name.
    define: fn(Command) -> Command,
    /// What it means.
    task: fn(&ArgMatches) -> Task,
}

/// Every command, in the order in which help shows them.
const VERBS: &[Verb] = &[
    Verb {
        name: "run",
        define: |it| {
            it
                .about("Run the manager in the foreground")
                .after_help(
                    "SIGTERM and SIGINT stop everything gracefully; a second one kills. SIGHUP does what\n\
                     `tentpole apply` does, SIGUSR2 what `tentpole upgrade` does.\n\n\
                     Example:\n  tentpole run web.toml",
                )
                .arg(paths())
                .arg(flag(
                    "no-keeper",
                    "Run as one process, without the small one that keeps the sockets if the manager is killed",
                ))
        },
        task: |typed| Task::Run {
            paths: many(typed, "paths"),
            keeper: !typed.get_flag("no-keeper"),
        },
    },
    Verb {
        name: "check",
        define: |it| {
            it.about("Validate unit files and print every finding")
                .after_help("Example:\n  tentpole check --strict /etc/tentpole/units")
                .arg(paths())
                .arg(flag("strict", "Fail on warnings too"))
                .arg(json())
        },
        task: |typed| Task::Check {
            paths: many(typed, "paths"),
            strict: typed.get_flag("strict"),
            json: typed.get_flag("json"),
        },
    },
    Verb {
        name: "plan",
        define: |it| {
            it
                .about("Show what would run, or what `apply` would change")
                .after_help(
                    "With PATH: each worker's command, sockets and environment, from these unit files alone.\n\
                     Without: what `tentpole apply` would change in the manager that runs, a line for each unit; where\n\
                     none is listening, what `tentpole run` would start from the search path.\n\n\
                     Examples:\n  tentpole plan web.toml\n  tentpole plan --json",
                )
                .arg(
                    Arg::new("paths")
                        .value_name("PATH")
                        .num_args(0..)
                        .value_parser(value_parser!(PathBuf))
                        .help("Unit files, or folders of them [default: ask the manager]"),
                )
                .arg(json())
                .arg(detailed_exitcode().conflicts_with("paths"))
        },
        task: |typed| Task::Plan {
            paths: many(typed, "paths"),
            style: style(typed),
        },
    },
    Verb {
        name: "status",
        define: |it| {
            it.about("Show sockets, watchers and workers")
                .after_help("Example:\n  tentpole status web --json")
                .arg(
                    Arg::new("names")
                        .value_name("NAME")
                        .num_args(0..)
                        .help("Show these units only"),
                )
                .arg(json())
        },
        task: |typed| Task::Status {
            names: many(typed, "names"),
            json: typed.get_flag("json"),
        },
    },
    Verb {
        name: "start",
        define: |it| {
            on_watchers(
                it,
                "Start watchers, and return when they are ready",
                "Every watcher that starts by itself: not those with `autostart = false`",
                "Example:\n  tentpole start web",
            )
        },
        task: |typed| {
            let Watchers { names, all, wait } = watchers(typed);
            Task::Act(Call::Start { names, all, wait })
        },
    },
    Verb {
        name: "stop",
        define: |it| {
            on_watchers(
                it,
                "Stop watchers; their sockets stay open and clients wait in the queue",
                "Every watcher",
                "Example:\n  tentpole stop --all",
            )
        },
        task: |typed| {
            let Watchers { names, all, wait } = watchers(typed);
            Task::Act(Call::Stop { names, all, wait })
        },
    },
    Verb {
        name: "restart",
        define: |it| {
            on_watchers(
                it,
                "Stop watchers and start them anew",
                "Every watcher that runs: not those that are stopped",
                "Example:\n  tentpole restart web worker",
            )
        },
        task: |typed| {
            let Watchers { names, all, wait } = watchers(typed);
            Task::Act(Call::Restart { names, all, wait })
        },
    },
    Verb {
        name: "reload",
        define: |it| {
            on_watchers(
                it,
                "Replace the workers of watchers without losing a connection",
                "Every watcher that runs: not those that are stopped",
                "Each worker's replacement starts beside it, and is ready before the old one is stopped. If one\n\
             fails, the reload ends, and what it has replaced already goes back. A watcher with\n\
             `reload = \"HUP\"` gets that signal instead.\n\n\
             Example:\n  tentpole reload web",
            )
        },
        task: |typed| {
            let Watchers { names, all, wait } = watchers(typed);
            Task::Act(Call::Reload { names, all, wait })
        },
    },
    Verb {
        name: "apply",
        define: |it| {
            it
                .about("Read the unit files anew, and change what runs to what they say")
                .after_help(
                    "Units that have not changed are not touched, and a mistake anywhere changes nothing. Each line\n\
                     says what is done to a unit, and which keys differ:\n  \
                     add, remove  it is new, or gone\n  \
                     scale        its number of workers alone is another\n  \
                     reload       its workers are replaced, as `tentpole reload` does\n  \
                     rebind       a socket with another address\n  \
                     set          changed in place\n\n\
                     Examples:\n  tentpole apply --dry-run\n  tentpole apply",
                )
                .arg(flag("dry-run", "Change nothing, only show what would change"))
                .arg(json())
                .arg(detailed_exitcode().requires("dry-run"))
                .arg(no_wait().conflicts_with("dry-run"))
        },
        task: |typed| Task::Apply {
            call: Call::Apply {
                dry_run: typed.get_flag("dry-run"),
                wait: !typed.get_flag("no-wait"),
            },
            style: style(typed),
        },
    },
    Verb {
        name: "scale",
        define: |it| {
            it.about("Change how many workers a watcher keeps")
                .after_help(
                    "The number stays until `apply` finds another `numprocesses` than before in the unit file, or the\n\
                     manager is started anew. There are never fewer than 0.\n\n\
                     Examples:\n  tentpole scale web 5\n  tentpole scale web -1",
                )
                .arg(watcher())
                .arg(
                    Arg::new("amount")
                        .value_name("N")
                        .required(true)
                        .allow_negative_numbers(true)
                        .value_parser(parse_amount)
                        .help("How many workers, or how many more (+1) or fewer (-1)"),
                )
                .arg(no_wait())
        },
        task: |typed| {
            Task::Act(Call::Scale {
                name: one(typed, "name"),
                to: *typed.get_one("amount").unwrap_or(&Amount::By(0)),
                wait: !typed.get_flag("no-wait"),
            })
        },
    },
    Verb {
        name: "signal",
        define: |it| {
            it.about("Send a signal to the workers of a watcher")
                .after_help(
                    "Examples:\n  tentpole signal web HUP\n  tentpole signal web USR1 --wid 2",
                )
                .arg(watcher())
                .arg(
                    Arg::new("signal")
                        .value_name("SIG")
                        .required(true)
                        .help("HUP, SIGHUP or 1"),
                )
                .arg(
                    Arg::new("wid")
                        .long("wid")
                        .value_name("N")
                        .value_parser(value_parser!(u32).range(1..))
                        .help("To this worker only"),
                )
                .arg(flag(
                    "children",
                    "To the whole process group of each worker",
                ))
        },
        task: |typed| {
            Task::Act(Call::Signal {
                name: one(typed, "name"),
                signal: one(typed, "signal"),
                wid: typed.get_one("wid").copied(),
                children: typed.get_flag("children"),
            })
        },
    },
    Verb {
        name: runtime::PROBE,
        define: |it| {
            it
                .about("Say whether this program can go on from the state that another manager has written")
                .hide(true)
                .arg(
                    Arg::new("fd")
                        .required(true)
                        .value_parser(value_parser!(i32).range(3..)),
                )
                .arg(
                    Arg::new("rest")
                        .num_args(0..)
                        .value_parser(value_parser!(OsString))
                        .trailing_var_arg(true)
                        .allow_hyphen_values(true),
                )
        },
        task: |typed| Task::Probe {
            fd: *typed.get_one("fd").unwrap_or(&3),
            arguments: many(typed, "rest"),
        },
    },
    Verb {
        name: "hello",
        define: |it| {
            it.about("Answer whoever comes to a given socket, in HTTP: a worker to try things with")
                .after_help(
                    "Example, in a unit file:\n  cmd = \"tentpole hello $(circus.socket.web)\"",
                )
                .arg(
                    Arg::new("fd")
                        .value_name("FD")
                        .value_parser(value_parser!(i32).range(3..))
                        .default_value("3")
                        .help("The descriptor, as `$(circus.socket.NAME)` gives it"),
                )
        },
        task: |typed| Task::Hello {
            fd: *typed.get_one("fd").unwrap_or(&3),
        },
    },
    Verb {
        name: "upgrade",
        define: |it| {
            it
                .about("Have the manager go on as the binary that is installed now")
                .after_help(
                    "Its pid, sockets and workers stay. If the new binary can't take over, nothing happens and the\n\
                     answer says why.\n\n\
                     Example:\n  tentpole upgrade",
                )
                .arg(no_wait())
        },
        task: |typed| {
            Task::Act(Call::Upgrade {
                wait: !typed.get_flag("no-wait"),
            })
        },
    },
    Verb {
        name: "shutdown",
        define: |it| it.about("Stop everything, then the manager").arg(no_wait()),
        task: |typed| {
            Task::Act(Call::Shutdown {
                wait: !typed.get_flag("no-wait"),
            })
        },
    },
];

/// Commands that are planned and not built. They stand in no help, and say what they are when tried.
const NOT_BUILT: [&str; 10] = [
    "pause",
    "resume",
    "logs",
    "events",
    "top",
    "metrics",
    "convert",
    "activate",
    "completions",
    "man",
];

/// What may be typed: of the commands this one alone, where it is one, since a manager should not start by building the others.
fn definition(only: Option<&OsStr>) -> Command {
    let program = Command::new("tentpole")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Binds sockets, starts the programs that serve them, and keeps both alive")
        .after_help(
            "Examples:\n  \
             tentpole check units/         find every mistake in a folder of unit files\n  \
             tentpole run units/           run what they describe, in the foreground\n  \
             tentpole status               what runs, and why something does not\n  \
             tentpole scale web +1         one more worker for watcher `web`\n  \
             tentpole apply --dry-run      what changed in the unit files would do\n  \
             tentpole apply                do it, without losing a connection\n\n\
             Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 no manager is listening, 4 no such unit.",
        )
        // clap's own complaint would list what is hidden; see `matches`.
        .override_usage("tentpole [OPTIONS] <COMMAND>")
        .arg_required_else_help(true)
        .arg(
            Arg::new("control")
                .long("control")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .global(true)
                .help("The manager's control socket [env: TENTPOLE_CONTROL]"),
        );
    if let Some(verb) = VERBS
        .iter()
        .find(|verb| only.is_some_and(|only| only == verb.name))
    {
        return program.subcommand((verb.define)(Command::new(verb.name)));
    }
    let all = VERBS
        .iter()
        .map(|verb| (verb.define)(Command::new(verb.name)));
    program.subcommands(all).subcommands(NOT_BUILT.map(|name| {
        Command::new(name).hide(true).disable_help_flag(true).arg(
            Arg::new("rest")
                .num_args(0..)
                .value_parser(value_parser!(OsString))
                .trailing_var_arg(true)
                .allow_hyphen_values(true),
        )
    }))
}

/// What the words of a command line mean, the program's own name first. The error is help, the version or a complaint,
/// ready to be printed.
pub(super) fn parse(
    words: impl IntoIterator<Item = OsString>,
    surroundings: &Surroundings,
) -> Result<Order, clap::Error> {
    let (name, typed) = matches(words)?;
    let task = match VERBS.iter().find(|verb| verb.name == name) {
        Some(verb) => (verb.task)(&typed),
        None => Task::NotBuilt(name),
    };
    let control = typed
        .get_one::<PathBuf>("control")
        .or(surroundings.control.as_ref());
    Ok(Order {
        control: control.cloned(),
        task,
    })
}

/// The command of a command line, and what was typed with it.
pub(super) fn matches(
    words: impl IntoIterator<Item = OsString>,
) -> Result<(String, ArgMatches), clap::Error> {
    let words: Vec<OsString> = words.into_iter().collect();
    let only = words.get(1).map(OsString::as_os_str);
    let mut typed = definition(only).try_get_matches_from(&words)?;
    typed.remove_subcommand().ok_or_else(|| {
        definition(None).error(
            clap::error::ErrorKind::MissingSubcommand,
            "a command is missing; `tentpole --help` lists them",
        )
    })
}

fn paths() -> Arg {
    Arg::new("paths")
        .value_name("PATH")
        .num_args(0..)
        .value_parser(value_parser!(PathBuf))
        .help(
            "Unit files, or folders of them [default: the search path, /etc/tentpole/units first]",
        )
}

fn watcher() -> Arg {
    Arg::new("name")
        .value_name("NAME")
        .required(true)
        .help("The watcher")
}

/// A command on named watchers, or on those that `all` tells of.
fn on_watchers(
    it: Command,
    about: &'static str,
    all: &'static str,
    example: &'static str,
) -> Command {
    it.about(about)
        .after_help(example)
        .arg(
            Arg::new("names")
                .value_name("NAME")
                .num_args(1..)
                .help("The watchers"),
        )
        .arg(flag("all", all))
        .group(ArgGroup::new("which").args(["names", "all"]).required(true))
        .arg(no_wait())
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help)
}

fn json() -> Arg {
    flag("json", "Print JSON")
}

fn no_wait() -> Arg {
    flag("no-wait", "Return at once, not when it is done")
}

fn detailed_exitcode() -> Arg {
    flag(
        "detailed-exitcode",
        "Exit with 2 where something would change, with 0 where nothing would",
    )
}

/// Reads `3`, `+1` or `-1`.
fn parse_amount(text: &str) -> Result<Amount, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(
            "write a number of workers such as `3`, or a change such as `+1` or `-1`".into(),
        );
    }
    // Digits with one sign or none: the only way to fail is to be too large.
    let amount = if digits.len() == text.len() {
        text.parse().ok().map(Amount::To)
    } else {
        text.parse().ok().map(Amount::By)
    };
    amount.ok_or_else(|| "that is more workers than can be counted".into())
}

/// What [`on_watchers`] has typed.
struct Watchers {
    names: Vec<String>,
    all: bool,
    wait: bool,
}

fn watchers(typed: &ArgMatches) -> Watchers {
    Watchers {
        names: many(typed, "names"),
        all: typed.get_flag("all"),
        wait: !typed.get_flag("no-wait"),
    }
}

fn style(typed: &ArgMatches) -> Style {
    Style {
        json: typed.get_flag("json"),
        detailed: typed.get_flag("detailed-exitcode"),
    }
}

fn one(typed: &ArgMatches, name: &str) -> String {
    typed.get_one::<String>(name).cloned().unwrap_or_default()
}

fn many<T: Clone + Send + Sync + 'static>(typed: &ArgMatches, name: &str) -> Vec<T> {
    typed
        .get_many(name)
        .into_iter()
        .flatten()
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::obey;
    use super::*;
    use clap::error::ErrorKind;

    fn typed(line: &str) -> Result<Order, clap::Error> {
        let words = ["tentpole"].into_iter().chain(line.split_whitespace());
        parse(words.map(OsString::from), &Surroundings::default())
    }

    #[track_caller]
    fn means(line: &str, task: Task) {
        let order = typed(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(order.task, task, "{line}");
    }

    #[track_caller]
    fn is_wrong_usage(line: &str) -> String {
        match typed(line) {
            Ok(order) => panic!("{line} means {order:?}"),
            Err(error) => {
                assert_eq!(error.exit_code(), 2, "{line}");
                error.to_string()
            }
        }
    }

    fn start(names: &[&str], all: bool, wait: bool) -> Task {
        Task::Act(Call::Start {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            all,
            wait,
        })
    }

    #[test]
    fn the_definition_has_no_contradictions() {
        definition(None).debug_assert();
    }

    #[test]
    fn watchers_are_named_or_all_are_meant_and_a_command_waits() {
        means("start web", start(&["web"], false, true));
        means(
            "start web worker --no-wait",
            start(&["web", "worker"], false, false),
        );
        means("start --no-wait web", start(&["web"], false, false));
        means("start --all", start(&[], true, true));
        means(
            "stop web",
            Task::Act(Call::Stop {
                names: vec!["web".into()],
                all: false,
                wait: true,
            }),
        );
        means(
            "restart --all --no-wait",
            Task::Act(Call::Restart {
                names: vec![],
                all: true,
                wait: false,
            }),
        );
        means(
            "reload web --no-wait",
            Task::Act(Call::Reload {
                names: vec!["web".into()],
                all: false,
                wait: false,
            }),
        );
        for command in ["start", "stop", "restart", "reload"] {
            is_wrong_usage(command);
            is_wrong_usage(&format!("{command} --no-wait"));
            is_wrong_usage(&format!("{command} web --all"));
        }
    }

    #[test]
    fn scale_takes_a_number_and_signed_changes() {
        let scale = |to, wait| {
            Task::Act(Call::Scale {
                name: "web".into(),
                to,
                wait,
            })
        };
        means("scale web 3", scale(Amount::To(3), true));
        means("scale web 0 --no-wait", scale(Amount::To(0), false));
        means("scale web +1", scale(Amount::By(1), true));
        means("scale web -1", scale(Amount::By(-1), true));
        means("scale --no-wait web -12", scale(Amount::By(-12), false));
        means("scale web --no-wait -12", scale(Amount::By(-12), false));
        for line in [
            "scale web",
            "scale web +",
            "scale web -",
            "scale web 1.5",
            "scale web ++1",
            "scale web -x",
        ] {
            is_wrong_usage(line);
        }
        assert!(is_wrong_usage("scale web many").contains("write a number of workers such as `3`"));
        for line in [
            "scale web 4294967296",
            "scale web +2147483648",
            "scale web -2147483649",
        ] {
            assert!(
                is_wrong_usage(line).contains("more workers than can be counted"),
                "{line}"
            );
        }
    }

    #[test]
    fn signal_takes_one_worker_or_a_group() {
        means(
            "signal web HUP --wid 2 --children",
            Task::Act(Call::Signal {
                name: "web".into(),
                signal: "HUP".into(),
                wid: Some(2),
                children: true,
            }),
        );
        means(
            "signal web 9",
            Task::Act(Call::Signal {
                name: "web".into(),
                signal: "9".into(),
                wid: None,
                children: false,
            }),
        );
        is_wrong_usage("signal web");
        is_wrong_usage("signal web HUP --wid 0");
        is_wrong_usage("signal web HUP --wid -1");
    }

    #[test]
    fn files_and_flags_of_the_commands_without_a_manager_are_read() {
        means(
            "run",
            Task::Run {
                paths: vec![],
                keeper: true,
            },
        );
        means(
            "run a.toml b --no-keeper",
            Task::Run {
                paths: vec!["a.toml".into(), "b".into()],
                keeper: false,
            },
        );
        means(
            "check --strict --json units",
            Task::Check {
                paths: vec!["units".into()],
                strict: true,
                json: true,
            },
        );
        means(
            "plan a.toml",
            Task::Plan {
                paths: vec!["a.toml".into()],
                style: Style::default(),
            },
        );
        means(
            "status web --json",
            Task::Status {
                names: vec!["web".into()],
                json: true,
            },
        );
        means("shutdown", Task::Act(Call::Shutdown { wait: true }));
        means(
            "shutdown --no-wait",
            Task::Act(Call::Shutdown { wait: false }),
        );
    }

    #[test]
    fn apply_does_it_unless_it_is_a_dry_run() {
        let apply = |dry_run, wait, json, detailed| Task::Apply {
            call: Call::Apply { dry_run, wait },
            style: Style { json, detailed },
        };
        means("apply", apply(false, true, false, false));
        means("apply --json --no-wait", apply(false, false, true, false));
        means("apply --dry-run", apply(true, true, false, false));
        means(
            "apply --detailed-exitcode --json --dry-run",
            apply(true, true, true, true),
        );
        // What has been changed needs no exit code of its own.
        is_wrong_usage("apply --detailed-exitcode");
        is_wrong_usage("apply --dry-run --no-wait");
        is_wrong_usage("apply web");
        means(
            "plan --detailed-exitcode",
            Task::Plan {
                paths: vec![],
                style: Style {
                    json: false,
                    detailed: true,
                },
            },
        );
        is_wrong_usage("plan web.toml --detailed-exitcode");
        means("upgrade", Task::Act(Call::Upgrade { wait: true }));
        means(
            "upgrade --no-wait",
            Task::Act(Call::Upgrade { wait: false }),
        );
        is_wrong_usage("upgrade web");
    }

    #[test]
    fn the_control_socket_goes_before_or_after_the_command() {
        let control = |line: &str| typed(line).unwrap().control;
        assert_eq!(control("status"), None);
        assert_eq!(control("--control /a status"), Some("/a".into()));
        assert_eq!(control("status --control /a"), Some("/a".into()));
        assert_eq!(control("status web --control=/a"), Some("/a".into()));
        assert_eq!(control("run --control /a"), Some("/a".into()));
        is_wrong_usage("status --control");
        is_wrong_usage("status --control=");
    }

    #[test]
    fn the_control_socket_of_the_environment_gives_way_to_the_typed_one() {
        let surroundings = Surroundings {
            control: Some("/env".into()),
            ..Surroundings::default()
        };
        let control = |words: &[&str]| {
            parse(words.iter().map(OsString::from), &surroundings)
                .unwrap()
                .control
        };
        assert_eq!(control(&["tentpole", "status"]), Some("/env".into()));
        assert_eq!(
            control(&["tentpole", "--control", "/a", "status"]),
            Some("/a".into())
        );
    }

    #[test]
    fn what_is_not_built_says_so_whatever_is_typed_after_it() {
        for name in NOT_BUILT {
            for rest in [
                "",
                "web",
                "--help",
                "-n 5 -f",
                "-l 80 -- cmd --flag",
                "--control /x web",
            ] {
                means(&format!("{name} {rest}"), Task::NotBuilt(name.into()));
            }
        }
        let error = obey(
            typed("logs web").unwrap(),
            &Surroundings::default(),
            &mut Vec::new(),
        )
        .unwrap_err();
        assert_eq!(
            (error.code(), error.to_string()),
            (1, "`logs` is not built yet".into())
        );
    }

    #[test]
    fn help_and_version_are_no_errors_and_list_no_unbuilt_command() {
        for (line, kind) in [
            ("--help", ErrorKind::DisplayHelp),
            ("help scale", ErrorKind::DisplayHelp),
            ("stop --help", ErrorKind::DisplayHelp),
            ("--version", ErrorKind::DisplayVersion),
        ] {
            let error = typed(line).unwrap_err();
            assert_eq!((error.kind(), error.exit_code()), (kind, 0), "{line}");
        }
        let help = typed("--help").unwrap_err().to_string();
        for name in NOT_BUILT {
            assert!(!help.contains(&format!("  {name} ")), "{name}");
        }
        assert_eq!(
            typed("--version").unwrap_err().to_string(),
            format!("tentpole {}\n", env!("CARGO_PKG_VERSION"))
        );
    }

    #[test]
    fn what_is_internal_is_named_nowhere() {
        for line in ["", "--control x", "--help", "--version --help"] {
            let text = typed(line).unwrap_err().to_string();
            assert!(!text.contains(runtime::PROBE), "{text}");
            assert!(!text.contains("pause"), "{text}");
        }
        assert!(is_wrong_usage("--control x").contains("a command is missing"));
    }

    #[test]
    fn a_wrong_word_is_wrong_usage_and_a_near_one_is_named() {
        is_wrong_usage("");
        is_wrong_usage("status --yaml");
        assert!(is_wrong_usage("statsu").contains("'status'"));
    }
}
