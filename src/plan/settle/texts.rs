//! The texts of a watcher: its command, its environment and its other options, taken apart at their substitutions.

use super::super::environment::shorten;
use super::super::option::{self, Value};
use super::super::substitute::{
    Builder, Piece, Quote, Reference, ShellText, Template, TextOption, pieces,
};
use super::variables::{Sees, VARIABLE_KEYS};
use super::{Compiler, Templates, Text, index32, strip_prefix};
use crate::unit::{At, Place, Words};

/// Whose words a text is.
enum Language<'s> {
    /// Nobody's: it arrives as it is.
    None,
    /// A shell's.
    Shell(&'s mut ShellText),
    /// A shell's, in single quotes.
    Quoted,
}

impl<'a> Compiler<'a, '_> {
    /// All texts. The order is that in which sockets are collected.
    pub(super) fn compile(&mut self) -> Templates {
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
        let keys = [("cmd", Some(&unit.cmd)), ("args", unit.args.as_deref())];
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
