//! Commands on what differs between the unit files and what runs: apply, and plan where a manager is asked.

use super::act;
use super::client::Trouble;
use super::{Error, ExitCode, Screen, WIDEST, printable, width, write_json};
use crate::control::call::{Call, Reply};
use crate::control::document::ChangeDocument;
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;

/// What the program exits with where something would change and the command asked to be told so.
const CHANGES: u8 = 2;

/// How changes are to be shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Style {
    /// As JSON.
    pub json: bool,
    /// Exit with 2 where something would change.
    pub detailed: bool,
}

/// Where to write, and who looks at it.
pub(super) struct Streams<'a> {
    /// That of `progress`.
    pub screen: Screen,
    /// Where it is shown how far it is.
    pub progress: &'a mut dyn Write,
    /// Somebody looks at `out`.
    pub is_live: bool,
    /// Where the changes go.
    pub out: &'a mut dyn Write,
}

/// Has the manager do `call`, which is [`Call::Apply`] or [`Call::Plan`], and prints what it changed or would change.
pub(super) fn apply(
    control: &Path,
    call: &Call,
    style: Style,
    streams: Streams<'_>,
) -> Result<ExitCode, Error> {
    let Streams {
        screen,
        progress,
        is_live,
        out,
    } = streams;
    let (_, reply) = act::ask(control, call, screen, &mut *progress)?;
    let Reply::Changes { changes, message } = reply? else {
        return Err(Trouble::WrongReply(control.to_path_buf()).into());
    };
    if style.json {
        write_json(&Document { changes: &changes }, is_live, out)?;
        if let Some(message) = message.filter(|_| !changes.is_empty()) {
            // Programs look at stdout; if nobody looks at stderr, nobody is told.
            let _ = writeln!(progress, "{}", printable(&message));
        }
    } else {
        let is_done = matches!(call, Call::Apply { dry_run: false, .. });
        write_changes(&changes, out)?;
        let nothing = if is_done {
            "nothing had to change"
        } else {
            "nothing would change"
        };
        let nothing = changes.is_empty().then(|| nothing.to_owned());
        if let Some(message) = message.or(nothing) {
            writeln!(out, "{}", printable(&message))?;
        }
    }
    Ok(if style.detailed && !changes.is_empty() {
        ExitCode::from(CHANGES)
    } else {
        ExitCode::SUCCESS
    })
}

/// As it is printed for programs.
#[derive(Serialize)]
struct Document<'a> {
    changes: &'a [ChangeDocument],
}

/// A line for each change, in columns: unit, action, keys.
fn write_changes(changes: &[ChangeDocument], out: &mut dyn Write) -> io::Result<()> {
    let names: Vec<_> = changes
        .iter()
        .map(|change| printable(&change.unit))
        .collect();
    let widest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
    let widths = names.iter().map(|name| width(name));
    let unit = widest(&mut widths.filter(|width| *width <= WIDEST));
    let action = widest(&mut changes.iter().map(|change| change.action.to_string().len()));
    for (change, name) in changes.iter().zip(&names) {
        let keys = change.keys.join(", ");
        let action_word = change.action.to_string();
        let padding = unit.saturating_sub(width(name));
        let line = format!(
            "{name}{:padding$}  {action_word:action$}  {}",
            "",
            printable(&keys)
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::client::fake::{Manager, Said, nowhere};
    use super::*;
    use crate::control::call::Failure;
    use crate::control::document::Action;

    const PLAIN: Screen = Screen {
        live: false,
        color: false,
    };
    const TEXT: Style = Style {
        json: false,
        detailed: false,
    };
    const JSON: Style = Style {
        json: true,
        detailed: false,
    };
    const DETAILED: Style = Style {
        json: false,
        detailed: true,
    };
    const APPLY: Call = Call::Apply {
        dry_run: false,
        wait: true,
    };
    const DRY: Call = Call::Apply {
        dry_run: true,
        wait: true,
    };

    fn change(unit: &str, action: Action, keys: &[&str]) -> ChangeDocument {
        ChangeDocument {
            unit: unit.into(),
            action,
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        }
    }

    fn some() -> Vec<ChangeDocument> {
        vec![
            change("socket.new", Action::Add, &[]),
            change("watcher.web", Action::Reload, &["cmd", "env"]),
            change("watcher.a\x1b", Action::Scale, &["numprocesses"]),
        ]
    }

    fn said(changes: Vec<ChangeDocument>, message: Option<&str>) -> Said {
        let message = message.map(str::to_owned);
        (Ok(Reply::Changes { changes, message }), false)
    }

    /// The exit code and what is on stdout, where a manager gives `answer`. Nothing is on stderr.
    fn shown(answer: Said, call: &Call, style: Style, is_live: bool) -> (ExitCode, String) {
        let (code, out, progress) = all_shown(answer, call, style, is_live);
        assert_eq!(progress, "");
        (code, out)
    }

    /// The same with what is on stderr.
    fn all_shown(
        answer: Said,
        call: &Call,
        style: Style,
        is_live: bool,
    ) -> (ExitCode, String, String) {
        let manager = Manager::answering(move |_| vec![answer.clone()]);
        let (mut progress, mut out) = (Vec::new(), Vec::new());
        let code = apply(
            &manager.path(),
            call,
            style,
            Streams {
                screen: PLAIN,
                progress: &mut progress,
                is_live,
                out: &mut out,
            },
        )
        .unwrap();
        assert_eq!(manager.seen().remove(0).call.as_ref(), Ok(call));
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (code, text(out), text(progress))
    }

    #[test]
    fn each_change_is_a_line_with_its_keys() {
        let want = "socket.new       add\n\
                    watcher.web      reload  cmd, env\n\
                    watcher.a\\u{1b}  scale   numprocesses\n";
        for call in [APPLY, DRY, Call::Plan] {
            let (code, out) = shown(said(some(), None), &call, TEXT, false);
            assert_eq!((code, out.as_str()), (ExitCode::SUCCESS, want));
        }
        let (_, out) = shown(said(some(), Some("be patient")), &APPLY, TEXT, false);
        assert_eq!(out, format!("{want}be patient\n"));
    }

    #[test]
    fn that_nothing_changes_is_said() {
        for (call, want) in [
            (DRY, "nothing would change\n"),
            (Call::Plan, "nothing would change\n"),
            (APPLY, "nothing had to change\n"),
        ] {
            assert_eq!(shown(said(vec![], None), &call, TEXT, true).1, want);
        }
        // Once is enough.
        let answer = said(vec![], Some("nothing has changed"));
        assert_eq!(shown(answer, &APPLY, TEXT, true).1, "nothing has changed\n");
    }

    #[test]
    fn json_is_one_object_as_the_contract_shows_it() {
        let changes = vec![change("watcher.web", Action::Reload, &["cmd"])];
        let answer = said(changes, Some("only for people"));
        let (_, out, told) = all_shown(answer.clone(), &DRY, JSON, false);
        assert_eq!(told, "only for people\n");
        assert_eq!(
            out,
            "{\"changes\":[{\"unit\":\"watcher.web\",\"action\":\"reload\",\"keys\":[\"cmd\"]}]}\n"
        );
        let (_, live, _) = all_shown(answer, &DRY, JSON, true);
        assert!(live.lines().count() > 5, "{live}");
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&live), read(&out));
        let (_, out) = shown(said(vec![], None), &DRY, JSON, false);
        assert_eq!(out, "{\"changes\":[]}\n");
    }

    #[test]
    fn only_the_detailed_mode_tells_changes_by_the_exit_code() {
        let code = |changes, style| shown(said(changes, None), &DRY, style, false).0;
        assert_eq!(code(some(), DETAILED), ExitCode::from(2));
        assert_eq!(code(vec![], DETAILED), ExitCode::SUCCESS);
        assert_eq!(code(some(), TEXT), ExitCode::SUCCESS);
    }

    fn fails(control: &Path, call: &Call) -> (i32, String) {
        let (mut progress, mut out) = (Vec::new(), Vec::new());
        let error = apply(
            control,
            call,
            DETAILED,
            Streams {
                screen: PLAIN,
                progress: &mut progress,
                is_live: false,
                out: &mut out,
            },
        )
        .unwrap_err();
        assert_eq!(out, b"");
        (error.code(), error.to_string())
    }

    #[test]
    fn mistakes_in_unit_files_are_shown_before_the_sentence() {
        let manager = Manager::answering(|_| {
            let findings = ["web.toml:4:1: unknown key\n4 | x\n  | ^", "b.toml:1:1: no"];
            let failure = Failure::invalid_units(findings.map(str::to_owned));
            vec![(Err(failure), false)]
        });
        let (code, text) = fails(&manager.path(), &APPLY);
        assert_eq!(code, 1);
        let (findings, sentence) = text.rsplit_once('\n').unwrap();
        assert_eq!(
            findings,
            "web.toml:4:1: unknown key\n4 | x\n  | ^\nb.toml:1:1: no"
        );
        assert!(sentence.contains("nothing was changed"), "{sentence}");
    }

    #[test]
    fn a_refusal_a_wrong_answer_and_nobody_have_their_exit_codes() {
        let manager = Manager::answering(|_| {
            let reason = "another `apply` is under way; try again when it is done".to_owned();
            vec![(Err(Failure::Refused { reason }), false)]
        });
        let (code, text) = fails(&manager.path(), &APPLY);
        assert_eq!(code, 1);
        assert!(text.starts_with("another `apply`"), "{text}");

        let manager = Manager::answering(|_| vec![(Ok(Reply::Done { message: None }), false)]);
        let (code, text) = fails(&manager.path(), &Call::Plan);
        assert_eq!(code, 1);
        assert!(text.contains("another version"), "{text}");

        let (_folder, path) = nowhere();
        assert_eq!(fails(&path, &DRY).0, 3);
    }
}
