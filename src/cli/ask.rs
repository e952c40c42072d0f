//! Commands that only look: status.

use super::client::{Client, PATIENCE, Trouble};
use super::{Error, ExitCode, Screen, WIDEST, printable, width, write_json};
use crate::control::call::{Call, Reply};
use crate::control::document::{
    ManagerState, SocketState, SocketStatus, Status, WatcherState, WatcherStatus, WorkerState,
};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Prints the status of the named units, or of all. `screen` is that of `out`.
pub(super) fn status(
    control: &Path,
    names: Vec<String>,
    json: bool,
    screen: Screen,
    out: &mut dyn Write,
) -> Result<ExitCode, Error> {
    let mut client = Client::connect(control, PATIENCE)?;
    let Reply::Status(status) = client.call(&Call::Status { names }, Some(PATIENCE), None)? else {
        return Err(Trouble::WrongReply(control.to_path_buf()).into());
    };
    if json {
        write_json(&*status, screen.live, out)?;
    } else {
        write_text(&status, SystemTime::now(), screen, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write_text(
    status: &Status,
    now: SystemTime,
    screen: Screen,
    out: &mut dyn Write,
) -> io::Result<()> {
    let manager = &status.manager;
    let age = age(manager.since.time(), now);
    writeln!(
        out,
        "manager {}, version {}, {}",
        manager.pid,
        printable(&manager.version),
        match manager.state {
            ManagerState::Running => format!("running for {age}"),
            // It is in this state for less time than it is up.
            state => format!("up {age}, {}", word(&state)),
        }
    )?;
    if status.sockets.is_empty() && status.watchers.is_empty() {
        return writeln!(out, "it has no units");
    }
    let mut table = Table::default();
    if !status.sockets.is_empty() {
        table.headings(&["SOCKET", "ADDRESS", "TYPE", "STATE", "QUEUE", "WATCHERS"]);
        status
            .sockets
            .iter()
            .for_each(|socket| table.socket(socket));
        table.write(screen, out)?;
    }
    let mut table = Table::default();
    if !status.watchers.is_empty() {
        table.headings(&[
            "WATCHER", "STATE", "READY", "RESTARTS", "UPTIME", "PID", "SOCKETS",
        ]);
        status
            .watchers
            .iter()
            .for_each(|watcher| table.watcher(watcher, now));
        table.write(screen, out)?;
    }
    Ok(())
}

/// Between two columns.
const GAP: usize = 2;

/// Lines of cells, whose columns are made as wide as their widest cell, but for those beyond [`WIDEST`].
#[derive(Default)]
struct Table {
    lines: Vec<Line>,
}

enum Line {
    Headings(Vec<String>),
    Cells(Vec<Cell>),
    /// Text that goes through all columns.
    Note(Cell),
}

struct Cell {
    text: String,
    mood: Mood,
}

/// How something is, which a color says too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Plain,
    Good,
    Busy,
    Bad,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Cell {
            text,
            mood: Mood::Plain,
        }
    }
}

impl Table {
    fn headings(&mut self, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.lines.push(Line::Headings(names));
    }

    fn socket(&mut self, socket: &SocketStatus) {
        let mood = match socket.state {
            SocketState::Listening | SocketState::Armed => Mood::Good,
            SocketState::Paused => Mood::Busy,
            SocketState::Failed => Mood::Bad,
        };
        let queue = match (socket.queue, socket.queue_limit) {
            (Some(queue), Some(limit)) => format!("{queue}/{limit}"),
            (Some(queue), None) => queue.to_string(),
            (None, _) => "-".into(),
        };
        self.lines.push(Line::Cells(vec![
            printable(&socket.name).into_owned().into(),
            printable(&socket.address).into_owned().into(),
            printable(&socket.kind).into_owned().into(),
            Cell {
                text: word(&socket.state),
                mood,
            },
            queue.into(),
            listed(&socket.watchers).into(),
        ]));
        self.reason(socket.error.as_deref());
    }

    fn watcher(&mut self, watcher: &WatcherStatus, now: SystemTime) {
        let mood = match watcher.state {
            WatcherState::Running | WatcherState::Waiting => Mood::Good,
            WatcherState::Stopped => Mood::Plain,
            WatcherState::Starting | WatcherState::Reloading | WatcherState::Stopping => Mood::Busy,
            WatcherState::Backoff | WatcherState::Failed => Mood::Bad,
        };
        self.lines.push(Line::Cells(vec![
            printable(&watcher.name).into_owned().into(),
            Cell {
                text: word(&watcher.state),
                mood,
            },
            format!("{}/{}", watcher.ready, watcher.wanted).into(),
            watcher.restarts.to_string().into(),
            String::new().into(),
            String::new().into(),
            listed(&watcher.sockets).into(),
        ]));
        if !watcher.waits_for.is_empty() {
            // It is nobody's mistake.
            self.note(
                &format!("waits for `{}`", watcher.waits_for.join("`, `")),
                Mood::Busy,
            );
        }
        self.reason(watcher.error.as_deref());
        for worker in &watcher.workers {
            let mood = match worker.state {
                WorkerState::Ready => Mood::Good,
                WorkerState::Starting | WorkerState::Reloading | WorkerState::Stopping => {
                    Mood::Busy
                }
            };
            let status = worker.status.as_deref().map(printable).unwrap_or_default();
            self.lines.push(Line::Cells(vec![
                format!("  {}", worker.wid).into(),
                Cell {
                    text: word(&worker.state),
                    mood,
                },
                String::new().into(),
                match worker.generation {
                    0 | 1 => String::new().into(),
                    generation => format!("gen {generation}").into(),
                },
                age(worker.since.time(), now).into(),
                worker.pid.map_or("-".into(), |pid| pid.to_string()).into(),
                status.into_owned().into(),
            ]));
        }
    }

    fn reason(&mut self, error: Option<&str>) {
        if let Some(error) = error {
            self.note(error, Mood::Bad);
        }
    }

    fn note(&mut self, text: &str, mood: Mood) {
        let text = format!("  {}", printable(text));
        self.lines.push(Line::Note(Cell { text, mood }));
    }

    fn write(&self, screen: Screen, out: &mut dyn Write) -> io::Result<()> {
        let mut widths: Vec<usize> = Vec::new();
        let mut widen = |column: usize, text: &str| {
            let width = match width(text) {
                width if width <= WIDEST => width,
                _ => 0,
            };
            match widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        };
        for line in &self.lines {
            match line {
                Line::Headings(names) => names
                    .iter()
                    .enumerate()
                    .for_each(|(column, name)| widen(column, name)),
                Line::Cells(cells) => cells
                    .iter()
                    .enumerate()
                    .for_each(|(column, cell)| widen(column, &cell.text)),
                Line::Note(_) => {}
            }
        }
        writeln!(out)?;
        for line in &self.lines {
            match line {
                Line::Headings(names) => {
                    let cells = names.iter().map(|name| (name.as_str(), "1"));
                    write_cells(cells, &widths, screen, out)?;
                }
                Line::Cells(cells) => {
                    let cells = cells
                        .iter()
                        .map(|cell| (cell.text.as_str(), cell.mood.color()));
                    write_cells(cells, &widths, screen, out)?;
                }
                Line::Note(note) => paint(&note.text, note.mood.color(), screen, out)?,
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

/// Writes cells padded to `widths`, and nothing behind the last one that has a text. Where one reaches into the next columns,
/// the line goes on below it.
fn write_cells<'a>(
    cells: impl Iterator<Item = (&'a str, &'a str)>,
    widths: &[usize],
    screen: Screen,
    out: &mut dyn Write,
) -> io::Result<()> {
    let (mut start, mut end) = (0, 0);
    for ((text, color), column) in cells.zip(widths) {
        if !text.is_empty() {
            if end > 0 && end + GAP > start {
                writeln!(out)?;
                end = 0;
            }
            write!(out, "{:gap$}", "", gap = start - end)?;
            paint(text, color, screen, out)?;
            end = start + width(text);
        }
        start += column + GAP;
    }
    Ok(())
}

fn paint(text: &str, color: &str, screen: Screen, out: &mut dyn Write) -> io::Result<()> {
    if screen.color && !color.is_empty() {
        write!(out, "\x1b[{color}m{text}\x1b[m")
    } else {
        out.write_all(text.as_bytes())
    }
}

impl Mood {
    /// Parameter of ECMA-48's SGR.
    fn color(self) -> &'static str {
        match self {
            Mood::Plain => "",
            Mood::Good => "32",
            Mood::Busy => "33",
            Mood::Bad => "31",
        }
    }
}

/// A state as it is called in the document.
fn word(state: &impl serde::Serialize) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        // States are enums without fields, which are texts.
        _ => String::new(),
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "-".into()
    } else {
        printable(&names.join(", ")).into_owned()
    }
}

/// How long ago `since` was, in its two largest units. A moment to come, after a clock was set back, is `0s`.
fn age(since: SystemTime, now: SystemTime) -> String {
    let seconds = now
        .duration_since(since)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if days > 0 {
        format!("{days}d {}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h {}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m {}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::fake::Manager;
    use super::*;
    use crate::control::call::Failure;
    use crate::control::document::{Timestamp, WorkerStatus, example};

    const PLAIN: Screen = Screen {
        live: false,
        color: false,
    };

    /// Ten minutes and five seconds after the example's times.
    fn now() -> SystemTime {
        example().manager.since.time() + Duration::from_secs(605)
    }

    fn text(status: &Status, screen: Screen) -> String {
        let mut out = Vec::new();
        write_text(status, now(), screen, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// A status with a failure of every kind in it.
    fn troubled() -> Status {
        let mut status = example();
        let mut socket = status.sockets[0].clone();
        socket.name = "admin-socket".into();
        socket.address = "@admin".into();
        socket.state = SocketState::Failed;
        socket.queue = None;
        socket.queue_limit = None;
        socket.watchers = vec![];
        socket.error = Some("bind: Address already in use".into());
        status.sockets.push(socket);
        let web = &mut status.watchers[0];
        web.workers.push(WorkerStatus {
            wid: 2,
            pid: None,
            state: WorkerState::Starting,
            since: Timestamp::from(now()),
            status: Some("warming \x1b[2J up".into()),
            generation: 12,
        });
        let mut job = web.clone();
        job.name = "job".into();
        job.state = WatcherState::Backoff;
        job.wanted = 1;
        job.ready = 0;
        job.restarts = 1234;
        job.error = Some("exec /usr/bin/job: No such file or directory".into());
        job.sockets = vec![];
        job.workers = vec![];
        let mut app = job.clone();
        app.name = "app".into();
        app.state = WatcherState::Starting;
        app.restarts = 0;
        app.error = None;
        app.waits_for = vec!["job".into(), "web".into()];
        status.watchers.push(job);
        status.watchers.push(app);
        status
    }

    #[test]
    fn the_text_is_aligned_and_has_the_reason_under_what_failed() {
        let want = "\
manager 1, version 0.1.0, running for 10m 5s

SOCKET        ADDRESS         TYPE    STATE      QUEUE   WATCHERS
web           127.0.0.1:8000  stream  listening  0/4096  web
admin-socket  @admin          stream  failed     -       -
  bind: Address already in use

WATCHER  STATE     READY  RESTARTS  UPTIME  PID   SOCKETS
web      running   5/5    0                       web
  1      ready                      10m 5s  4242
  2      starting         gen 12    0s      -     warming \\u{1b}[2J up
job      backoff   0/1    1234                    -
  exec /usr/bin/job: No such file or directory
app      starting  0/1    0                       -
  waits for `job`, `web`
";
        assert_eq!(text(&troubled(), PLAIN), want);
    }

    #[test]
    fn how_long_the_manager_is_up_is_not_said_to_be_how_long_it_stops() {
        let mut status = example();
        status.manager.state = ManagerState::Stopping;
        let text = text(&status, PLAIN);
        let first = text.lines().next();
        assert_eq!(first, Some("manager 1, version 0.1.0, up 10m 5s, stopping"));
    }

    #[test]
    fn columns_are_as_wide_as_a_terminal_shows_them_and_no_name_spoils_the_table() {
        let mut status = example();
        status.sockets.clear();
        let web = status.watchers[0].clone();
        let long = "n".repeat(255);
        for name in ["\u{706b}\u{706b}\u{706b}\u{706b}", "u\u{308}ber", &long] {
            let mut other = web.clone();
            other.name = name.into();
            other.workers.clear();
            status.watchers.push(other);
        }
        let want = format!(
            "\
manager 1, version 0.1.0, running for 10m 5s

WATCHER   STATE    READY  RESTARTS  UPTIME  PID   SOCKETS
web       running  5/5    0                       web
  1       ready                     10m 5s  4242
\u{706b}\u{706b}\u{706b}\u{706b}  running  5/5    0                       web
u\u{308}ber      running  5/5    0                       web
{long}
          running  5/5    0                       web
"
        );
        assert_eq!(text(&status, PLAIN), want);
    }

    #[test]
    fn colors_change_nothing_but_the_colors() {
        let colored = text(
            &troubled(),
            Screen {
                live: true,
                color: true,
            },
        );
        assert!(colored.contains("\x1b[32mrunning\x1b[m"));
        assert!(colored.contains("\x1b[31m  bind: Address already in use\x1b[m"));
        assert!(colored.contains("\x1b[33m  waits for `job`, `web`\x1b[m"));
        let mut plain = colored;
        for code in ["\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[m"] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, text(&troubled(), PLAIN));
    }

    #[test]
    fn a_manager_without_units_says_so() {
        let mut status = example();
        status.sockets.clear();
        status.watchers.clear();
        assert_eq!(
            text(&status, PLAIN),
            "manager 1, version 0.1.0, running for 10m 5s\nit has no units\n"
        );
    }

    #[test]
    fn ages_have_two_units_and_are_never_negative() {
        let start = SystemTime::UNIX_EPOCH;
        for (seconds, want) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m 0s"),
            (3599, "59m 59s"),
            (3600, "1h 0m"),
            (86399, "23h 59m"),
            (86400, "1d 0h"),
            (86400 * 400 + 7200, "400d 2h"),
        ] {
            assert_eq!(age(start, start + Duration::from_secs(seconds)), want);
        }
        assert_eq!(age(start + Duration::from_secs(9), start), "0s");
    }

    #[test]
    fn json_is_one_line_for_programs_and_several_for_people() {
        let json = |live| {
            let mut out = Vec::new();
            write_json(&example(), live, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            json(false),
            format!("{}\n", serde_json::to_string(&example()).unwrap())
        );
        assert!(json(true).lines().count() > 10);
        assert_eq!(
            serde_json::from_str::<Status>(&json(true)).unwrap(),
            example()
        );
    }

    #[test]
    fn the_named_units_are_asked_for() {
        let manager = Manager::answering(|_| vec![(Ok(Reply::Status(Box::new(example()))), false)]);
        let mut out = Vec::new();
        status(&manager.path(), vec!["web".into()], true, PLAIN, &mut out).unwrap();
        assert_eq!(serde_json::from_slice::<Status>(&out).unwrap(), example());
        let names = vec!["web".into()];
        assert_eq!(manager.seen()[0].call, Ok(Call::Status { names }));
    }

    #[test]
    fn an_unknown_unit_is_exit_code_four_and_prints_nothing() {
        let manager = Manager::answering(|_| {
            let failure = Failure::NoSuchUnit {
                name: "x".into(),
                nearest: None,
            };
            vec![(Err(failure), false)]
        });
        let mut out = Vec::new();
        let error = status(&manager.path(), vec!["x".into()], false, PLAIN, &mut out).unwrap_err();
        assert_eq!(error.code(), 4);
        assert_eq!(
            error.to_string(),
            "no such unit `x`; `tentpole status` lists them"
        );
        assert_eq!(out, b"");
    }

    #[test]
    fn a_reader_that_hangs_up_is_an_output_error() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for json in [true, false] {
            let manager =
                Manager::answering(|_| vec![(Ok(Reply::Status(Box::new(example()))), false)]);
            let error = status(&manager.path(), vec![], json, PLAIN, &mut Closed).unwrap_err();
            let Error::Output(error) = error else {
                panic!("{error}");
            };
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
    }
}
