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
mod words;

use crate::control::call::{Call, Failure};
use crate::runtime;
use apply::{Streams, Style};
use client::Trouble;
use serde::Serialize;
use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use unicode_width::UnicodeWidthStr;

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
    let order = match words::parse(std::env::args_os(), &surroundings) {
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
            words::matches(arguments)
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
            // The one with lines of its own. Any other that has some has them from what somebody has typed.
            Error::Trouble(trouble @ Trouble::Failure(Failure::InvalidUnits { .. })) => {
                trouble.fmt(f)
            }
            Error::Trouble(trouble) => f.write_str(&printable(&trouble.to_string())),
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

/// A document: on one line for programs, on several for people.
fn write_json(document: &impl Serialize, is_live: bool, out: &mut dyn Write) -> io::Result<()> {
    let mut json = if is_live {
        serde_json::to_vec_pretty(document)?
    } else {
        serde_json::to_vec(document)?
    };
    json.push(b'\n');
    out.write_all(&json)
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

/// How many columns of a terminal `text` takes.
fn width(text: &str) -> usize {
    UnicodeWidthStr::width(text)
}

/// A text that is wider than this makes no column of a table wider: a name may have 255 bytes.
const WIDEST: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;

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
