//! The environment of a worker, and the text of an `env_file`.

use crate::unit::Arrange;
use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::{CStr, CString, NulError, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

/// PATH where nobody sets one.
pub(super) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the manager says to each worker anew, and must not hand on from its own parent: sd_listen_fds(3), sd_notify(3),
/// sd_watchdog_enabled(3). The last are words of a keeper, an earlier self and a service to a manager.
const PROTOCOL: [&str; 11] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "FDSTORE",
    "TENTPOLE_KEEPER",
    "TENTPOLE_UPGRADE",
    "TENTPOLE_NOFILE",
];

/// What names the manager's own process, or that of its parent, to the manager: systemd.exec(5). A unit may set them. What
/// tells of the service that workers are a part of goes on to them: INVOCATION_ID, CREDENTIALS_DIRECTORY, and
/// JOURNAL_STREAM, which is compared with what stderr is.
const PROCESSES: [&str; 5] = [
    "MAINPID",
    "MAINPIDFDID",
    "MANAGERPID",
    "MANAGERPIDFDID",
    "SYSTEMD_EXEC_PID",
];

/// Who a worker is.
pub(super) const TENTPOLE: [&str; 3] = ["TENTPOLE_WATCHER", "TENTPOLE_WID", "TENTPOLE_GENERATION"];

/// Why a unit may not set `name` itself, if so.
pub(super) fn refusal(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("a variable needs a name");
    }
    if name.contains('=') || name.contains('\0') {
        return Some("the name of a variable has no `=` and no NUL byte");
    }
    (PROTOCOL.contains(&name) || TENTPOLE.contains(&name))
        .then_some("the manager sets it for each worker")
}

/// A variable of the manager's own environment, made once as each worker gets it.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// `NAME=VALUE`.
    assignment: Rc<CStr>,
    /// Length of the name, in bytes.
    name: usize,
}

impl Variable {
    /// None if there is a NUL byte in it.
    fn new(name: &OsStr, value: &OsStr) -> Option<Variable> {
        Some(Variable {
            assignment: assignment(name, value).ok()?.into(),
            name: name.len(),
        })
    }

    pub(super) fn name(&self) -> &OsStr {
        OsStr::from_bytes(&self.assignment.to_bytes()[..self.name])
    }

    fn value(&self) -> &OsStr {
        OsStr::from_bytes(&self.assignment.to_bytes()[self.name + 1..])
    }
}

/// What workers may get of the manager's own environment: not what was meant for the manager alone, and of two
/// variables that are named alike the first, as for getenv(3).
pub fn inheritable(own: &[(OsString, OsString)]) -> Vec<Variable> {
    let mut seen = HashSet::with_capacity(own.len());
    let others = PROTOCOL.iter().chain(&PROCESSES);
    let is_wanted = |name: &OsStr| !name.is_empty() && !others.clone().any(|known| name == *known);
    own.iter()
        .filter(|(name, _)| is_wanted(name) && seen.insert(name))
        .filter_map(|(name, value)| Variable::new(name, value))
        .collect()
}

fn assignment(name: &OsStr, value: &OsStr) -> Result<CString, NulError> {
    let mut text = Vec::with_capacity(name.len() + value.len() + 2);
    text.extend_from_slice(name.as_bytes());
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    CString::new(text)
}

/// An environment in the making: what is copied keeps its order, what is added comes after it in order of name. It
/// borrows what it can, since one is made for each worker.
pub(super) struct Environment<'a> {
    copied: Vec<Copied<'a>>,
    added: Vec<(Cow<'a, OsStr>, Cow<'a, OsStr>)>,
}

/// A variable of the manager's own, and what it was set to if it was.
struct Copied<'a> {
    own: &'a Variable,
    value: Option<Cow<'a, OsStr>>,
}

impl<'a> Environment<'a> {
    /// The manager's own where it is to be copied, as [`inheritable`] leaves it, else a PATH and nothing more.
    pub(super) fn new(copy: bool, own: &'a [Variable]) -> Self {
        let mut made = Environment {
            copied: Vec::new(),
            added: Vec::new(),
        };
        if copy {
            let own = own.iter();
            made.copied = own.map(|own| Copied { own, value: None }).collect();
        } else {
            made.set(OsStr::new("PATH"), OsStr::new(DEFAULT_PATH));
        }
        made
    }

    /// Sets `name`, whatever it was.
    pub(super) fn set(
        &mut self,
        name: impl Into<Cow<'a, OsStr>>,
        value: impl Into<Cow<'a, OsStr>>,
    ) {
        let (name, value) = (name.into(), value.into());
        let copied = &mut self.copied;
        if let Some(known) = copied.iter_mut().find(|it| it.own.name() == name) {
            known.value = Some(value);
        } else if let Some(known) = self.added.iter_mut().find(|(known, _)| *known == name) {
            known.1 = value;
        } else {
            self.added.push((name, value));
        }
    }

    /// Takes `name` away.
    pub(super) fn remove(&mut self, name: &str) {
        self.copied.retain(|copied| copied.own.name() != name);
        self.added.retain(|(known, _)| **known != *name);
    }

    /// The value of exactly `name`.
    pub(super) fn value(&self, name: &str) -> Option<&OsStr> {
        self.entries()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    /// The value of `name`, or of a name that differs by case: substitutions take any case, as in Circus.
    pub(super) fn value_in_any_case(&self, name: &str) -> Option<&OsStr> {
        self.value(name).or_else(|| {
            self.entries()
                .find(|(known, _)| known.eq_ignore_ascii_case(name))
                .map(|(_, value)| value)
        })
    }

    /// All of it, as `NAME=VALUE`; the name of a variable that has a NUL byte otherwise.
    pub(super) fn into_assignments(mut self) -> Result<Vec<Rc<CStr>>, String> {
        self.added.arrange_by(|(a, _), (b, _)| a.cmp(b));
        let made = |name: &OsStr, value: &OsStr| match assignment(name, value) {
            Ok(assignment) => Ok(Rc::from(assignment)),
            Err(_) => Err(format!("a NUL byte in the variable `{}`", name.display())),
        };
        let copied = self.copied.iter().map(|copied| match &copied.value {
            None => Ok(Rc::clone(&copied.own.assignment)),
            Some(value) => made(copied.own.name(), value),
        });
        let added = self.added.iter().map(|(name, value)| made(name, value));
        copied.chain(added).collect()
    }

    fn entries(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        let copied = self.copied.iter().map(|copied| {
            let value = copied.value.as_deref();
            (copied.own.name(), value.unwrap_or(copied.own.value()))
        });
        let added = self
            .added
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()));
        copied.chain(added)
    }
}

/// Reads the text of an `env_file`: KEY=VALUE lines with the quoting of systemd's EnvironmentFile= (systemd.exec(5)),
/// and `export` before a key, which it takes from files that are made for shells. The later of two like names wins.
///
/// Unlike systemd, a line that can't be read is an error and not ignored; it starts with the line's number.
pub(super) fn parse_env_file(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut reader = Reader {
        rest: text.strip_prefix('\u{feff}').unwrap_or(text),
        line: 1,
    };
    let mut entries = Vec::new();
    while reader.skip_to_key() {
        let line = reader.line;
        let at_line = |message: String| format!("line {line}: {message}");
        let name = reader.key().map_err(at_line)?;
        if let Some(why) = refusal(name) {
            return Err(at_line(format!("`{name}` can't be set here: {why}")));
        }
        let value = reader.value().map_err(at_line)?;
        entries.push((name.to_string(), value));
    }
    Ok(entries)
}

/// Walks through the text of an `env_file`.
struct Reader<'t> {
    rest: &'t str,
    line: usize,
}

impl<'t> Reader<'t> {
    /// Takes blanks, empty lines and comments; false at the end of the text.
    fn skip_to_key(&mut self) -> bool {
        loop {
            match self.rest.chars().next() {
                None => return false,
                Some('#' | ';') => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                }
                Some(' ' | '\t' | '\r' | '\n') => {
                    self.take();
                }
                Some(_) => return true,
            }
        }
    }

    /// Takes a key and its `=`.
    fn key(&mut self) -> Result<&'t str, String> {
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        let line = &self.rest[..end];
        let Some(equals) = line.find('=') else {
            return Err(format!(
                "`{}` is not KEY=VALUE; a comment starts with `#`",
                shorten(line.trim_end())
            ));
        };
        let written = line[..equals].trim();
        let name = match written.strip_prefix("export") {
            Some(name) if name.starts_with([' ', '\t']) => name.trim_start(),
            _ => written,
        };
        let mut letters = name.chars();
        let starts_well = letters
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !starts_well || !letters.all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!(
                "`{}` is no name of a variable: letters, digits and `_`, not a digit first",
                shorten(name)
            ));
        }
        self.rest = &self.rest[equals + 1..];
        Ok(name)
    }

    /// Takes a value and the end of its line. As in systemd, quotes are quotes where a value begins and where it goes on
    /// behind others, and characters like any once there is one without quotes: `{"a": 1}` and `it's` need none.
    fn value(&mut self) -> Result<String, String> {
        let mut value = String::new();
        // Blanks at the end fall away unless they are quoted: what is before this byte stays.
        let mut kept = 0;
        let mut is_bare = false;
        while let Some(c) = self.take() {
            match c {
                '\n' => break,
                '\'' if !is_bare => loop {
                    match self.take() {
                        None => return Err("the `'` is never closed".into()),
                        Some('\'') => break,
                        Some(c) => value.push(c),
                    }
                },
                '"' if !is_bare => self.double_quoted(&mut value)?,
                ' ' | '\t' | '\r' => {
                    if is_bare {
                        value.push(c);
                    }
                    continue;
                }
                '\\' => {
                    is_bare = true;
                    value.extend(self.take().filter(|c| *c != '\n'));
                }
                c => {
                    is_bare = true;
                    value.push(c);
                }
            }
            kept = value.len();
        }
        value.truncate(kept);
        if value.contains('\0') {
            return Err("a value has no NUL byte".into());
        }
        Ok(value)
    }

    /// Takes what follows a `"`, and the closing one. As in a shell, a backslash only hides what would have a meaning.
    fn double_quoted(&mut self, value: &mut String) -> Result<(), String> {
        loop {
            match self.take() {
                None => return Err("the `\"` is never closed".into()),
                Some('"') => return Ok(()),
                Some('\\') => match self.take() {
                    None => return Err("the `\"` is never closed".into()),
                    Some('\n') => {}
                    Some(c @ ('"' | '\\' | '$' | '`')) => value.push(c),
                    Some(c) => value.extend(['\\', c]),
                },
                Some(c) => value.push(c),
            }
        }
    }

    /// Takes one character; the two that end a line on Windows are one.
    fn take(&mut self) -> Option<char> {
        if let Some(rest) = self.rest.strip_prefix("\r\n") {
            self.rest = rest;
            self.line += 1;
            return Some('\n');
        }
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        self.line += usize::from(c == '\n');
        Some(c)
    }
}

/// The start of what may be long, for a message; control characters can't reach the terminal.
pub(super) fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = text
        .chars()
        .take(SHOWN)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn own(pairs: &[(&str, &str)]) -> Vec<Variable> {
        let pairs = pairs.iter();
        let pairs: Vec<_> = pairs
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        inheritable(&pairs)
    }

    fn assignments(made: Environment<'_>) -> Vec<String> {
        let made = made.into_assignments().expect("no NUL byte");
        let text = |entry: Rc<CStr>| entry.to_str().expect("UTF-8").to_owned();
        made.into_iter().map(text).collect()
    }

    #[test]
    fn copied_variables_keep_their_order_and_added_ones_are_sorted() {
        let own = own(&[("Z", "1"), ("A", "2")]);
        let mut made = Environment::new(true, &own);
        for (name, value) in [("M", "3"), ("Z", "4"), ("B", "5"), ("M", "6")] {
            made.set(OsStr::new(name), OsStr::new(value));
        }
        assert_eq!(assignments(made), ["Z=4", "A=2", "B=5", "M=6"]);
    }

    #[test]
    fn a_nul_byte_is_refused_with_the_name_of_its_variable() {
        let own = own(&[("A", "1")]);
        let mut made = Environment::new(true, &own);
        made.set(OsStr::new("A"), OsStr::new("b\0c"));
        let why = made.into_assignments().expect_err("it can't be passed on");
        assert_eq!(why, "a NUL byte in the variable `A`");
    }

    #[test]
    fn what_was_meant_for_the_manager_is_not_inherited_and_doubles_are_dropped() {
        let left = own(&[
            ("LISTEN_FDS", "1"),
            ("LISTEN_PID", "1"),
            ("LISTEN_PIDFDID", "1"),
            ("LISTEN_FDNAMES", "x"),
            ("NOTIFY_SOCKET", "/x"),
            ("WATCHDOG_PID", "1"),
            ("A", "first"),
            ("WATCHDOG_USEC", "1"),
            ("A", "second"),
            ("LISTEN_ADDRESS", "0.0.0.0"),
            ("", "nameless"),
        ]);
        let left = assignments(Environment::new(true, &left));
        assert_eq!(left, ["A=first", "LISTEN_ADDRESS=0.0.0.0"]);
    }

    #[test]
    fn without_the_copy_there_is_a_path_and_nothing_more() {
        let own = own(&[("A", "1")]);
        let made = Environment::new(false, &own);
        assert_eq!(assignments(made), [format!("PATH={DEFAULT_PATH}")]);
    }

    #[test]
    fn exact_case_goes_before_any_case() {
        let own = own(&[("path", "a"), ("PATH", "b"), ("Home", "c")]);
        let made = Environment::new(true, &own);
        assert_eq!(made.value_in_any_case("PATH"), Some(OsStr::new("b")));
        assert_eq!(made.value_in_any_case("Path"), Some(OsStr::new("a")));
        assert_eq!(made.value_in_any_case("HOME"), Some(OsStr::new("c")));
        assert_eq!(made.value("HOME"), None);
    }

    fn parsed(text: &str) -> Vec<(String, String)> {
        parse_env_file(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn values_are_read_with_the_quoting_of_systemd() {
        for (text, value) in [
            ("A=b", "b"),
            ("A=", ""),
            ("A= b c \t", "b c"),
            ("A=b # no comment", "b # no comment"),
            ("A=b=c", "b=c"),
            ("A = b", "b"),
            ("export A=b", "b"),
            ("A='b  c '  ", "b  c "),
            ("A=''", ""),
            ("A='  '", "  "),
            ("A=\"b c\"", "b c"),
            ("A=b'c d'\"e f\"g", "b'c d'\"e f\"g"),
            ("A='b c'\"d\" 'e' f 'g'  ", "b cdef 'g'"),
            ("A={\"debug\": \"yes\"}", "{\"debug\": \"yes\"}"),
            ("A=say \"hi\"", "say \"hi\""),
            ("A=it's", "it's"),
            (r#"A=\"b c\" "#, "\"b c\""),
            ("A=\\\n  two", "  two"),
            ("A=b \\\n", "b "),
            ("A=b \r", "b"),
            (r#"A="a\"b\\c\$d\`e\nf""#, r#"a"b\c$d`e\nf"#),
            (r"A=a\ \ b\'c\\", r"a  b'c\"),
            ("A='a\\b'", "a\\b"),
            ("A=one\\\n  two", "one  two"),
            ("A=\"one\\\ntwo\"", "onetwo"),
            ("A='one\ntwo'", "one\ntwo"),
            ("A=b\\", "b"),
            ("A=b\r\n", "b"),
            ("A=b\r", "b"),
            ("\u{feff}A=b", "b"),
            ("A=$B ${C} $(d)", "$B ${C} $(d)"),
        ] {
            assert_eq!(
                parsed(text),
                [("A".to_string(), value.to_string())],
                "{text:?}"
            );
        }
    }

    #[test]
    fn comments_and_empty_lines_are_skipped() {
        let text = "# one\n\n  ; two\nA=1\n\t# three \\\nB=2\n";
        assert_eq!(
            parsed(text),
            [("A".into(), "1".into()), ("B".into(), "2".into())]
        );
        assert_eq!(parsed(""), []);
        assert_eq!(parsed("# no newline"), []);
    }

    #[test]
    fn a_bad_line_is_refused_with_its_number() {
        for (text, message) in [
            (
                "A=1\nwhat\n",
                "line 2: `what` is not KEY=VALUE; a comment starts with `#`",
            ),
            (
                "A='1\n2'\n\n2X=1",
                "line 4: `2X` is no name of a variable: letters, digits and `_`, not a digit first",
            ),
            (
                "=1",
                "line 1: `` is no name of a variable: letters, digits and `_`, not a digit first",
            ),
            ("\nA='1\n2", "line 2: the `'` is never closed"),
            ("A=\"1\\", "line 1: the `\"` is never closed"),
            ("A=1\0", "line 1: a value has no NUL byte"),
            (
                "LISTEN_FDS=1",
                "line 1: `LISTEN_FDS` can't be set here: the manager sets it for each worker",
            ),
            (
                "export TENTPOLE_WID=1",
                "line 1: `TENTPOLE_WID` can't be set here: the manager sets it for each worker",
            ),
        ] {
            assert_eq!(parse_env_file(text), Err(message.into()), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[A-C=\"'\\\\ \t\r\n#;$\u{e4}\0]{0,80}|\\PC{0,80}") {
            if let Ok(entries) = parse_env_file(&text) {
                for (name, value) in entries {
                    prop_assert!(refusal(&name).is_none());
                    prop_assert!(!value.contains('\0'));
                }
            }
        }

        #[test]
        fn a_value_that_begins_without_a_quote_keeps_its_quotes(
            first in "[a-z0-9{}$#=:]",
            rest in "[a-z\"' {}:,#$=\u{e4}]{0,20}",
        ) {
            let value = format!("{first}{rest}");
            let wanted = value.trim_end_matches(' ').to_string();
            prop_assert_eq!(parsed(&format!("A={value}\nB=1")), [("A".into(), wanted), ("B".into(), "1".into())]);
        }

        #[test]
        fn a_quoted_value_comes_back_as_it_was(value in "[^\0\r]{0,40}") {
            let quoted: String = value
                .chars()
                .flat_map(|c| match c {
                    '"' | '\\' | '$' | '`' => vec!['\\', c],
                    c => vec![c],
                })
                .collect();
            prop_assert_eq!(parsed(&format!("A=\"{quoted}\"\nB=1")), [("A".into(), value), ("B".into(), "1".into())]);
        }
    }
}
