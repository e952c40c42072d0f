//! The command line: what may be typed, what it means, and what the program exits with.
//!
//! What was typed is clap's `ArgMatches`; what it means is an `Order`. Everything that depends on the environment
//! comes in as `Surroundings`, so the step between the two is pure.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 no manager is listening, 4 no such unit. What was asked for
//! goes to stdout; for 1, 3 and 4 one line on stderr says what went wrong and what to do.

mod act;
mod apply;
mod ask;
mod client;
mod hello;
mod run;
mod units;

use crate::control::call::{Amount, Call};
use crate::runtime;
use apply::{Streams, Style};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};
use client::Trouble;
use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// What a process exits with: one byte, as exit(3) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ExitCode(u8);

impl ExitCode {
    const SUCCESS: ExitCode = ExitCode(0);
    const FAILURE: ExitCode = ExitCode(1);
}

impl From<u8> for ExitCode {
    fn from(code: u8) -> Self {
        ExitCode(code)
    }
}

/// The `tentpole` program; the answer is its exit code.
pub fn main() -> u8 {
    let ExitCode(code) = run_command();
    code
}

fn run_command() -> ExitCode {
    let surroundings = Surroundings::of_process();
    let order = match parse(std::env::args_os(), &surroundings) {
        Ok(order) => order,
        // clap's complaints go to stderr: where that is closed there is nobody left to tell.
        Err(usage) if usage.use_stderr() => {
            let _ = usage.print();
            return exit_code(usage.exit_code());
        }
        Err(help) => {
            return finish(
                help.print()
                    .map(|()| ExitCode::SUCCESS)
                    .map_err(Error::Output),
            );
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let done = obey(order, &surroundings, &mut out).and_then(|code| {
        out.flush()?;
        Ok(code)
    });
    finish(done)
}

/// Says what went wrong, if anything did, and what to exit with.
fn finish(done: Result<ExitCode, Error>) -> ExitCode {
    match done {
        Ok(code) => code,
        // `tentpole status | head -1`: the reader has what it wanted.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            exit_code(error.code())
        }
    }
}

/// What the command line means.
#[derive(Clone, Debug, PartialEq)]
struct Order {
    /// The control socket, where one was named.
    control: Option<PathBuf>,
    task: Task,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
enum Task {
    Probe {
        fd: i32,
        arguments: Vec<OsString>,
    },
    Run {
        paths: Vec<PathBuf>,
        keeper: bool,
    },
    Check {
        paths: Vec<PathBuf>,
        strict: bool,
        json: bool,
    },
    Plan {
        /// None asks the manager, if one is there.
        paths: Vec<PathBuf>,
        style: Style,
    },
    /// The call is [`Call::Apply`].
    Apply {
        call: Call,
        style: Style,
    },
    Status {
        names: Vec<String>,
        json: bool,
    },
    Act(Call),
    Hello {
        fd: i32,
    },
    NotBuilt(String),
}

fn obey(order: Order, surroundings: &Surroundings, out: &mut dyn Write) -> Result<ExitCode, Error> {
    let control = || match &order.control {
        Some(path) => path.clone(),
        None => surroundings.control_to_ask(Path::exists),
    };
    match order.task {
        Task::Run { paths, keeper } => run::run(paths, order.control, keeper, surroundings),
        Task::Check {
            paths,
            strict,
            json,
        } => units::check(paths, strict, json, surroundings, out),
        Task::Plan { paths, style } if paths.is_empty() => {
            match apply::apply(
                &control(),
                &Call::Plan,
                style,
                streams(&mut io::stderr(), out),
            ) {
                // Whether something would change is asked of a manager and of nobody else.
                Err(Error::Trouble(Trouble::NotListening(path))) if !style.detailed => {
                    complain(&format!(
                        "no manager is listening at `{}`, so this is what `tentpole run` would start",
                        path.display()
                    ));
                    units::plan(paths, style.json, surroundings, out)
                }
                asked => asked,
            }
        }
        Task::Plan { paths, style } => units::plan(paths, style.json, surroundings, out),
        Task::Apply { call, style } => {
            apply::apply(&control(), &call, style, streams(&mut io::stderr(), out))
        }
        Task::Status { names, json } => {
            let screen = Screen::of(io::stdout().is_terminal());
            ask::status(&control(), names, json, screen, out)
        }
        Task::Act(call) => {
            let screen = Screen::of(io::stderr().is_terminal());
            act::act(&control(), &call, screen, &mut io::stderr(), out)
        }
        Task::Hello { fd } => hello::hello(fd),
        Task::Probe { fd, arguments } => {
            // They are what the manager is executed with, should it be: first its own name.
            let arguments = std::iter::once("tentpole".into()).chain(arguments);
            definition()
                .try_get_matches_from(arguments)
                .map_err(|error| Error::Refused(format!("its arguments: {error}")))?;
            let answer = runtime::probe(fd).map_err(Error::Refused)?;
            writeln!(out, "{answer}")?;
            Ok(ExitCode::SUCCESS)
        }
        Task::NotBuilt(name) => Err(Error::Refused(format!("`{name}` is not built yet"))),
    }
}

/// The program's own streams.
fn streams<'a>(stderr: &'a mut io::Stderr, out: &'a mut dyn Write) -> Streams<'a> {
    Streams {
        screen: Screen::of(stderr.is_terminal()),
        progress: stderr,
        is_live: Screen::of(io::stdout().is_terminal()).live,
        out,
    }
}

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

/// What may be typed.
fn definition() -> Command {
    Command::new("tentpole")
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
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            Arg::new("control")
                .long("control")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .global(true)
                .help("The manager's control socket [env: TENTPOLE_CONTROL]"),
        )
        .subcommand(
            Command::new("run")
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
                )),
        )
        .subcommand(
            Command::new("check")
                .about("Validate unit files and print every finding")
                .after_help("Example:\n  tentpole check --strict /etc/tentpole/units")
                .arg(paths())
                .arg(flag("strict", "Fail on warnings too"))
                .arg(json()),
        )
        .subcommand(
            Command::new("plan")
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
                .arg(detailed_exitcode().conflicts_with("paths")),
        )
        .subcommand(
            Command::new("status")
                .about("Show sockets, watchers and workers")
                .after_help("Example:\n  tentpole status web --json")
                .arg(
                    Arg::new("names")
                        .value_name("NAME")
                        .num_args(0..)
                        .help("Show these units only"),
                )
                .arg(json()),
        )
        .subcommand(on_watchers(
            "start",
            "Start watchers, and return when they are ready",
            "Example:\n  tentpole start web",
        ))
        .subcommand(on_watchers(
            "stop",
            "Stop watchers; their sockets stay open and clients wait in the queue",
            "Example:\n  tentpole stop --all",
        ))
        .subcommand(on_watchers(
            "restart",
            "Stop watchers and start them anew",
            "Example:\n  tentpole restart web worker",
        ))
        .subcommand(on_watchers(
            "reload",
            "Replace the workers of watchers without losing a connection",
            "Each worker's replacement starts beside it, and is ready before the old one is stopped. If one\n\
             fails, the reload ends, and what it has replaced already goes back. A watcher with\n\
             `reload = \"HUP\"` gets that signal instead.\n\n\
             Example:\n  tentpole reload web",
        ))
        .subcommand(
            Command::new("apply")
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
                .arg(no_wait().conflicts_with("dry-run")),
        )
        .subcommand(
            Command::new("scale")
                .about("Change how many workers a watcher keeps")
                .after_help("Examples:\n  tentpole scale web 5\n  tentpole scale web -1")
                .arg(watcher())
                .arg(
                    Arg::new("amount")
                        .value_name("N")
                        .required(true)
                        .allow_negative_numbers(true)
                        .value_parser(parse_amount)
                        .help("How many workers, or how many more (+1) or fewer (-1)"),
                )
                .arg(no_wait()),
        )
        .subcommand(
            Command::new("signal")
                .about("Send a signal to the workers of a watcher")
                .after_help("Examples:\n  tentpole signal web HUP\n  tentpole signal web USR1 --wid 2")
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
                .arg(flag("children", "To the whole process group of each worker")),
        )
        .subcommand(
            Command::new(runtime::PROBE)
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
                ),
        )
        .subcommand(
            Command::new("hello")
                .about("Answer HTTP requests on a given socket: a worker to try things with")
                .after_help("Example, in a unit file:\n  cmd = \"tentpole hello $(circus.socket.web)\"")
                .arg(
                    Arg::new("fd")
                        .value_name("FD")
                        .value_parser(value_parser!(i32).range(3..))
                        .default_value("3")
                        .help("The descriptor, as `$(circus.socket.NAME)` gives it"),
                ),
        )
        .subcommand(
            Command::new("upgrade")
                .about("Have the manager go on as the binary that is installed now")
                .after_help(
                    "Its pid, sockets and workers stay. If the new binary can't take over, nothing happens and the\n\
                     answer says why.\n\n\
                     Example:\n  tentpole upgrade",
                )
                .arg(no_wait()),
        )
        .subcommand(
            Command::new("shutdown")
                .about("Stop everything, then the manager")
                .arg(no_wait()),
        )
        .subcommands(NOT_BUILT.map(|name| {
            Command::new(name)
                .hide(true)
                .disable_help_flag(true)
                .arg(
                    Arg::new("rest")
                        .num_args(0..)
                        .value_parser(value_parser!(OsString))
                        .trailing_var_arg(true)
                        .allow_hyphen_values(true),
                )
        }))
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

fn on_watchers(name: &'static str, about: &'static str, example: &'static str) -> Command {
    Command::new(name)
        .about(about)
        .after_help(example)
        .arg(
            Arg::new("names")
                .value_name("NAME")
                .num_args(1..)
                .help("The watchers"),
        )
        .arg(flag("all", "Every watcher"))
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

/// What the words of a command line mean. The error is help, the version or a complaint, ready to be printed.
fn parse(
    words: impl IntoIterator<Item = OsString>,
    surroundings: &Surroundings,
) -> Result<Order, clap::Error> {
    let typed = definition().try_get_matches_from(words)?;
    // clap demands a subcommand; without one the words did not get here.
    let Some((name, typed)) = typed.subcommand() else {
        return Err(definition().error(
            clap::error::ErrorKind::MissingSubcommand,
            "a command is missing",
        ));
    };
    let task = match name {
        "run" => Task::Run {
            paths: many(typed, "paths"),
            keeper: !typed.get_flag("no-keeper"),
        },
        "check" => Task::Check {
            paths: many(typed, "paths"),
            strict: typed.get_flag("strict"),
            json: typed.get_flag("json"),
        },
        "plan" => Task::Plan {
            paths: many(typed, "paths"),
            style: style(typed),
        },
        "apply" => Task::Apply {
            call: Call::Apply {
                dry_run: typed.get_flag("dry-run"),
                wait: !typed.get_flag("no-wait"),
            },
            style: style(typed),
        },
        "status" => Task::Status {
            names: many(typed, "names"),
            json: typed.get_flag("json"),
        },
        "start" | "stop" | "restart" | "reload" => {
            let (names, all, wait) = (
                many(typed, "names"),
                typed.get_flag("all"),
                !typed.get_flag("no-wait"),
            );
            Task::Act(match name {
                "start" => Call::Start { names, all, wait },
                "stop" => Call::Stop { names, all, wait },
                "restart" => Call::Restart { names, all, wait },
                _ => Call::Reload { names, all, wait },
            })
        }
        "scale" => Task::Act(Call::Scale {
            name: one(typed, "name"),
            to: *typed.get_one("amount").unwrap_or(&Amount::By(0)),
            wait: !typed.get_flag("no-wait"),
        }),
        "signal" => Task::Act(Call::Signal {
            name: one(typed, "name"),
            signal: one(typed, "signal"),
            wid: typed.get_one("wid").copied(),
            children: typed.get_flag("children"),
        }),
        runtime::PROBE => Task::Probe {
            fd: *typed.get_one("fd").unwrap_or(&3),
            arguments: many(typed, "rest"),
        },
        "hello" => Task::Hello {
            fd: *typed.get_one("fd").unwrap_or(&3),
        },
        "upgrade" => Task::Act(Call::Upgrade {
            wait: !typed.get_flag("no-wait"),
        }),
        "shutdown" => Task::Act(Call::Shutdown {
            wait: !typed.get_flag("no-wait"),
        }),
        other => Task::NotBuilt(other.to_owned()),
    };
    let control = typed
        .get_one::<PathBuf>("control")
        .or(surroundings.control.as_ref());
    Ok(Order {
        control: control.cloned(),
        task,
    })
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

/// What of the process's environment decides where things are.
#[derive(Clone, Debug, Default)]
struct Surroundings {
    is_root: bool,
    /// `TENTPOLE_CONTROL`.
    control: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    runtime_dir: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`, or its default.
    config_home: Option<PathBuf>,
    /// `XDG_DATA_HOME`, or its default.
    data_home: Option<PathBuf>,
}

impl Surroundings {
    fn of_process() -> Self {
        let path = |name: &str| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
            Some(PathBuf::from(value))
        };
        // The base directory specification has a relative path ignored.
        let folder = |name: &str| path(name).filter(|path| path.is_absolute());
        let at_home = |below: &str| folder("HOME").map(|home| home.join(below));
        Surroundings {
            is_root: nix::unistd::geteuid().is_root(),
            control: path("TENTPOLE_CONTROL"),
            runtime_dir: folder("XDG_RUNTIME_DIR"),
            config_home: folder("XDG_CONFIG_HOME").or_else(|| at_home(".config")),
            data_home: folder("XDG_DATA_HOME").or_else(|| at_home(".local/share")),
        }
    }

    /// The system's folder of control sockets.
    const SYSTEM: &str = "/run/tentpole";

    /// Where a manager of ours listens, if nothing says otherwise.
    fn own_control(&self) -> PathBuf {
        match &self.runtime_dir {
            Some(folder) if !self.is_root => folder.join("tentpole/control.sock"),
            _ => Path::new(Self::SYSTEM).join("control.sock"),
        }
    }

    /// Where to ask: a user's own manager if it is there, else the system's if that is there.
    fn control_to_ask(&self, exists: impl Fn(&Path) -> bool) -> PathBuf {
        let own = self.own_control();
        let system = Path::new(Self::SYSTEM);
        if !exists(&own) && exists(system) {
            system.join("control.sock")
        } else {
            own
        }
    }

    /// Where unit files are looked for: a name found in an earlier folder hides the same name in a later one.
    fn unit_folders(&self) -> Vec<PathBuf> {
        if self.is_root {
            [
                "/etc/tentpole/units",
                "/run/tentpole/units",
                "/usr/lib/tentpole/units",
            ]
            .map(PathBuf::from)
            .into()
        } else {
            [&self.config_home, &self.data_home]
                .into_iter()
                .flatten()
                .map(|home| home.join("tentpole/units"))
                .collect()
        }
    }
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
enum Error {
    /// In talking with the manager.
    Trouble(Trouble),
    /// Without a manager.
    Refused(String),
    /// In writing what was asked for.
    Output(io::Error),
}

impl Error {
    fn code(&self) -> i32 {
        match self {
            Error::Trouble(trouble) => trouble.code(),
            Error::Refused(_) | Error::Output(_) => 1,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Trouble(trouble) => trouble.fmt(f),
            Error::Refused(reason) => f.write_str(reason),
            Error::Output(error) => write!(f, "could not write the output: {error}"),
        }
    }
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        Error::Trouble(trouble)
    }
}

impl From<io::Error> for Error {
    /// The only input and output outside of `client` is what a command prints.
    fn from(error: io::Error) -> Self {
        Error::Output(error)
    }
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Error::Refused(format!("{error:#}"))
    }
}

fn exit_code(code: i32) -> ExitCode {
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// One line on stderr; where there is more than one thing to say, the others before it.
fn complain(text: &str) {
    let text = text.trim_end();
    let (others, last) = text.rsplit_once('\n').unwrap_or(("", text));
    let mut lines = String::new();
    for line in others.lines() {
        lines.push_str(&printable(line));
        lines.push('\n');
    }
    // There is no other place to say that stderr is closed.
    let _ = writeln!(io::stderr(), "{lines}tentpole: {}", printable(last));
}

/// What the stream that is written to can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Screen {
    /// Somebody looks at it, and it understands a carriage return and ECMA-48 sequences.
    live: bool,
    /// Colors are welcome too.
    color: bool,
}

impl Screen {
    fn of(is_terminal: bool) -> Self {
        let is = |name: &str, test: fn(&std::ffi::OsStr) -> bool| {
            std::env::var_os(name).is_some_and(|value| test(&value))
        };
        let live = is_terminal && !is("TERM", |term| term == "dumb");
        Screen {
            live,
            color: live && !is("NO_COLOR", |value| !value.is_empty()),
        }
    }
}

/// `text` with everything escaped that a terminal would obey or that would turn the reading direction: what a worker
/// says of itself must not be able to draw on the screen of who looks at it.
fn printable(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if harmful(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
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
        definition().debug_assert();
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
    fn the_manager_to_ask_is_the_users_own_if_it_is_there() {
        let user = Surroundings {
            runtime_dir: Some("/run/user/7".into()),
            ..Surroundings::default()
        };
        let root = Surroundings {
            is_root: true,
            ..user.clone()
        };
        let nowhere = Surroundings::default();
        const SYSTEM: &str = "/run/tentpole/control.sock";
        const OWN: &str = "/run/user/7/tentpole/control.sock";
        let asks = |who: &Surroundings, there: &[&str]| {
            who.control_to_ask(|path| there.iter().any(|there| Path::new(there) == path))
        };
        assert_eq!(asks(&root, &[]), Path::new(SYSTEM));
        assert_eq!(asks(&root, &[OWN]), Path::new(SYSTEM));
        assert_eq!(asks(&user, &[]), Path::new(OWN));
        assert_eq!(asks(&user, &["/run/tentpole"]), Path::new(SYSTEM));
        assert_eq!(asks(&user, &["/run/tentpole", OWN]), Path::new(OWN));
        assert_eq!(asks(&nowhere, &[]), Path::new(SYSTEM));
        assert_eq!(root.own_control(), Path::new(SYSTEM));
        assert_eq!(user.own_control(), Path::new(OWN));
    }

    #[test]
    fn unit_files_are_looked_for_in_the_systems_folders_or_in_the_users() {
        let user = Surroundings {
            config_home: Some("/home/u/.config".into()),
            data_home: Some("/home/u/.local/share".into()),
            ..Surroundings::default()
        };
        let folders = |who: &Surroundings| {
            let folders = who.unit_folders();
            folders
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            folders(&user),
            [
                "/home/u/.config/tentpole/units",
                "/home/u/.local/share/tentpole/units"
            ]
        );
        let root = Surroundings {
            is_root: true,
            ..user
        };
        assert_eq!(
            folders(&root),
            [
                "/etc/tentpole/units",
                "/run/tentpole/units",
                "/usr/lib/tentpole/units"
            ]
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
    fn a_wrong_word_is_wrong_usage_and_a_near_one_is_named() {
        is_wrong_usage("");
        is_wrong_usage("status --yaml");
        assert!(is_wrong_usage("statsu").contains("'status'"));
    }

    #[test]
    fn text_that_would_move_the_cursor_is_escaped() {
        assert!(matches!(
            printable("plain `text`, ünïcödé 火"),
            Cow::Borrowed(_)
        ));
        assert_eq!(
            printable("a\x1b[2Jb\r\nc\u{9b}1A"),
            r"a\u{1b}[2Jb\r\nc\u{9b}1A"
        );
        assert_eq!(printable("\u{202e}drawkcab"), r"\u{202e}drawkcab");
    }
}
