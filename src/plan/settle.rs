//! One watcher: which sockets it passes, whom it runs as, and its texts taken apart.

use super::environment::{self, Environment, Variable, shorten};
use super::nearest::Hints;
use super::option::{self, Value};
use super::substitute::{
    Builder, Piece, Quote, Reference, ShellText, Template, TextOption, pieces,
};
use super::{Host, Identity, identity};
use crate::unit::{
    self, At, Doubt, Doubts, Finding, Findings, NotifyAccess, Place, Sources, Stdin, WatcherKind,
    Words,
};
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// The texts of a watcher that are not literal, and its command.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Templates {
    /// argv, each word ended.
    pub(super) argv: Template,
    /// Options with substitutions; the unit has the others.
    pub(super) options: Box<[(TextOption, Template)]>,
    /// Values with substitutions, by their index in the unit's `env`.
    pub(super) env: Box<[(u32, Template)]>,
}

/// What is settled of one watcher. Sockets are indices into the units' sockets.
pub(super) struct Settled {
    pub(super) sockets: Vec<usize>,
    pub(super) listens: Vec<usize>,
    pub(super) identity: Option<Identity>,
    pub(super) templates: Templates,
}

/// What all watchers are checked against.
pub(super) struct World<'a> {
    /// In order of name.
    sockets: &'a [Box<unit::Socket>],
    /// By name in lower case: made when the first reference needs it.
    by_any_case: OnceCell<HashMap<String, usize>>,
    manager_env: &'a [(String, At<String>)],
    own: &'a [Variable],
    /// Made when the first reference needs it.
    own_in_lower_case: OnceCell<HashSet<OsString>>,
    doubts: &'a Doubts,
    sources: &'a Sources,
    hints: &'a Hints,
}

impl<'a> World<'a> {
    /// `sockets` are in order of name; `own` is the manager's own environment.
    pub(super) fn new(
        sockets: &'a [Box<unit::Socket>],
        manager_env: &'a [(String, At<String>)],
        own: &'a [Variable],
        doubts: &'a Doubts,
        sources: &'a Sources,
        hints: &'a Hints,
    ) -> Self {
        World {
            sockets,
            by_any_case: OnceCell::new(),
            manager_env,
            own,
            own_in_lower_case: OnceCell::new(),
            doubts,
            sources,
            hints,
        }
    }

    /// The socket of exactly this name.
    fn socket(&self, name: &str) -> Option<usize> {
        self.sockets
            .binary_search_by(|socket| socket.name.value.as_str().cmp(name))
            .ok()
    }

    /// The socket of this name, or of one that differs by case: substitutions take any case, as in Circus.
    fn socket_in_any_case(&self, name: &str) -> Option<usize> {
        self.socket(name).or_else(|| {
            let by_any_case = self.by_any_case.get_or_init(|| {
                let names = self.sockets.iter().enumerate();
                names
                    .map(|(index, socket)| (socket.name.value.to_lowercase(), index))
                    .collect()
            });
            by_any_case.get(&name.to_lowercase()).copied()
        })
    }

    /// Whether the manager's own environment has this variable, in any case.
    fn has_own_variable(&self, name: &str) -> bool {
        let own = self.own_in_lower_case.get_or_init(|| {
            let own = self.own.iter();
            own.map(|own| own.name().to_ascii_lowercase()).collect()
        });
        own.contains(&OsString::from(name.to_ascii_lowercase()))
    }

    /// The environment that a watcher starts from.
    fn base(&self, copy: bool) -> Environment<'a> {
        let mut base = Environment::new(copy, self.own);
        for (name, value) in self.manager_env {
            base.set(OsStr::new(name), OsStr::new(&value.value));
        }
        base
    }

    fn socket_hint(&self, name: &str) -> String {
        let names = self.sockets.iter().map(|socket| socket.name.value.as_str());
        self.hints.nearest(name, names)
    }
}

/// Fills `$(circus.env.X)` into the values of `[manager] env`, which are the same for all watchers.
pub(super) fn fold_manager_env(
    env: &mut [(String, At<String>)],
    own: &[Variable],
    sources: &Sources,
    findings: &mut Findings,
) {
    let mut environment = Environment::new(true, own);
    for (key, value) in env {
        let mut filled = String::with_capacity(value.value.len());
        let refusal =
            |place: Place, what: String| Finding::error(place, format!("`[manager]`: {what}"));
        if let Some(why) = environment::refusal(key) {
            let what = format!("`{}` can't be set in `env`: {why}", shorten(key));
            findings.push(refusal(value.place, what));
            continue;
        }
        let mut offset = 0;
        for piece in pieces(&value.value) {
            let (written, found) = match piece {
                Piece::Text(text) => (text, Ok(text)),
                Piece::Unclosed(rest) => (rest, Err(format!("`{}` is not closed", shorten(rest)))),
                Piece::Reference(Reference { raw, name }) => {
                    let name = strip_prefix(name, "env.");
                    let found = name.map(|name| environment.value_in_any_case(name));
                    let found = match found.map(|found| found.map(OsStr::to_str)) {
                        Some(Some(Some(found))) => Ok(found),
                        Some(Some(None)) => Err(format!("`{}` is not UTF-8", shorten(raw))),
                        Some(None) => Err(format!(
                            "`{}` is neither in the manager's environment nor earlier in `env`",
                            shorten(raw)
                        )),
                        None => Err(format!(
                            "`{}` can't stand in `env`, which is the same for all watchers and knows `$(circus.env.NAME)` \
                             only; put it into the `env` of a watcher",
                            shorten(raw)
                        )),
                    };
                    (raw, found)
                }
            };
            match found {
                Ok(found) => filled.push_str(found),
                Err(what) => {
                    let place = place_within(value.place, offset, written.len(), sources, findings);
                    findings.push(refusal(place, what));
                }
            }
            offset += written.len();
        }
        if filled.contains('\0') {
            let what = format!("`{key}` in `env` has a NUL byte");
            findings.push(refusal(value.place, what));
        }
        environment.set(OsString::from(&*key), OsString::from(&filled));
        value.value = filled;
    }
}

/// Settles `watcher`. What comes back is of use only if no error was added to `findings`.
pub(super) fn settle(
    watcher: &unit::Watcher,
    world: &World<'_>,
    host: &dyn Host,
    findings: &mut Findings,
) -> Settled {
    let doubt = world.doubts.of(watcher.name.place);
    let identity = identity::of_watcher(watcher, doubt, host, findings);
    // The loader has told of them where it had to tell of another mistake.
    if doubt.is_none() {
        find_contradictions(watcher, findings);
    }
    let mut compiler = Compiler::new(watcher, world, identity.as_ref().ok(), findings);
    compiler.list_sockets();
    let templates = compiler.compile();
    compiler.judge_sockets();
    compiler.judge_places(&templates, host);
    let Compiler {
        passed,
        stdin_socket,
        ..
    } = compiler;
    let mut listens = passed.clone();
    listens.extend(stdin_socket.filter(|index| !passed.contains(index)));
    Settled {
        sockets: passed,
        listens,
        identity: identity.unwrap_or(None),
        templates,
    }
}

/// Options that are right each by itself and wrong together.
fn find_contradictions(watcher: &unit::Watcher, findings: &mut Findings) {
    let name = &watcher.name.value;
    let mut refuse = |place: Place, what: &str| {
        findings.push(Finding::error(place, format!("watcher `{name}`: {what}")));
    };
    let own_place = watcher.name.place;
    if let (Some(sockets), true) = (&watcher.sockets, watcher.use_sockets) {
        refuse(
            sockets.first().map_or(own_place, |at| at.place),
            "`sockets` passes those it lists and `use_sockets` all of them; keep one of the two",
        );
    }
    if let (Some(socket), Stdin::File(_)) = (&watcher.stdin_socket, &watcher.stdin) {
        refuse(
            socket.place,
            "fd 0 can't be both `stdin_socket` and the file of `stdin`; keep one of the two",
        );
    }
    if watcher.notify_access == NotifyAccess::None {
        if watcher.kind == WatcherKind::Notify {
            refuse(
                own_place,
                "`type = \"notify\"` waits for READY=1, which `notify_access = \"none\"` ignores",
            );
        }
        if watcher.watchdog.is_some() {
            refuse(
                own_place,
                "`watchdog` waits for WATCHDOG=1, which `notify_access = \"none\"` ignores",
            );
        }
    }
    if watcher.singleton && watcher.numprocesses.value > 1 {
        refuse(
            watcher.numprocesses.place,
            "`singleton = true` allows no more than one worker in `numprocesses`",
        );
    }
    for (key, value) in &watcher.env {
        if let Some(why) = environment::refusal(key) {
            refuse(
                value.place,
                &format!("`{}` can't be set in `env`: {why}", shorten(key)),
            );
        }
    }
    let mut warn = |place: Place, what: &str| {
        findings.push(Finding::warning(place, format!("watcher `{name}`: {what}")));
    };
    if watcher.restart_delay > watcher.restart_max_delay {
        warn(
            own_place,
            "`restart_delay` is longer than `restart_max_delay`, which caps it",
        );
    }
    if watcher
        .start_timeout
        .is_some_and(|limit| watcher.ready_delay >= limit)
    {
        warn(
            own_place,
            "no worker can be ready before `start_timeout`, which is not longer than `ready_delay`",
        );
    }
}

/// Takes the texts of one watcher apart.
struct Compiler<'a, 'f> {
    unit: &'a unit::Watcher,
    world: &'a World<'a>,
    /// `None` where it could not be found, which is reported.
    identity: Option<&'a Option<Identity>>,
    findings: &'f mut Findings,
    /// Sockets in fd order.
    passed: Vec<usize>,
    /// Where each of them is in `passed`; empty where they are all there, and in order.
    positions: HashMap<usize, u32>,
    stdin_socket: Option<usize>,
    /// Whether a reference to a socket passes it.
    collects: bool,
    /// Whether any text refers to a socket.
    refers: bool,
    /// Whether a socket that is named is not there.
    lacks_socket: bool,
    /// What is not known of the unit.
    doubt: Option<&'a Doubt>,
    /// How much of the value that is being taken apart has been looked through for its substitutions; more than there is
    /// where one was not found, since it is not written as the words have it.
    cursor: usize,
    /// Where in that value the substitution stands that is being looked at, and its length; nothing where it was not found.
    substitution: (usize, usize),
}

/// A text, and how it is spoken of.
struct Text<'a> {
    text: &'a str,
    key: &'a str,
    /// Where the value stands that this is of, and that.
    place: Place,
    whole: &'a str,
    sees: Sees,
}

/// Which variables `$(circus.env.NAME)` can name.
#[derive(Clone, Copy, PartialEq)]
enum Sees {
    /// The manager's and `[manager] env`: they are known already, and filled in.
    Manager,
    /// Those too, `env_file`, and this many of the unit's own.
    Own(usize),
    /// All that the worker gets.
    All,
}

/// The keys that give a worker variables.
const VARIABLE_KEYS: [&str; 9] = [
    "copy_env",
    "env",
    "env_file",
    "listen_fds",
    "sockets",
    "use_sockets",
    "user",
    "virtualenv",
    "watchdog",
];

/// The keys that can name a socket.
const SOCKET_KEYS: [&str; 8] = [
    "args",
    "cmd",
    "env",
    "executable",
    "shell_args",
    "sockets",
    "stdin_socket",
    "use_sockets",
];

/// Whose words a text is.
enum Language<'s> {
    /// Nobody's: it arrives as it is.
    None,
    /// A shell's.
    Shell(&'s mut ShellText),
    /// A shell's, in single quotes.
    Quoted,
}

impl<'a, 'f> Compiler<'a, 'f> {
    fn new(
        unit: &'a unit::Watcher,
        world: &'a World<'a>,
        identity: Option<&'a Option<Identity>>,
        findings: &'f mut Findings,
    ) -> Self {
        Compiler {
            unit,
            world,
            identity,
            findings,
            passed: Vec::new(),
            positions: HashMap::new(),
            stdin_socket: None,
            collects: unit.sockets.is_none() && !unit.use_sockets,
            refers: false,
            lacks_socket: false,
            doubt: world.doubts.of(unit.name.place),
            cursor: 0,
            substitution: (0, 0),
        }
    }

    /// Whether the value of any of these keys is not known.
    fn is_unsure_of(&self, keys: &[&str]) -> bool {
        self.doubt.is_some_and(|doubt| doubt.is_about(keys))
    }

    /// The sockets that the unit names outside of substitutions.
    fn list_sockets(&mut self) {
        let unit = self.unit;
        if let Some(name) = &unit.stdin_socket {
            self.stdin_socket = self.find_socket(name, "stdin_socket");
        }
        if unit.use_sockets {
            self.passed = (0..self.world.sockets.len()).collect();
            return;
        }
        for name in unit.sockets.iter().flatten() {
            if let Some(index) = self.find_socket(name, "sockets")
                && !self.pass(index)
            {
                self.error(
                    name.place,
                    format!("socket `{}` is in `sockets` twice", name.value),
                );
            }
        }
    }

    fn find_socket(&mut self, name: &At<String>, key: &str) -> Option<usize> {
        let found = self.world.socket(&name.value);
        self.lacks_socket |= found.is_none();
        if found.is_none() && !self.world.doubts.may_be_named(&name.value) {
            let hint = self.world.socket_hint(&name.value);
            self.error(
                name.place,
                format!("unknown socket `{}` in `{key}`{hint}", name.value),
            );
        }
        found
    }

    /// Adds a socket to those that are passed, unless it is there.
    fn pass(&mut self, index: usize) -> bool {
        if self.position(index).is_some() {
            return false;
        }
        self.positions.insert(index, index32(self.passed.len()));
        self.passed.push(index);
        true
    }

    /// Where a socket is in `passed`.
    fn position(&self, index: usize) -> Option<u32> {
        match self.unit.use_sockets {
            true => Some(index32(index)),
            false => self.positions.get(&index).copied(),
        }
    }

    /// All texts. The order is that in which sockets are collected.
    fn compile(&mut self) -> Templates {
        let unit = self.unit;
        let argv = self.compile_argv();
        let mut options: Vec<(TextOption, Template)> = Vec::new();
        options.extend(self.compile_option(TextOption::Executable));
        let mut env = Vec::new();
        for (index, (key, value)) in unit.env.iter().enumerate() {
            let key = format!("env.{key}");
            let sees = Sees::Own(index);
            let template = self.compile_value(&value.value, &key, value, sees);
            env.extend(template.map(|template| (index32(index), template)));
        }
        self.collects = false;
        for option in TextOption::ALL {
            if option != TextOption::Executable {
                options.extend(self.compile_option(option));
            }
        }
        self.find_circles(&argv, &options, &env);
        Templates {
            argv,
            options: options.into(),
            env: env.into(),
        }
    }

    /// The words that are exec'd.
    fn compile_argv(&mut self) -> Template {
        let unit = self.unit;
        let mut builder = Builder::default();
        let mut words = 0;
        if unit.shell {
            for word in ["/bin/sh", "-c"] {
                builder.push_text(word);
                builder.end_word();
            }
            words = self.compile_shell_text(&mut builder);
            builder.end_word();
            if let Some(args) = &unit.shell_args {
                self.compile_words(&mut builder, args, "shell_args");
            }
        } else {
            words += self.compile_words(&mut builder, &unit.cmd, "cmd");
            if words > 0
                && first_word_is_empty(&unit.cmd.value)
                && unit.executable.is_none()
                && !self.is_unsure_of(&["executable", "shell"])
            {
                self.error(unit.cmd.place, "the first word of `cmd` is empty".into());
            }
            if let Some(args) = &unit.args {
                self.compile_words(&mut builder, args, "args");
            }
        }
        if words == 0 {
            self.error(
                unit.cmd.place,
                "`cmd` is empty: there is nothing to run".into(),
            );
        }
        builder.finish()
    }

    /// Adds the words of `words`, each ended, and counts them. A text that can't be split counts as one.
    fn compile_words(&mut self, builder: &mut Builder, words: &At<Words>, key: &str) -> usize {
        self.cursor = 0;
        let place = words.place;
        match &words.value {
            Words::List(list) => {
                for word in list {
                    self.cursor = 0;
                    self.compile_word(builder, &word.value, key, word.place, &word.value);
                }
                list.len()
            }
            Words::Text(text) => match shell_words::split(text) {
                Ok(split) => {
                    for word in &split {
                        self.compile_word(builder, word, key, place, text);
                    }
                    split.len()
                }
                // A shell might take it.
                Err(_) if self.is_unsure_of(&["shell"]) => 1,
                Err(_) => {
                    self.error(place, format!("`{key}` has a quote that is never closed"));
                    1
                }
            },
        }
    }

    /// Adds a word, ended, of the value `whole` that stands at `place`.
    fn compile_word(
        &mut self,
        builder: &mut Builder,
        text: &str,
        key: &str,
        place: Place,
        whole: &str,
    ) {
        let text = Text {
            text,
            key,
            place,
            whole,
            sees: Sees::All,
        };
        self.compile_text(builder, &text, &mut Language::None);
        builder.end_word();
    }

    /// Adds what `sh -c` runs: `cmd` and `args`, their texts as they are and their lists as quoted words. Answers 0 where
    /// it is empty.
    fn compile_shell_text(&mut self, builder: &mut Builder) -> usize {
        let unit = self.unit;
        let mut shell = ShellText::new();
        let mut words = 0;
        let keys = [("cmd", Some(&unit.cmd)), ("args", unit.args.as_ref())];
        for (key, value) in keys {
            let Some(At { value, place }) = value else {
                continue;
            };
            if key == "args" {
                if !shell.is_bare() {
                    self.error(
                        *place,
                        "`args` can't be put behind this `cmd`: it ends within quotes or a comment, or holds a command \
                         substitution or a here-document; write the arguments into `cmd`"
                            .into(),
                    );
                    break;
                }
                builder.push_text(" ");
                shell.read(" ");
            }
            match value {
                Words::Text(whole) => {
                    // A newline at the end, as a multi-line string has one, would make `args` a command of its own.
                    let has_args = key == "cmd" && unit.args.is_some();
                    let text = if has_args { whole.trim_end() } else { whole };
                    words += usize::from(!text.trim().is_empty());
                    let text = Text {
                        text,
                        key,
                        place: *place,
                        whole,
                        sees: Sees::All,
                    };
                    self.cursor = 0;
                    self.compile_text(builder, &text, &mut Language::Shell(&mut shell));
                }
                Words::List(list) => {
                    words += list.len();
                    for (n, word) in list.iter().enumerate() {
                        let text = Text {
                            text: &word.value,
                            key,
                            place: word.place,
                            whole: &word.value,
                            sees: Sees::All,
                        };
                        self.cursor = 0;
                        builder.push_text(if n == 0 { "'" } else { " '" });
                        self.compile_text(builder, &text, &mut Language::Quoted);
                        builder.push_text("'");
                    }
                }
            }
        }
        words
    }

    /// The template of an option that has substitutions.
    fn compile_option(&mut self, option: TextOption) -> Option<(TextOption, Template)> {
        let unit = self.unit;
        let text = option::text(unit, option)?;
        let value = option::written(unit, option)?;
        let sees = match option {
            TextOption::EnvFile => Sees::Manager,
            TextOption::Virtualenv => Sees::Own(unit.env.len()),
            TextOption::Executable
            | TextOption::WorkingDir
            | TextOption::Stdin
            | TextOption::Stdout
            | TextOption::Stderr => Sees::All,
        };
        if text.is_empty() {
            self.error(value.place, format!("`{}` is empty", option.key()));
        }
        self.compile_value(text, option.key(), value, sees)
            .map(|template| (option, template))
    }

    /// The template of `text`, the value of `key` or the end of it, if it has substitutions.
    fn compile_value(
        &mut self,
        text: &str,
        key: &str,
        value: &At<String>,
        sees: Sees,
    ) -> Option<Template> {
        let mut builder = Builder::default();
        let spoken_of = Text {
            text,
            key,
            place: value.place,
            whole: &value.value,
            sees,
        };
        self.cursor = 0;
        let has_any = self.compile_text(&mut builder, &spoken_of, &mut Language::None);
        builder.end_word();
        has_any.then(|| builder.finish())
    }

    /// Adds `text` to the word that is being built; true if it has a substitution.
    fn compile_text(
        &mut self,
        builder: &mut Builder,
        text: &Text<'_>,
        language: &mut Language<'_>,
    ) -> bool {
        if text.text.contains('\0') {
            self.error(
                text.place,
                format!(
                    "`{}` has a NUL byte, which no program can be given",
                    text.key
                ),
            );
        }
        let mut has_any = false;
        for piece in pieces(text.text) {
            match (piece, &mut *language) {
                (Piece::Text(literal), Language::None) => builder.push_text(literal),
                (Piece::Text(literal), Language::Shell(shell)) => {
                    shell.read(literal);
                    builder.push_text(literal);
                }
                (Piece::Text(literal), Language::Quoted) => {
                    push_quoted(builder, literal, Quote::Single);
                }
                (Piece::Unclosed(rest), _) => {
                    has_any = true;
                    self.go_to(text, rest);
                    let closing = if rest.starts_with('$') { ")" } else { "))" };
                    self.refuse(
                        text,
                        format!(
                            "`{}` has no `{closing}`; a name with blanks needs quotes around its word",
                            shorten(rest)
                        ),
                    );
                }
                (Piece::Reference(reference), language) => {
                    has_any = true;
                    self.go_to(text, reference.raw);
                    let quote = match language {
                        Language::None => Quote::Whole,
                        Language::Quoted => Quote::Single,
                        Language::Shell(shell) => shell.insert(),
                    };
                    self.compile_reference(builder, text, &reference, quote);
                }
            }
        }
        has_any
    }

    /// Finds where in the value of `text` the next substitution stands, which is `raw`.
    fn go_to(&mut self, text: &Text<'_>, raw: &str) {
        let rest = text.whole.get(self.cursor..);
        let Some(ahead) = rest.and_then(|rest| rest.find(raw)) else {
            // Nor are the others looked for: of many, each would go through the whole value.
            self.cursor = usize::MAX;
            self.substitution = (0, 0);
            return;
        };
        let start = self.cursor + ahead;
        self.cursor = start + raw.len();
        self.substitution = (start, raw.len());
    }

    fn compile_reference(
        &mut self,
        builder: &mut Builder,
        text: &Text<'_>,
        reference: &Reference<'_>,
        quote: Quote,
    ) {
        let name = reference.name;
        let socket = strip_prefix(name, "sockets.").or_else(|| strip_prefix(name, "socket."));
        if let Some(socket) = socket {
            return self.compile_socket(builder, text, reference, socket);
        }
        if let Some(variable) = strip_prefix(name, "env.") {
            return self.compile_variable(builder, text, reference, variable, quote);
        }
        if name.eq_ignore_ascii_case("wid") {
            return builder.push_wid();
        }
        let raw = shorten(reference.raw);
        let identity = self.identity.and_then(Option::as_ref);
        match option::value(self.unit, identity, name) {
            Value::Text(option) => builder.push_option(option, quote),
            Value::Fixed(value) => {
                if !push_quoted(builder, &value, quote) {
                    self.refuse(
                        text,
                        format!(
                            "`{raw}` is `{}`, which can't be quoted where it stands in the text of a shell",
                            shorten(&value)
                        ),
                    );
                }
            }
            // An identity that was not found is reported already, and so is what can't be read.
            Value::Unset if self.identity.is_none() => {}
            Value::Unset if self.is_unsure_of_option(name) => {}
            Value::Unset => self.refuse(
                text,
                format!("`{raw}`: the watcher sets no `{}`", shorten(name)),
            ),
            Value::Many => self.refuse(
                text,
                match name.to_ascii_lowercase().as_str() {
                    "socket" | "sockets" => {
                        format!("`{raw}` lacks a name: `$(circus.socket.NAME)`")
                    }
                    "env" => format!("`{raw}` lacks a name: `$(circus.env.NAME)`"),
                    _ => format!("`{raw}` is not a single value, and can't be filled in"),
                },
            ),
            Value::Unknown => {
                let lacks = match () {
                    () if self.world.socket_in_any_case(name).is_some() => Some("socket"),
                    () if self.has_variable(name, text.sees) => Some("env"),
                    () => None,
                };
                let hint = match (lacks, name.split_once('.')) {
                    (Some(kind), _) => {
                        format!("; did you mean `$(circus.{kind}.{})`?", shorten(name))
                    }
                    (None, None) => self.world.hints.nearest(name, option::NAMES),
                    (None, Some((kind, _))) => {
                        let kinds = ["socket", "sockets", "env", "rlimits"];
                        self.world.hints.nearest(kind, kinds)
                    }
                };
                self.refuse(text, format!("unknown substitution `{raw}`{hint}"));
            }
        }
    }

    fn compile_socket(
        &mut self,
        builder: &mut Builder,
        text: &Text<'_>,
        reference: &Reference<'_>,
        name: &str,
    ) {
        self.refers = true;
        let raw = shorten(reference.raw);
        let Some(index) = self.world.socket_in_any_case(name) else {
            self.lacks_socket = true;
            if self.world.doubts.may_be_named(name) {
                return;
            }
            let hint = self.world.socket_hint(name);
            return self.refuse(
                text,
                format!("unknown socket `{}` in `{raw}`{hint}", shorten(name)),
            );
        };
        if let Some(position) = self.position(index) {
            return builder.push_socket(position);
        }
        if self.stdin_socket == Some(index) {
            return builder.push_stdin();
        }
        if self.collects {
            self.pass(index);
            return builder.push_socket(index32(self.passed.len() - 1));
        }
        if self.is_unsure_of(&["sockets", "use_sockets", "stdin_socket"]) {
            return;
        }
        let known = &self.world.sockets[index].name.value;
        self.refuse(
            text,
            format!(
                "socket `{known}` is not passed to the worker, so `{raw}` has no fd to name; add it to `sockets`"
            ),
        );
    }

    fn compile_variable(
        &mut self,
        builder: &mut Builder,
        text: &Text<'_>,
        reference: &Reference<'_>,
        name: &str,
        quote: Quote,
    ) {
        let raw = shorten(reference.raw);
        let of_manager = self.world.doubts.of_manager();
        let is_unsure = of_manager.is_some_and(|doubt| doubt.is_about(&["env"]))
            || self.is_unsure_of(&VARIABLE_KEYS);
        if text.sees == Sees::Manager {
            let base = self.world.base(self.unit.copy_env);
            let why = match base.value_in_any_case(name).map(|value| value.to_str()) {
                Some(Some(value)) => return builder.push_text(value),
                Some(None) => format!("`{raw}` is not UTF-8"),
                None if is_unsure => return,
                None => format!(
                    "`{raw}`: before the file is read there is the manager's environment only, and it has no such variable"
                ),
            };
            return self.refuse(text, why);
        }
        if [
            "LISTEN_PID",
            "LISTEN_PIDFDID",
            "WATCHDOG_PID",
            "NOTIFY_SOCKET",
        ]
        .contains(&name)
        {
            return self.refuse(
                text,
                format!("`{raw}` is known to the worker alone, when it runs"),
            );
        }
        // What the file holds is known when it is read, at each spawn.
        if self.unit.env_file.is_none() && !is_unsure && !self.has_variable(name, text.sees) {
            let why = match self.later_variable(name, text.sees) {
                Some(later) => format!(
                    "`{raw}` is not known yet: `env` is filled in in order of name, and `{later}` comes later; write its \
                     value here too, or set it in `[manager] env`"
                ),
                None => {
                    let hint = self.variable_hint(name, text.sees);
                    format!("`{raw}` is not in the worker's environment{hint}")
                }
            };
            return self.refuse(text, why);
        }
        builder.push_variable(name, quote);
    }

    /// Whether the option `name`, which the watcher does not set, may have been meant to be there.
    fn is_unsure_of_option(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let key = name.split('.').next().unwrap_or(&name);
        self.is_unsure_of(&[key])
    }

    /// Whether a worker has this variable, in any case.
    fn has_variable(&self, name: &str, sees: Sees) -> bool {
        (self.unit.copy_env && self.world.has_own_variable(name))
            || self
                .set_variables(sees)
                .any(|known| known.eq_ignore_ascii_case(name))
    }

    /// The variable of this name, in any case, that the unit itself sets after the one that is being filled in.
    fn later_variable(&self, name: &str, sees: Sees) -> Option<&'a str> {
        let Sees::Own(count) = sees else {
            return None;
        };
        let later = self.unit.env.iter().skip(count + 1);
        let mut names = later.map(|(name, _)| name.as_str());
        names.find(|later| later.eq_ignore_ascii_case(name))
    }

    /// The variables that are set for the worker, besides the manager's own.
    fn set_variables(&self, sees: Sees) -> impl Iterator<Item = &str> {
        let unit = self.unit;
        let passes = unit.listen_fds && !self.passed.is_empty();
        let has_user = self
            .identity
            .and_then(Option::as_ref)
            .is_some_and(|identity| identity.user.is_some());
        let all = sees == Sees::All;
        let own = match sees {
            Sees::Manager => 0,
            Sees::Own(count) => count,
            Sees::All => unit.env.len(),
        };
        let conditional: [(bool, &[&str]); 6] = [
            (
                !unit.copy_env || (all && unit.virtualenv.is_some()),
                &["PATH"],
            ),
            (has_user, &["USER", "LOGNAME", "HOME", "SHELL"]),
            (all && unit.virtualenv.is_some(), &["VIRTUAL_ENV"]),
            (all, &environment::TENTPOLE),
            (all && passes, &["LISTEN_FDS", "LISTEN_FDNAMES"]),
            (all && unit.watchdog.is_some(), &["WATCHDOG_USEC"]),
        ];
        conditional
            .into_iter()
            .filter(|(there, _)| *there)
            .flat_map(|(_, names)| names.iter().copied())
            .chain(self.world.manager_env.iter().map(|(name, _)| name.as_str()))
            .chain(unit.env[..own].iter().map(|(name, _)| name.as_str()))
    }

    fn variable_hint(&self, name: &str, sees: Sees) -> String {
        let own = self.world.own.iter().filter(|_| self.unit.copy_env);
        let known = own
            .filter_map(|own| own.name().to_str())
            .chain(self.set_variables(sees));
        self.world.hints.nearest(name, known)
    }

    /// Errors for options that refer to themselves, or to each other so often that filling them in would never end.
    fn find_circles(
        &mut self,
        argv: &Template,
        options: &[(TextOption, Template)],
        env: &[(u32, Template)],
    ) {
        const MOST: usize = 10_000;
        // A bit for each that an option leads to.
        let mut reach = [0u8; TextOption::ALL.len()];
        for (option, template) in options {
            for other in template.options() {
                reach[*option as usize] |= 1 << other as usize;
            }
        }
        for by in 0..reach.len() {
            for from in 0..reach.len() {
                if reach[from] & (1 << by) != 0 {
                    reach[from] |= reach[by];
                }
            }
        }
        let mut told = Vec::new();
        for (option, _) in options {
            let reached = reach[*option as usize];
            // Those of one circle lead to the same.
            if reached & (1 << *option as usize) == 0 || told.contains(&reached) {
                continue;
            }
            told.push(reached);
            let place = option::written(self.unit, *option).map(|value| value.place);
            let key = option.key();
            self.error(
                place.unwrap_or(self.unit.name.place),
                format!("`{key}` refers to itself, or to an option that refers back to it"),
            );
        }
        if !told.is_empty() {
            return;
        }
        let mut costs = Costs {
            options,
            known: [None; TextOption::ALL.len()],
        };
        let all = env.iter().map(|(_, template)| template);
        let all = all.chain(options.iter().map(|(_, template)| template));
        for template in all.chain([argv]) {
            let cost = template
                .options()
                .map(|option| costs.of(option))
                .fold(0, usize::saturating_add);
            if cost > MOST {
                let place = self.unit.name.place;
                self.error(
                    place,
                    format!("its options refer to each other in more than {MOST} places"),
                );
                return;
            }
        }
    }

    /// What is to be said of the sockets once all of them are known.
    fn judge_sockets(&mut self) {
        let unit = self.unit;
        let place = match unit.sockets.as_ref().and_then(|names| names.first()) {
            Some(first) => first.place,
            None => unit.name.place,
        };
        let passes = !self.passed.is_empty();
        let is_unsure = self.lacks_socket || self.is_unsure_of(&SOCKET_KEYS);
        if unit.on_demand.value && !passes && self.stdin_socket.is_none() && !is_unsure {
            self.error(
                unit.on_demand.place,
                "`on_demand` waits for traffic, but the watcher has no socket; name one in `sockets`".into(),
            );
        }
        if passes && !unit.listen_fds && !self.refers {
            self.warning(
                place,
                "nothing tells the worker of its sockets: `listen_fds` is false, and no `$(circus.socket.NAME)` names one"
                    .into(),
            );
        }
        if passes && unit.listen_fds && unit.shell && !has_exec(&unit.cmd.value) {
            self.warning(
                unit.cmd.place,
                "LISTEN_PID will be the shell's, so a program that the shell starts does not take the sockets; start it \
                 with `exec`"
                    .into(),
            );
        }
        let world = self.world;
        let is_renamed = |index: &usize| world.sockets[*index].fd_name.is_some();
        // The names of units differ.
        if !unit.listen_fds || !self.passed.iter().any(is_renamed) {
            return;
        }
        let mut names: HashMap<&str, usize> = HashMap::new();
        for (position, &index) in self.passed.clone().iter().enumerate() {
            let socket = &self.world.sockets[index];
            let fd_name = socket.fd_name.as_ref().unwrap_or(&socket.name.value);
            if let Some(other) = names.insert(fd_name, index) {
                let listed = unit.sockets.as_ref().and_then(|names| names.get(position));
                self.warning(
                    listed.map_or(unit.name.place, |at| at.place),
                    format!(
                        "sockets `{}` and `{}` are both called `{fd_name}` in LISTEN_FDNAMES",
                        self.world.sockets[other].name.value, socket.name.value
                    ),
                );
            }
        }
    }

    /// What may be meant so, and mostly is not: it fails in the worker, where nothing tells of the cause.
    fn judge_places(&mut self, templates: &Templates, host: &dyn Host) {
        let unit = self.unit;
        let is_filled = |option| templates.options.iter().any(|(known, _)| *known == option);
        // What is filled in may differ from worker to worker.
        if let Some(folder) = &unit.virtualenv
            && !folder.value.is_empty()
            && !is_filled(TextOption::Virtualenv)
        {
            let path: PathBuf = unit.folder.join(&folder.value).components().collect();
            if !host.has_folder(&path) {
                let message = format!("`virtualenv`: there is no folder {} now", path.display());
                self.warning(folder.place, message);
            }
        }
        let nofile = unit
            .rlimits
            .iter()
            .find(|(it, _)| *it == unit::Resource::Nofile);
        let (count, soft) = (self.passed.len(), nofile.and_then(|(_, limit)| limit.soft));
        if let Some(soft) = soft.filter(|soft| *soft <= count as u64 + 3) {
            let message = format!(
                "{count} sockets and its output leave nothing of the {soft} files that `nofile` in `rlimits` lets it open"
            );
            self.warning(unit.name.place, message);
        }
    }

    /// An error at the substitution in `text` that is being looked at.
    fn refuse(&mut self, text: &Text<'_>, message: String) {
        let place = match self.substitution {
            (_, 0) => text.place,
            (offset, length) => place_within(
                text.place,
                offset,
                length,
                self.world.sources,
                self.findings,
            ),
        };
        self.error(place, format!("{message} (in `{}`)", text.key));
    }

    fn error(&mut self, place: Place, message: String) {
        let message = format!("watcher `{}`: {message}", self.unit.name.value);
        self.findings.push(Finding::error(place, message));
    }

    fn warning(&mut self, place: Place, message: String) {
        let message = format!("watcher `{}`: {message}", self.unit.name.value);
        self.findings.push(Finding::warning(place, message));
    }
}

/// How many parts it takes to fill in an option, with all that it refers to; none of them is in a circle.
struct Costs<'a> {
    options: &'a [(TextOption, Template)],
    known: [Option<usize>; TextOption::ALL.len()],
}

impl Costs<'_> {
    fn of(&mut self, option: TextOption) -> usize {
        if let Some(cost) = self.known[option as usize] {
            return cost;
        }
        let options = self.options;
        let mut cost = 1usize;
        if let Some((_, template)) = options.iter().find(|(known, _)| *known == option) {
            cost = template.part_count();
            for other in template.options() {
                cost = cost.saturating_add(self.of(other));
            }
        }
        self.known[option as usize] = Some(cost);
        cost
    }
}

/// Where a part of the value at `place` stands.
fn place_within(
    place: Place,
    offset: usize,
    length: usize,
    sources: &Sources,
    findings: &Findings,
) -> Place {
    let start = place.start.saturating_add(index32(offset));
    let earliest = Place { start, ..place };
    // Of what is not kept it need not be known more closely.
    match findings.is_beyond(earliest) {
        true => earliest,
        false => sources.within(place, offset, length),
    }
}

/// `name` without `prefix`, which may be in any case.
fn strip_prefix<'t>(name: &'t str, prefix: &str) -> Option<&'t str> {
    let (start, rest) = name.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Adds `value` in quotes; false where it can't be quoted.
fn push_quoted(builder: &mut Builder, value: &str, quote: Quote) -> bool {
    let quoted = quote.apply(value.as_bytes());
    // Quoting adds ASCII only, so text stays text.
    let quoted = quoted
        .as_ref()
        .and_then(|bytes| std::str::from_utf8(bytes).ok());
    builder.push_text(quoted.unwrap_or_default());
    quoted.is_some()
}

/// Whether a command is known to begin with an empty word, which can't be run.
fn first_word_is_empty(words: &Words) -> bool {
    match words {
        Words::List(list) => list.first().is_some_and(|word| word.value.is_empty()),
        Words::Text(text) => {
            shell_words::split(text).is_ok_and(|words| words.first().is_some_and(String::is_empty))
        }
    }
}

/// Whether the shell is asked to become the program.
fn has_exec(words: &Words) -> bool {
    let in_text = |text: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-')
            .any(|word| word == "exec")
    };
    match words {
        Words::Text(text) => in_text(text),
        Words::List(list) => list.iter().any(|word| in_text(&word.value)),
    }
}

/// Files are counted in 32 bits, so nothing that is counted in one is larger.
fn index32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{Plan, Watcher, plan};
    use super::*;
    use crate::unit::{Address, Output, Severity, SocketKind};
    use proptest::prelude::*;
    use std::time::Duration;

    fn web() -> [unit::Socket; 3] {
        [socket("admin"), socket("Metrics"), socket("web")]
    }

    /// The plan of one watcher with the sockets admin, Metrics and web.
    fn settled(cmd: &str, change: impl FnOnce(&mut unit::Watcher)) -> Watcher {
        let mut made = watcher("w", cmd);
        change(&mut made);
        let plan = planned(units(web(), [made]));
        Watcher::clone(&plan.watchers[0])
    }

    fn passed(cmd: &str, change: impl FnOnce(&mut unit::Watcher)) -> Vec<String> {
        let watcher = settled(cmd, change);
        watcher.sockets.into_iter().map(|s| s.name).collect()
    }

    /// The errors of one watcher with the sockets admin, Metrics and web.
    fn refused(cmd: &str, change: impl FnOnce(&mut unit::Watcher)) -> Vec<String> {
        let mut made = watcher("w", cmd);
        change(&mut made);
        let found = errors(units(web(), [made]));
        let strip = |message: &String| message.replacen("watcher `w`: ", "", 1);
        found.iter().map(strip).collect()
    }

    /// The warnings about one watcher with the socket web.
    fn warned(cmd: &str, change: impl FnOnce(&mut unit::Watcher)) -> Vec<String> {
        let mut made = watcher("w", cmd);
        change(&mut made);
        warnings(units([socket("web")], [made]))
    }

    fn list(names: &[&str]) -> Option<Vec<At<String>>> {
        Some(names.iter().map(|name| at(name)).collect())
    }

    fn words(words: &[&str]) -> At<Words> {
        At::nowhere(Words::List(words.iter().map(|w| at(w)).collect()))
    }

    fn text(text: &str) -> At<Words> {
        At::nowhere(Words::Text(text.into()))
    }

    #[test]
    fn listed_sockets_are_passed_in_their_order() {
        let listed = passed("x $(circus.socket.admin)", |w| {
            w.sockets = list(&["web", "admin"]);
        });
        assert_eq!(listed, ["web", "admin"]);
        assert_eq!(passed("x", |w| w.sockets = list(&[])), [""; 0]);
    }

    #[test]
    fn use_sockets_passes_all_in_order_of_name() {
        assert_eq!(
            passed("x", |w| w.use_sockets = true),
            ["Metrics", "admin", "web"]
        );
    }

    #[test]
    fn without_either_key_the_sockets_that_are_referred_to_are_passed_in_order_of_first_reference()
    {
        let found = passed(
            "x $(circus.sockets.METRICS) ((circus.socket.metrics))",
            |w| {
                w.args = Some(words(&["-a", "$(circus.socket.web)"]));
                w.env = env(&[("A", "$(circus.socket.admin)")]);
            },
        );
        assert_eq!(found, ["Metrics", "web", "admin"]);
        let by_env = passed("x", |w| w.env = env(&[("NGINX", "$(circus.socket.web);")]));
        assert_eq!(by_env, ["web"]);
        let by_executable = passed("x $(circus.socket.web)", |w| {
            w.executable = Some(at("/bin/x$(circus.socket.admin)"));
            w.env = env(&[("A", "$(circus.socket.metrics)")]);
        });
        assert_eq!(by_executable, ["web", "admin", "Metrics"]);
        assert_eq!(passed("x", |_| ()), [""; 0]);
    }

    #[test]
    fn a_stdin_socket_is_listened_on_and_passed_only_if_listed() {
        let alone = settled("x $(circus.socket.web)", |w| {
            w.stdin_socket = Some(at("web"))
        });
        assert_eq!(alone.sockets, []);
        assert_eq!(alone.listens, ["web"]);
        let listed = settled("x", |w| {
            w.stdin_socket = Some(at("web"));
            w.sockets = list(&["admin", "web"]);
        });
        assert_eq!(listed.sockets.len(), 2);
        assert_eq!(listed.listens, ["admin", "web"]);
    }

    #[test]
    fn wrong_sockets_are_refused() {
        let found = refused("x", |w| {
            w.sockets = list(&["wbe", "web", "web", "metrics"]);
            w.stdin_socket = Some(at("nothing"));
        });
        assert_eq!(
            found,
            [
                "unknown socket `nothing` in `stdin_socket`",
                "unknown socket `wbe` in `sockets`; did you mean `web`?",
                "socket `web` is in `sockets` twice",
                "unknown socket `metrics` in `sockets`; did you mean `Metrics`?",
            ]
        );
        assert_eq!(
            refused("x $(circus.socket.admin)", |w| w.sockets = list(&["web"])),
            [
                "socket `admin` is not passed to the worker, so `$(circus.socket.admin)` has no fd to name; add it to \
                 `sockets` (in `cmd`)"
            ]
        );
        assert_eq!(
            refused("x $(circus.socket.wbe)", |_| ()),
            ["unknown socket `wbe` in `$(circus.socket.wbe)`; did you mean `web`? (in `cmd`)"]
        );
        assert_eq!(
            refused("x", |w| w.working_dir =
                Some(at("/srv/$(circus.socket.web)")))
            .len(),
            1,
            "a folder's name passes no socket"
        );
    }

    #[test]
    fn contradictions_are_refused_all_at_once() {
        let found = refused("x", |w| {
            w.sockets = list(&["web"]);
            w.use_sockets = true;
            w.stdin_socket = Some(at("web"));
            w.stdin = Stdin::File(at("in"));
            w.kind = WatcherKind::Notify;
            w.watchdog = Some(Duration::from_secs(1));
            w.notify_access = NotifyAccess::None;
            w.singleton = true;
            w.numprocesses = At::nowhere(2);
            w.env = env(&[
                ("", "x"),
                ("A=B", "x"),
                ("LISTEN_FDS", "1"),
                ("TENTPOLE_WID", "1"),
            ]);
        });
        assert_eq!(found.len(), 9, "{found:#?}");
        let on_demand = refused("x", |w| w.on_demand = At::nowhere(true));
        assert_eq!(
            on_demand,
            ["`on_demand` waits for traffic, but the watcher has no socket; name one in `sockets`"]
        );
    }

    #[test]
    fn on_demand_takes_any_of_its_sockets() {
        let wait = |w: &mut unit::Watcher| w.on_demand = At::nowhere(true);
        settled("x $(circus.socket.web)", wait);
        settled("x", |w| {
            wait(w);
            w.stdin_socket = Some(at("web"));
        });
    }

    #[test]
    fn unknown_substitutions_name_the_nearest() {
        for (cmd, wanted) in [
            (
                "x $(circus.numproceses)",
                "unknown substitution `$(circus.numproceses)`; did you mean `numprocesses`? (in `cmd`)",
            ),
            (
                "x ((circus.WIDD))",
                "unknown substitution `((circus.WIDD))`; did you mean `wid`? (in `cmd`)",
            ),
            (
                "x $(circus.sokcet.web)",
                "unknown substitution `$(circus.sokcet.web)`; did you mean `socket`? (in `cmd`)",
            ),
            (
                "x $(circus.web)",
                "unknown substitution `$(circus.web)`; did you mean `$(circus.socket.web)`? (in `cmd`)",
            ),
            (
                "x $(circus.home)",
                "unknown substitution `$(circus.home)`; did you mean `$(circus.env.home)`? (in `cmd`)",
            ),
            (
                "x $(circus.numproc)",
                "unknown substitution `$(circus.numproc)`; did you mean `numprocesses`? (in `cmd`)",
            ),
            (
                "x $(circus.working)",
                "unknown substitution `$(circus.working)`; did you mean `working_dir`? (in `cmd`)",
            ),
            (
                "x $(circus.environ.HOME)",
                "unknown substitution `$(circus.environ.HOME)`; did you mean `env`? (in `cmd`)",
            ),
            (
                "x $(circus.)",
                "unknown substitution `$(circus.)` (in `cmd`)",
            ),
            (
                "x $(circus.cmd)",
                "`$(circus.cmd)` is not a single value, and can't be filled in (in `cmd`)",
            ),
            (
                "x $(circus.socket)",
                "`$(circus.socket)` lacks a name: `$(circus.socket.NAME)` (in `cmd`)",
            ),
            (
                "x $(circus.nice)",
                "`$(circus.nice)`: the watcher sets no `nice` (in `cmd`)",
            ),
            (
                "x $(circus.env.PAHT)",
                "`$(circus.env.PAHT)` is not in the worker's environment; did you mean `PATH`? (in `cmd`)",
            ),
            (
                "x $(circus.env.LISTEN_PID)",
                "`$(circus.env.LISTEN_PID)` is known to the worker alone, when it runs (in `cmd`)",
            ),
            (
                "x $(circus.wid",
                "`$(circus.wid` has no `)`; a name with blanks needs quotes around its word (in `cmd`)",
            ),
            (
                "x $(circus.socket.my web)",
                "`$(circus.socket.my` has no `)`; a name with blanks needs quotes around its word (in `cmd`)",
            ),
        ] {
            assert_eq!(refused(cmd, |_| ()), [wanted]);
        }
    }

    #[test]
    fn all_mistakes_of_all_texts_are_found() {
        let found = refused("x $(circus.a) $(circus.b)", |w| {
            w.args = Some(text("$(circus.c"));
            w.env = env(&[("A", "$(circus.d)"), ("B", "\0")]);
            w.working_dir = Some(at("$(circus.e)"));
            w.stdout = Output::File(at("$(circus.f)"));
            w.stderr = Output::File(at(""));
        });
        let keys = [
            "cmd",
            "cmd",
            "args",
            "env.A",
            "env.B",
            "working_dir",
            "stdout",
            "stderr",
        ];
        assert_eq!(found.len(), keys.len(), "{found:#?}");
        for (message, key) in found.iter().zip(keys) {
            assert!(message.contains(&format!("`{key}`")), "{message}");
        }
    }

    #[test]
    fn a_command_must_have_a_first_word() {
        for cmd in ["", "  ", "# nothing"] {
            assert_eq!(
                refused(cmd, |_| ()),
                ["`cmd` is empty: there is nothing to run"]
            );
        }
        assert_eq!(refused("  ", |w| w.shell = true).len(), 1);
        assert_eq!(refused("", |w| w.cmd = words(&[])).len(), 1);
        assert_eq!(
            refused("'' x", |_| ()),
            ["the first word of `cmd` is empty"]
        );
        assert_eq!(
            refused("'x", |w| w.args = Some(text("\"y"))),
            [
                "`cmd` has a quote that is never closed",
                "`args` has a quote that is never closed"
            ]
        );
    }

    #[test]
    fn variables_are_known_from_where_they_are_seen() {
        settled(
            "x $(circus.env.path) $(circus.env.A) $(circus.env.TENTPOLE_WID)",
            |w| {
                w.env = env(&[("A", "1"), ("B", "$(circus.env.a)")]);
            },
        );
        let forward = refused("x", |w| {
            w.env = env(&[
                ("A", "$(circus.env.A)"),
                ("B", "$(circus.env.C)"),
                ("C", "1"),
            ]);
        });
        assert_eq!(forward.len(), 2, "{forward:?}");
        assert!(forward[0].contains("is not in the worker's environment"));
        let order = "`$(circus.env.C)` is not known yet: `env` is filled in in order of name, and `C` comes later";
        assert!(forward[1].starts_with(order), "{forward:?}");
        let bare = refused("x $(circus.env.PATH) $(circus.env.LANG)", |w| {
            w.copy_env = false
        });
        assert_eq!(bare.len(), 1);
        let user = |w: &mut unit::Watcher| {
            w.copy_env = false;
            w.user = Some(At::nowhere(unit::Principal::Name("deploy".into())));
        };
        settled("x $(circus.env.HOME)/bin", user);
        settled("x $(circus.env.ANYTHING)", |w| w.env_file = Some(at("/e")));
        settled("x $(circus.env.LISTEN_FDS)", |w| w.sockets = list(&["web"]));
        assert_eq!(refused("x $(circus.env.LISTEN_FDS)", |_| ()).len(), 1);
    }

    #[test]
    fn options_that_refer_to_themselves_are_refused() {
        let found = refused("x $(circus.working_dir)", |w| {
            w.working_dir = Some(at("$(circus.executable)/x"));
            w.executable = Some(at("$(circus.working_dir)/x"));
        });
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("refers to itself"));
        let one = refused("x", |w| w.stdout = Output::File(at("$(circus.stdout)")));
        assert_eq!(one.len(), 1);
    }

    #[test]
    fn options_that_refer_to_each_other_too_often_are_refused() {
        let found = refused("x", |w| {
            w.executable = Some(at(&"$(circus.working_dir)".repeat(200)));
            w.working_dir = Some(at(&"$(circus.virtualenv)".repeat(200)));
            w.virtualenv = Some(at(&"$(circus.name)$(circus.wid)".repeat(200)));
        });
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("10000 places"));
    }

    #[test]
    fn an_env_file_is_named_by_the_managers_variables_only() {
        let made = settled("x", |w| {
            w.env = env(&[("A", "b")]);
            w.env_file = Some(at("-$(circus.env.home)/$(circus.wid).env"));
        });
        assert_eq!(made.env_file(3), Some(("/root/3.env".into(), true)));
        let found = refused("x", |w| {
            w.env = env(&[("A", "b")]);
            w.env_file = Some(at("$(circus.env.A)"));
        });
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("before the file is read"), "{found:?}");
        assert_eq!(refused("x", |w| w.env_file = Some(at("-"))).len(), 1);
    }

    #[test]
    fn the_environment_of_the_manager_is_filled_in_once() {
        let mut all = units([], [watcher("w", "true")]);
        all.manager.env = env(&[("A", "$(circus.env.home)/a"), ("B", "$(circus.env.A)/b")]);
        let plan = planned(all.clone());
        assert_eq!(
            plan.manager.env,
            env(&[("A", "/root/a"), ("B", "/root/a/b")])
        );
        all.manager.env = env(&[
            ("A", "$(circus.wid)"),
            ("B", "$(circus.env.NOPE)"),
            ("C", "$(circus.env.X"),
            ("D", "\0"),
            ("WATCHDOG_PID", "1"),
        ]);
        assert_eq!(errors(all).len(), 5);
    }

    #[test]
    fn a_shell_that_keeps_the_sockets_to_itself_is_warned_of() {
        let shell = |w: &mut unit::Watcher| w.shell = true;
        let found = warned("x $(circus.socket.web)", shell);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("`exec`"), "{found:?}");
        assert_eq!(warned("exec x $(circus.socket.web)", shell), [""; 0]);
        assert_eq!(warned("executor $(circus.socket.web)", shell).len(), 1);
        let silent = warned("x $(circus.socket.web)", |w| {
            w.shell = true;
            w.listen_fds = false;
        });
        assert_eq!(silent, [""; 0]);
    }

    #[test]
    fn sockets_that_nobody_hears_of_are_warned_of() {
        let unheard = warned("x", |w| {
            w.sockets = list(&["web"]);
            w.listen_fds = false;
        });
        assert!(
            unheard[0].contains("nothing tells the worker"),
            "{unheard:?}"
        );
        let unused = warned("x", |_| ());
        assert_eq!(
            unused,
            ["socket `web` is bound, but no watcher uses it: its clients would wait for ever"]
        );
    }

    #[test]
    fn two_sockets_of_one_fd_name_are_warned_of_and_a_colon_is_refused() {
        let mut named = web();
        named[0].fd_name = Some("web".into());
        let mut made = watcher("w", "x");
        made.use_sockets = true;
        assert_eq!(
            warnings(units(named.clone(), [made.clone()])),
            ["watcher `w`: sockets `admin` and `web` are both called `web` in LISTEN_FDNAMES"]
        );
        named[0].fd_name = Some("a:b".into());
        let found = errors(units(named, [made]));
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("`a:b` can't stand in LISTEN_FDNAMES"));
    }

    #[test]
    fn what_fails_in_the_worker_alone_is_warned_of() {
        let with = |folder: &str| {
            warned("x $(circus.socket.web)", |w| {
                w.virtualenv = Some(at(folder))
            })
        };
        assert_eq!(with("there"), [""; 0]);
        assert_eq!(
            with("$(circus.wid)/missing"),
            [""; 0],
            "it is another for each"
        );
        let [told] = &*with("missing") else {
            panic!("one warning");
        };
        assert!(told.contains("`virtualenv`: there is no folder"), "{told}");
        let with = |soft: u64| {
            warned("x $(circus.socket.web)", |w| {
                let (soft, hard) = (Some(soft), None);
                w.rlimits = vec![(unit::Resource::Nofile, unit::Limit { soft, hard })];
            })
        };
        assert_eq!(with(5), [""; 0]);
        assert_eq!(with(4).len(), 1);
    }

    #[test]
    fn useless_options_are_warned_of() {
        let found = warned("x $(circus.socket.web)", |w| {
            w.restart_delay = Duration::from_secs(60);
            w.ready_delay = Duration::from_secs(90);
        });
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_finding_stands_where_the_mistake_is() {
        let text = r#"[watcher.w]
cmd = "prog $(circus.nme) \"$(circus.nme)\" $(circus.nme)"
args = [
  "--a",
  "$(circus.wid)$(circus.wdi)",
]
env = { A = "\u00e4$(circus.nme)" }
env_file = "-$(circus.env.NONE_SUCH)"
stdin = "./$(circus.foo)"
stdout = { file = '$(circus.nme).log' }
stderr.file = "$(circus.socket.q).log"
[watcher.v]
cmd = """
prog \
  $(circus.nme)
  $(circus.wdi"""
[watcher.s]
shell = true
cmd = ["true",
  "it's$(circus.nme)"]
shell_args = '''
$(circus.nme)'''
[watcher.u]
cmd = "prog"
stdout = { file = "$(circus.stdout)" }
working_dir = "/x/$(circus.virtualenv)"
virtualenv = "$(circus.working_dir)"
executable = "$(circus.stdout)"
[manager]
env = { A = "\u00e4$(circus.env.PATH)$(circus.env.NONE_SUCH)" }
"#;
        let found = found(text);
        let places: Vec<_> = (found.iter())
            .map(|it| it.split(": ").next().unwrap_or_default())
            .collect();
        let wanted = [
            "2:13", "2:29", "2:45", "5:17", "7:20", "8:14", "9:12", "10:20", "11:16", "15:3",
            "16:3", "20:8", "22:1", "25:19", "26:15", "30:38",
        ];
        assert_eq!(places, wanted, "{found:#?}");
    }

    #[test]
    fn very_many_mistakes_in_one_value_are_found_in_time() {
        let words = " \\t$(circus.nme)".repeat(100_000);
        let found = found(&format!("[watcher.w]\ncmd = \"x{words}\"\n"));
        assert_eq!(found.len(), 101);
        assert!(found[99].starts_with("2:1596: "), "{}", found[99]);
        assert!(found[100].contains("and 99900 more errors"));
    }

    #[test]
    fn one_mistake_is_told_once() {
        assert_eq!(
            found("[watcher.w]\ncmd = \"x\"\nshell_args = \"a\"\n"),
            ["3:1: warning: `shell_args` of `watcher.w` has no effect without `shell = true`"]
        );
    }

    #[test]
    fn arguments_behind_a_shell_text_that_can_not_be_followed_are_refused() {
        for cmd in ["echo 'a", "cat <<x\nx", "echo a # b", "echo `date`"] {
            let found = refused(cmd, |w| {
                w.shell = true;
                w.args = Some(text("b"));
            });
            assert_eq!(found.len(), 1, "{cmd}");
        }
    }

    #[test]
    fn ten_thousand_of_each_are_planned_with_and_without_mistakes() {
        let sockets: Vec<unit::Socket> = (0..10_000)
            .map(|n| {
                let mut made = socket(&format!("s{n}"));
                made.address = At::nowhere(Address::Port(1 + n));
                made.kind = SocketKind::Dgram;
                made
            })
            .collect();
        let watchers = |cmd: &dyn Fn(u32) -> String| -> Vec<unit::Watcher> {
            (0..10_000)
                .map(|n| watcher(&format!("w{n}"), &cmd(n)))
                .collect()
        };
        let right = watchers(&|n| format!("x $(circus.socket.s{n})"));
        let plan: Plan = planned(units(sockets.clone(), right));
        assert_eq!(plan.watchers.len(), 10_000);
        let wrong = watchers(&|n| format!("x $(circus.socket.wrong{n})"));
        let (_, findings) = super::super::plan(units(sockets, wrong), &Machine::new());
        let refused = findings.iter().filter(|f| f.severity == Severity::Error);
        assert_eq!(refused.count(), 10_000);
    }

    proptest! {
        #[test]
        fn any_text_anywhere_gets_a_plan_or_findings(
            texts in prop::collection::vec(
                "([$(]{1,2}circus[.](wid|name|env.(A|HOME)|socket.(web|x)|stdout|working_dir|nice|)[)]{0,2}|['\" \\\\#\n$`\0/-]|\\PC){0,8}",
                10,
            ),
            shell: bool,
            as_list: bool,
        ) {
            let mut made = watcher("w", &texts[0]);
            let command = |n: usize| if as_list { words(&[&texts[n], &texts[0]]) } else { text(&texts[n]) };
            made.shell = shell;
            made.cmd = command(0);
            made.args = Some(command(1));
            made.shell_args = Some(command(2));
            made.executable = Some(at(&texts[3]));
            made.env = env(&[("A", &texts[4]), ("B", &texts[5])]);
            made.working_dir = Some(at(&texts[6]));
            made.stdout = Output::File(at(&texts[7]));
            made.virtualenv = Some(at(&texts[8]));
            made.env_file = Some(at(&texts[9]));
            let machine = Machine::new();
            let (plan, findings) = plan(units(web(), [made]), &machine);
            let refused = findings.iter().any(|f| f.severity == Severity::Error);
            prop_assert_eq!(plan.is_none(), refused);
            for worker in plan.iter().flat_map(|plan| plan.workers(&machine, &|_| Ok("A=1".into()))) {
                // What can still go wrong is a sentence too.
                if let Err(why) = worker {
                    prop_assert!(why.starts_with("watcher `w`: "));
                }
            }
        }
    }
}
