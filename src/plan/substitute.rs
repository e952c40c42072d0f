//! Texts with substitutions: found once, when the plan is made, and filled in at each spawn.
//!
//! A [`Template`] is a sequence of words. Each is made of literal text and of what only the moment knows: the worker's
//! number, an fd, a variable of its environment. What the unit alone decides (its name, `numprocesses`) is literal text
//! already. The words are split before anything is filled in, so that no value ever becomes two words.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Words with substitutions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Template {
    /// The literal texts and the names of variables, one after the other.
    text: Box<str>,
    parts: Box<[Part]>,
}

/// Eight bytes of a template; a length counts bytes of [`Template::text`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Part {
    /// This much text.
    Text(u32),
    /// The word ends.
    End,
    /// The fd of the watcher's socket of this index.
    Socket(u32),
    /// The fd of a `stdin_socket`.
    Stdin,
    /// The worker's number.
    Wid,
    /// The variable whose name is this much text.
    Env(u32, Quote),
    /// An option of the watcher that is text with substitutions itself.
    Option(TextOption, Quote),
}

/// An option whose value is text with substitutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum TextOption {
    Executable,
    WorkingDir,
    EnvFile,
    Virtualenv,
    Stdin,
    Stdout,
    Stderr,
}

impl TextOption {
    /// All of them.
    pub(super) const ALL: [TextOption; 7] = [
        TextOption::Executable,
        TextOption::WorkingDir,
        TextOption::EnvFile,
        TextOption::Virtualenv,
        TextOption::Stdin,
        TextOption::Stdout,
        TextOption::Stderr,
    ];

    /// Its key in a unit.
    pub(super) fn key(self) -> &'static str {
        match self {
            TextOption::Executable => "executable",
            TextOption::WorkingDir => "working_dir",
            TextOption::EnvFile => "env_file",
            TextOption::Virtualenv => "virtualenv",
            TextOption::Stdin => "stdin",
            TextOption::Stdout => "stdout",
            TextOption::Stderr => "stderr",
        }
    }
}

/// What gives the parts of a template their values.
pub(super) trait Scene {
    /// The worker's number.
    fn wid(&self) -> u32;
    /// The fd of the watcher's socket of this index.
    fn socket(&self, index: usize) -> Result<u32, String>;
    /// Fails where the `stdin_socket` is not there.
    fn stdin(&self) -> Result<(), String>;
    /// A variable of the worker's environment.
    fn variable(&self, name: &str) -> Result<Cow<'_, OsStr>, String>;
    /// The value of an option.
    fn option(&self, option: TextOption) -> Result<OsString, String>;
}

/// Longest word that is made, in bytes. No kernel takes one that is longer (32 pages of at most 64 KiB), and a value
/// that names long ones over and over can't eat the memory.
const LONGEST: usize = 2 << 20;

impl Template {
    /// The words, filled in.
    pub(super) fn words(&self, scene: &dyn Scene) -> Result<Vec<OsString>, String> {
        let count = self
            .parts
            .iter()
            .filter(|part| matches!(part, Part::End))
            .count();
        let mut words = Vec::with_capacity(count);
        let mut word = Vec::new();
        let mut rest = &*self.text;
        for part in &self.parts {
            match *part {
                Part::Text(len) => word.extend_from_slice(take(&mut rest, len).as_bytes()),
                Part::End => words.push(OsString::from_vec(std::mem::take(&mut word))),
                Part::Socket(index) => {
                    word.extend_from_slice(scene.socket(index as usize)?.to_string().as_bytes());
                }
                Part::Stdin => {
                    scene.stdin()?;
                    word.push(b'0');
                }
                Part::Wid => word.extend_from_slice(scene.wid().to_string().as_bytes()),
                Part::Env(len, quote) => {
                    let name = take(&mut rest, len);
                    let value = scene.variable(name)?;
                    let quoted = quote.apply(value.as_bytes()).ok_or_else(|| {
                        format!("the value of `$(circus.env.{name})` {UNQUOTABLE}; use the shell's own `\"${name}\"`")
                    })?;
                    word.extend_from_slice(&quoted);
                }
                Part::Option(option, quote) => {
                    let value = scene.option(option)?;
                    let quoted = quote.apply(value.as_bytes()).ok_or_else(|| {
                        format!("the value of `$(circus.{})` {UNQUOTABLE}", option.key())
                    })?;
                    word.extend_from_slice(&quoted);
                }
            }
            if word.len() > LONGEST {
                return Err(format!(
                    "a word is longer than {LONGEST} bytes, which no kernel takes"
                ));
            }
        }
        Ok(words)
    }

    /// The one word of a template that was built with one.
    pub(super) fn word(&self, scene: &dyn Scene) -> Result<OsString, String> {
        Ok(self.words(scene)?.pop().unwrap_or_default())
    }

    /// The options it refers to.
    pub(super) fn options(&self) -> impl Iterator<Item = TextOption> + '_ {
        self.parts.iter().filter_map(|part| match part {
            Part::Option(option, _) => Some(*option),
            Part::Text(_)
            | Part::End
            | Part::Socket(_)
            | Part::Stdin
            | Part::Wid
            | Part::Env(..) => None,
        })
    }

    /// The sockets whose numbers it has, as indices into those that are passed.
    pub(super) fn sockets(&self) -> impl Iterator<Item = u32> + '_ {
        self.parts.iter().filter_map(|part| match part {
            Part::Socket(index) => Some(*index),
            Part::Text(_)
            | Part::End
            | Part::Stdin
            | Part::Wid
            | Part::Env(..)
            | Part::Option(..) => None,
        })
    }

    /// How many parts it has.
    pub(super) fn part_count(&self) -> usize {
        self.parts.len()
    }
}

/// Why a value is refused in the text of a shell.
const UNQUOTABLE: &str = "has characters that the shell would read as its own where it stands (a command substitution, \
                          a here-document, a comment, after a backslash)";

/// Takes `len` bytes off `rest`. A template always has them, unless it was tampered with on its way through a file.
fn take<'t>(rest: &mut &'t str, len: u32) -> &'t str {
    let (taken, left) = rest.split_at_checked(len as usize).unwrap_or((rest, ""));
    *rest = left;
    taken
}

/// Puts a [`Template`] together.
#[derive(Default)]
pub(super) struct Builder {
    text: String,
    parts: Vec<Part>,
    /// Bytes of literal text that are not a part yet.
    pending: usize,
}

impl Builder {
    /// Literal text.
    pub(super) fn push_text(&mut self, text: &str) {
        self.text.push_str(text);
        self.pending += text.len();
    }

    /// The end of a word.
    pub(super) fn end_word(&mut self) {
        self.push(Part::End);
    }

    /// The fd of the watcher's socket of this index.
    pub(super) fn push_socket(&mut self, index: u32) {
        self.push(Part::Socket(index));
    }

    /// The fd of the `stdin_socket`.
    pub(super) fn push_stdin(&mut self) {
        self.push(Part::Stdin);
    }

    /// The worker's number.
    pub(super) fn push_wid(&mut self) {
        self.push(Part::Wid);
    }

    /// A variable.
    pub(super) fn push_variable(&mut self, name: &str, quote: Quote) {
        self.flush();
        self.text.push_str(name);
        self.parts.push(Part::Env(length(name.len()), quote));
    }

    /// An option.
    pub(super) fn push_option(&mut self, option: TextOption, quote: Quote) {
        self.push(Part::Option(option, quote));
    }

    /// The template, its last word ended.
    pub(super) fn finish(mut self) -> Template {
        self.flush();
        Template {
            text: self.text.into(),
            parts: self.parts.into(),
        }
    }

    fn push(&mut self, part: Part) {
        self.flush();
        self.parts.push(part);
    }

    fn flush(&mut self) {
        if self.pending > 0 {
            self.parts.push(Part::Text(length(self.pending)));
            self.pending = 0;
        }
    }
}

/// Places in unit files are counted in 32 bits already, so no text in one is longer.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A substitution as it stands in a text.
#[derive(Debug, PartialEq)]
pub(super) struct Reference<'t> {
    /// All of it: `$(circus.wid)`.
    pub(super) raw: &'t str,
    /// What it names: `wid`.
    pub(super) name: &'t str,
}

/// A stretch of a text.
#[derive(Debug, PartialEq)]
pub(super) enum Piece<'t> {
    /// Literal text.
    Text(&'t str),
    /// A substitution.
    Reference(Reference<'t>),
    /// A substitution without its end: the rest of the text.
    Unclosed(&'t str),
}

/// Takes `text` apart. `$(circus.NAME)` and `((circus.NAME))` in any case are substitutions; everything else is not.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, left) = match find_opening(rest) {
            None => (Piece::Text(rest), ""),
            Some(at) if at > 0 => (Piece::Text(&rest[..at]), &rest[at..]),
            Some(_) => {
                let closing = if rest.starts_with('$') { ")" } else { "))" };
                match rest[OPENING..].find(closing) {
                    None => (Piece::Unclosed(rest), ""),
                    Some(len) => {
                        let end = OPENING + len + closing.len();
                        let name = &rest[OPENING..OPENING + len];
                        let raw = &rest[..end];
                        (Piece::Reference(Reference { raw, name }), &rest[end..])
                    }
                }
            }
        };
        rest = left;
        Some(piece)
    })
}

/// Bytes of `$(circus.`, and of `((circus.`.
const OPENING: usize = 9;

/// Where the first substitution begins.
fn find_opening(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    (0..bytes.len()).find(|&at| {
        matches!(bytes[at], b'$' | b'(')
            && bytes
                .get(at + 1..at + OPENING)
                .is_some_and(|word| word.eq_ignore_ascii_case(b"(circus."))
    })
}

/// How a value is written into a word.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Quote {
    /// As it is: the word is nobody's program text.
    Whole,
    /// Shell text outside of quotes.
    Bare,
    /// Shell text in double quotes.
    Double,
    /// Shell text in single quotes.
    Single,
    /// Shell text where no quoting is sure to hold.
    Unsure,
}

impl Quote {
    /// `value` as it must be written to arrive as it is; `None` where that can't be done.
    pub(super) fn apply(self, value: &[u8]) -> Option<Cow<'_, [u8]>> {
        let plain = |c: &u8| c.is_ascii_alphanumeric() || b"_@%+:,./-".contains(c);
        let escape = |special: &[u8], before: &[u8]| -> Vec<u8> {
            let mut escaped = Vec::with_capacity(value.len() + 8);
            for c in value {
                if special.contains(c) {
                    escaped.extend_from_slice(before);
                }
                escaped.push(*c);
            }
            escaped
        };
        match self {
            Quote::Whole => Some(Cow::Borrowed(value)),
            Quote::Unsure => value.iter().all(plain).then_some(Cow::Borrowed(value)),
            Quote::Double => Some(Cow::Owned(escape(b"\\\"$`", b"\\"))),
            Quote::Bare if !value.is_empty() && value.iter().all(plain) => {
                Some(Cow::Borrowed(value))
            }
            Quote::Bare | Quote::Single => {
                let mut quoted = Vec::with_capacity(value.len() + 8);
                if self == Quote::Bare {
                    quoted.push(b'\'');
                }
                for c in value {
                    match c {
                        b'\'' => quoted.extend_from_slice(b"'\\''"),
                        c => quoted.push(*c),
                    }
                }
                if self == Quote::Bare {
                    quoted.push(b'\'');
                }
                Some(Cow::Owned(quoted))
            }
        }
    }
}

/// Follows the quotes of a shell's text, as far as values that are inserted depend on them. Where that would take the
/// whole of a shell's grammar it gives up, and [`Quote::Unsure`] takes harmless values only.
pub(super) struct ShellText {
    state: State,
    last: char,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Bare,
    Escaped,
    Comment,
    Single,
    Double,
    EscapedInDouble,
    /// In a `${NAME}` within double quotes.
    NameInDouble,
    Lost,
}

impl ShellText {
    /// At the start of a text.
    pub(super) fn new() -> Self {
        ShellText {
            state: State::Bare,
            last: '\n',
        }
    }

    /// Goes over literal text.
    pub(super) fn read(&mut self, text: &str) {
        for c in text.chars() {
            self.state = self.next(c);
            self.last = c;
        }
    }

    /// How a value is to be written here; it counts as read.
    pub(super) fn insert(&mut self) -> Quote {
        self.last = 'x';
        match self.state {
            State::Bare => Quote::Bare,
            State::Single => Quote::Single,
            State::Double => Quote::Double,
            State::Comment => Quote::Unsure,
            State::Escaped | State::EscapedInDouble | State::NameInDouble | State::Lost => {
                self.state = State::Lost;
                Quote::Unsure
            }
        }
    }

    /// Whether a word may follow.
    pub(super) fn is_bare(&self) -> bool {
        self.state == State::Bare
    }

    fn next(&self, c: char) -> State {
        match (self.state, c) {
            (State::Lost, _) => State::Lost,
            (State::Escaped, _) => State::Bare,
            (State::EscapedInDouble, _) => State::Double,
            (State::Comment, '\n') => State::Bare,
            (State::Comment, _) => State::Comment,
            (State::Single, '\'') => State::Bare,
            (State::Single, _) => State::Single,
            (State::NameInDouble, '}') => State::Double,
            (State::NameInDouble, c) if c == '_' || c.is_ascii_alphanumeric() => {
                State::NameInDouble
            }
            (State::NameInDouble, _) => State::Lost,
            (State::Double, '"') => State::Bare,
            (State::Double, '\\') => State::EscapedInDouble,
            (State::Double, '`') => State::Lost,
            (State::Double, '{') if self.last == '$' => State::NameInDouble,
            (State::Double, '(') if self.last == '$' => State::Lost,
            (State::Double, _) => State::Double,
            (State::Bare, '\\') => State::Escaped,
            // `$'...'` has escapes in some shells and none in others.
            (State::Bare, '\'') if self.last == '$' => State::Lost,
            (State::Bare, '\'') => State::Single,
            (State::Bare, '"') => State::Double,
            (State::Bare, '`') => State::Lost,
            (State::Bare, '<') if self.last == '<' => State::Lost,
            (State::Bare, '#') if " \t\n;&|()<>".contains(self.last) => State::Comment,
            (State::Bare, _) => State::Bare,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(text: &str) -> Piece<'_> {
        Piece::Text(text)
    }

    fn reference<'t>(raw: &'t str, name: &'t str) -> Piece<'t> {
        Piece::Reference(Reference { raw, name })
    }

    #[test]
    fn both_forms_are_found_in_any_case_and_nothing_else_is() {
        let found = |text| pieces(text).collect::<Vec<_>>();
        assert_eq!(found(""), []);
        assert_eq!(
            found("a$(circus.wid)b"),
            [text("a"), reference("$(circus.wid)", "wid"), text("b")]
        );
        assert_eq!(
            found("$(CIRCUS.Env.X)((Circus.wid))"),
            [
                reference("$(CIRCUS.Env.X)", "Env.X"),
                reference("((Circus.wid))", "wid")
            ]
        );
        assert_eq!(
            found("$((circus.wid))"),
            [text("$"), reference("((circus.wid))", "wid")]
        );
        assert_eq!(
            found("$(circus.socket.a b/ü)"),
            [reference("$(circus.socket.a b/ü)", "socket.a b/ü")]
        );
        assert_eq!(found("$(circus.)"), [reference("$(circus.)", "")]);
        for other in [
            "$(circus)",
            "$(other)",
            "$$",
            "${circus.wid}",
            "$circus.wid",
            "(circus.wid)",
            "%(circus.wid)s",
            "$ (circus.wid)",
        ] {
            assert_eq!(found(other), [text(other)], "{other}");
        }
    }

    #[test]
    fn a_substitution_that_is_not_closed_takes_the_rest() {
        let found = |text| pieces(text).collect::<Vec<_>>();
        assert_eq!(
            found("a $(circus.wid"),
            [text("a "), Piece::Unclosed("$(circus.wid")]
        );
        assert_eq!(
            found("((circus.wid) x"),
            [Piece::Unclosed("((circus.wid) x")]
        );
        assert_eq!(found("$(circus."), [Piece::Unclosed("$(circus.")]);
    }

    #[test]
    fn a_part_is_eight_bytes() {
        assert_eq!(size_of::<Part>(), 8);
        assert_eq!(size_of::<Template>(), 32);
    }

    /// The quotes that values get at each `@` of a shell's text.
    fn quotes(text: &str) -> Vec<Quote> {
        let mut shell = ShellText::new();
        let mut found = Vec::new();
        for (n, literal) in text.split('@').enumerate() {
            if n > 0 {
                found.push(shell.insert());
            }
            shell.read(literal);
        }
        found
    }

    #[test]
    fn the_quotes_of_a_shell_are_followed() {
        use Quote::*;
        for (text, wanted) in [
            ("echo @", vec![Bare]),
            ("echo '@' \"@\" @", vec![Single, Double, Bare]),
            ("echo \\'@", vec![Bare]),
            ("echo \"\\\"@\"@", vec![Double, Bare]),
            ("echo \\@ @", vec![Unsure, Unsure]),
            ("echo \"\\@\"", vec![Unsure]),
            ("echo $(cat @)", vec![Bare]),
            ("echo \"$(cat @)\"", vec![Unsure]),
            ("echo `cat @`", vec![Unsure]),
            ("echo '`' @", vec![Bare]),
            ("cat <<x\n@", vec![Unsure]),
            ("cat < @", vec![Bare]),
            ("true # it's @\necho @", vec![Unsure, Bare]),
            ("echo a#'@'", vec![Single]),
            ("echo \"${HOME}/@\" @", vec![Double, Bare]),
            ("echo \"${HOME:-@}\"", vec![Unsure]),
            ("echo ${HOME:-@}", vec![Bare]),
            ("echo $'@'", vec![Unsure]),
        ] {
            assert_eq!(quotes(text), wanted, "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_text(text in "([$(]{1,3}(circus|CIRCUS|x)?[.]?[a-z .]{0,5}[)]{0,3}|\\PC){0,12}") {
            let joined: String = pieces(&text)
                .map(|piece| match piece {
                    Piece::Text(text) | Piece::Unclosed(text) => text,
                    Piece::Reference(reference) => reference.raw,
                })
                .collect();
            prop_assert_eq!(joined, text);
        }

        #[test]
        fn a_quoted_value_is_one_word_and_comes_back(value in "[^\0]{0,20}") {
            for (quote, before, after) in [
                (Quote::Bare, "a ", " b"),
                (Quote::Double, "a \"", "\" b"),
                (Quote::Single, "a '", "' b"),
            ] {
                let quoted = quote.apply(value.as_bytes()).expect("these take any value");
                let quoted = std::str::from_utf8(&quoted).expect("still text");
                let words = shell_words::split(&format!("{before}{quoted}{after}"));
                prop_assert_eq!(words, Ok(vec!["a".to_string(), value.clone(), "b".into()]));
            }
        }
    }
}
