//! Commands that change what runs: start, stop, restart, reload, scale, signal, upgrade, shutdown.

use super::client::{Client, PATIENCE, Trouble};
use super::{Error, ExitCode, Screen, printable};
use crate::control::call::{Call, Reply};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// How long the manager's process may live on after it has said that everything is stopped.
const LINGER: Duration = Duration::from_secs(10);

/// Has the manager do `call`, and returns when it is done. `screen` is that of `progress`.
///
/// Interrupted, the program just ends: the manager goes on with what it was told.
pub(super) fn act(
    control: &Path,
    call: &Call,
    screen: Screen,
    progress: &mut dyn Write,
    out: &mut dyn Write,
) -> Result<ExitCode, Error> {
    let (mut client, reply) = ask(control, call, screen, progress)?;
    match (reply, call) {
        (Ok(Reply::Done { message }), _) => {
            if let Some(message) = message {
                writeln!(out, "{}", printable(&message))?;
            }
            if matches!(call, Call::Shutdown { wait: true }) {
                client.wait_for_end(LINGER);
            }
            Ok(ExitCode::SUCCESS)
        }
        // That is what was asked for.
        (Err(Trouble::Gone), Call::Shutdown { .. }) => Ok(ExitCode::SUCCESS),
        (Ok(_), _) => Err(Trouble::WrongReply(control.to_path_buf()).into()),
        (Err(trouble), _) => Err(trouble.into()),
    }
}

/// Connects, asks and waits for the answer, with progress where somebody looks at it. `screen` is that of `progress`.
pub(super) fn ask(
    control: &Path,
    call: &Call,
    screen: Screen,
    progress: &mut dyn Write,
) -> Result<(Client, Result<Reply, Trouble>), Trouble> {
    let mut client = Client::connect(control, PATIENCE)?;
    let patience = if takes_its_time(call) {
        None
    } else {
        Some(PATIENCE)
    };
    let mut line = Line {
        to: progress,
        is_shown: false,
    };
    let mut show = |text: &str| line.show(text);
    let watch = screen.live && patience.is_none();
    let reply = client.call(call, patience, if watch { Some(&mut show) } else { None });
    line.clear();
    Ok((client, reply))
}

/// Whether the answer comes only when something else has happened, however long that takes.
fn takes_its_time(call: &Call) -> bool {
    match call {
        Call::Start { wait, .. }
        | Call::Stop { wait, .. }
        | Call::Restart { wait, .. }
        | Call::Reload { wait, .. }
        | Call::Apply {
            wait,
            dry_run: false,
        }
        | Call::Upgrade { wait }
        | Call::Scale { wait, .. }
        | Call::Shutdown { wait } => *wait,
        Call::Apply { dry_run: true, .. }
        | Call::Plan
        | Call::Signal { .. }
        | Call::Status { .. }
        | Call::GetInfo
        | Call::GetInterfaceDescription { .. } => false,
    }
}

/// One line on a terminal that is written over and over.
struct Line<'a> {
    to: &'a mut dyn Write,
    is_shown: bool,
}

impl Line<'_> {
    /// A terminal is hardly ever narrower; a line that wraps could not be written over.
    const WIDTH: usize = 79;

    fn show(&mut self, text: &str) {
        let text: String = printable(text).chars().take(Self::WIDTH).collect();
        // Progress is a courtesy: nothing depends on its being seen.
        let _ = write!(self.to, "\r{text}\x1b[K").and_then(|()| self.to.flush());
        self.is_shown = true;
    }

    fn clear(&mut self) {
        if self.is_shown {
            let _ = write!(self.to, "\r\x1b[K").and_then(|()| self.to.flush());
            self.is_shown = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::fake::{Manager, Said, nowhere};
    use super::*;
    use crate::control::call::{Amount, Failure, Request};
    use crate::control::wire::encode;
    use std::io::Read;

    const PLAIN: Screen = Screen {
        live: false,
        color: false,
    };
    const LIVE: Screen = Screen {
        live: true,
        color: false,
    };

    fn stop(wait: bool) -> Call {
        Call::Stop {
            names: vec!["web".into()],
            all: false,
            wait,
        }
    }

    fn done(message: Option<&str>) -> Said {
        (
            Ok(Reply::Done {
                message: message.map(str::to_owned),
            }),
            false,
        )
    }

    /// What is on stderr and on stdout.
    fn shown(manager: &Manager, call: &Call, screen: Screen) -> Result<(String, String), Error> {
        let (mut progress, mut out) = (Vec::new(), Vec::new());
        act(&manager.path(), call, screen, &mut progress, &mut out)?;
        Ok((
            String::from_utf8(progress).unwrap(),
            String::from_utf8(out).unwrap(),
        ))
    }

    fn seen(manager: Manager) -> Request {
        manager.seen().remove(0)
    }

    #[test]
    fn a_message_of_the_manager_is_printed() {
        let manager = Manager::answering(|_| vec![done(Some("its socket `web` stays open"))]);
        let (progress, out) = shown(&manager, &stop(true), PLAIN).unwrap();
        assert_eq!(
            (progress.as_str(), out.as_str()),
            ("", "its socket `web` stays open\n")
        );
        let request = seen(manager);
        assert_eq!(request.call, Ok(stop(true)));
        assert!(!request.more, "progress was asked for though nobody looks");
    }

    #[test]
    fn without_a_message_nothing_is_printed() {
        let manager = Manager::answering(|_| vec![done(None)]);
        let scale = Call::Scale {
            name: "web".into(),
            to: Amount::By(-1),
            wait: true,
        };
        assert_eq!(
            shown(&manager, &scale, PLAIN).unwrap(),
            (String::new(), String::new())
        );
        assert_eq!(seen(manager).call, Ok(scale));
    }

    #[test]
    fn progress_is_one_line_that_is_gone_in_the_end() {
        let step = |text: String| {
            let reply = Reply::Progress {
                text,
                unit: "web".into(),
                done: 1,
                wanted: 2,
            };
            (Ok(reply), true)
        };
        let manager = Manager::answering(move |_| {
            vec![
                step("1 of 2\n\x1b[2J".into()),
                step("y".repeat(200)),
                done(None),
            ]
        });
        let (progress, out) = shown(&manager, &stop(true), LIVE).unwrap();
        let want = format!(
            "\r1 of 2\\n\\u{{1b}}[2J\x1b[K\r{}\x1b[K\r\x1b[K",
            "y".repeat(79)
        );
        assert_eq!((progress, out), (want, String::new()));
        assert!(seen(manager).more);
    }

    #[test]
    fn a_command_that_does_not_wait_asks_for_no_progress() {
        let manager = Manager::answering(|_| vec![done(None)]);
        shown(&manager, &stop(false), LIVE).unwrap();
        let request = seen(manager);
        assert_eq!((request.call, request.more), (Ok(stop(false)), false));
    }

    #[test]
    fn a_refusal_is_the_error_and_the_progress_line_is_cleared() {
        let manager = Manager::answering(|_| {
            let step = Reply::Progress {
                text: "1 of 2".into(),
                unit: "web".into(),
                done: 1,
                wanted: 2,
            };
            let failure = Failure::Failed {
                reason: "`web` did not get ready; see `tentpole status web`".into(),
            };
            vec![(Ok(step), true), (Err(failure), false)]
        });
        let mut progress = Vec::new();
        let error = act(
            &manager.path(),
            &stop(true),
            LIVE,
            &mut progress,
            &mut Vec::new(),
        )
        .unwrap_err();
        assert_eq!(error.code(), 1);
        assert_eq!(
            error.to_string(),
            "`web` did not get ready; see `tentpole status web`"
        );
        assert!(progress.ends_with(b"\r\x1b[K"));
    }

    #[test]
    fn an_unknown_unit_is_exit_code_four_with_the_nearest_name() {
        let manager = Manager::answering(|_| {
            let failure = Failure::NoSuchUnit {
                name: "wev".into(),
                nearest: Some("web".into()),
            };
            vec![(Err(failure), false)]
        });
        let error = shown(&manager, &stop(true), PLAIN).unwrap_err();
        assert_eq!(
            (error.code(), error.to_string()),
            (4, "no such unit `wev`; did you mean `web`?".into())
        );
    }

    #[test]
    fn shutdown_is_done_when_the_manager_is_gone_with_or_without_a_reply() {
        for reply in [true, false] {
            let manager = Manager::serving(move |mut stream| {
                let _ = stream.read(&mut [0; 1024]).unwrap();
                let mut out = Vec::new();
                encode(&Ok(Reply::Done { message: None }), false, &mut out);
                if reply {
                    stream.write_all(&out).unwrap();
                }
                Vec::new()
            });
            shown(&manager, &Call::Shutdown { wait: true }, PLAIN).unwrap();
        }
    }

    #[test]
    fn shutdown_without_a_manager_is_exit_code_three() {
        let (_folder, path) = nowhere();
        let call = Call::Shutdown { wait: true };
        let error = act(&path, &call, PLAIN, &mut Vec::new(), &mut Vec::new()).unwrap_err();
        assert_eq!(error.code(), 3);
    }

    #[test]
    fn an_end_that_was_not_asked_for_is_an_error() {
        let manager = Manager::serving(|mut stream| {
            let _ = stream.read(&mut [0; 1024]);
            Vec::new()
        });
        let error = shown(&manager, &stop(true), PLAIN).unwrap_err();
        assert_eq!(error.to_string(), Trouble::Gone.to_string());
    }

    #[test]
    fn a_reply_to_something_else_is_an_error() {
        let manager = Manager::answering(|_| vec![(Ok(Reply::info()), false)]);
        let error = shown(&manager, &stop(true), PLAIN).unwrap_err();
        assert!(error.to_string().contains("another version"), "{error}");
    }
}
