//! One key's value on its way from TOML to its type.
//!
//! Each reader of [`Field`] answers `None` after it reported what is wrong, so that whoever calls it goes on to the next key.

use super::document::{Integer, Item, Table, Value};
use super::finding::is_deceptive;
use super::nearest::nearest;
use super::value::{
    RESOURCES, clipped, duration_of_float, duration_of_seconds, in_quotes, limit_of, mode_meant,
    parse_limit, parse_mode, parse_principal, principal_of_number, signal_of_number, split_words,
};
use super::{
    Address, Arrange, At, Finding, Findings, Gather, Limit, Mode, Name, Place, Principal, Resource,
    Signal, Words, parse_address, parse_duration, parse_signal,
};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

/// Names a table in messages: `manager`, `socket.web`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label<'v> {
    /// `manager`, `socket` or `watcher`.
    pub kind: &'static str,
    /// Empty for the manager.
    pub name: &'v str,
}

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            "" => write!(f, "`{}`", self.kind),
            name => write!(f, "`{}.{}`", self.kind, clipped(name)),
        }
    }
}

/// What of a key is meant: `cmd`, `cmd[0]`, `rlimits.nofile`, `rlimits.nofile.soft`.
#[derive(Clone, Copy, Debug)]
struct KeyPath<'v> {
    key: &'v str,
    part: Part<'v>,
}

#[derive(Clone, Copy, Debug)]
enum Part<'v> {
    Whole,
    Index(usize),
    Key(&'v str),
    KeyOfKey(&'v str, &'v str),
}

impl fmt::Display for KeyPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key;
        match self.part {
            Part::Whole => write!(f, "`{key}`"),
            Part::Index(index) => write!(f, "`{key}[{index}]`"),
            Part::Key(part) => write!(f, "`{key}.{}`", clipped(part)),
            Part::KeyOfKey(first, second) => {
                write!(f, "`{key}.{}.{}`", clipped(first), clipped(second))
            }
        }
    }
}

/// A word and what it means; `None` is a word of the design that is not built yet.
pub(super) type Vocabulary<T> = &'static [(&'static str, Option<T>)];

/// One key's value.
pub(super) struct Field<'v, 'f> {
    raw: Value<'v>,
    /// Where the value stands.
    pub place: Place,
    /// Tables of the same key that this one is laid over, the lowest first.
    under: &'v [Table<'v>],
    key: KeyPath<'v>,
    unit: Label<'v>,
    /// Where relative paths start.
    pub folder: &'v Path,
    findings: &'f mut Findings,
}

impl<'v, 'f> Field<'v, 'f> {
    /// The value `raw` of `key`, which stands at `place`, over `under`.
    pub fn new(
        (raw, place): (Value<'v>, Place),
        under: &'v [Table<'v>],
        key: &'v str,
        unit: Label<'v>,
        folder: &'v Path,
        findings: &'f mut Findings,
    ) -> Self {
        let part = Part::Whole;
        Field {
            raw,
            place,
            under,
            key: KeyPath { key, part },
            unit,
            folder,
            findings,
        }
    }

    /// A value inside this one.
    fn inner<'g>(&'g mut self, part: Part<'v>, item: Item<'v>) -> Field<'v, 'g> {
        Field {
            raw: item.value,
            place: item.place,
            under: &[],
            key: KeyPath {
                key: self.key.key,
                part,
            },
            unit: self.unit,
            folder: self.folder,
            findings: self.findings,
        }
    }

    /// Reports `why` the value cannot be taken: what follows its name in a sentence.
    pub fn refuse(&mut self, why: impl fmt::Display) {
        let message = format!("{} of {} {why}", self.key, self.unit);
        self.findings.push(Finding::error(self.place, message));
    }

    /// Reports that the value is accepted, but.
    pub fn warn(&mut self, but: impl fmt::Display) {
        let message = format!("{} of {} {but}", self.key, self.unit);
        self.findings.push(Finding::warning(self.place, message));
    }

    /// Takes the value, or reports why not.
    fn check<T>(&mut self, value: Result<T, String>) -> Option<T> {
        value.map_err(|why| self.refuse(why)).ok()
    }

    /// Reports a value of the wrong type or out of range.
    pub fn mismatch(&mut self, wanted: impl fmt::Display) {
        self.mismatch_but(wanted, "");
    }

    /// The same with a `hint` at its end.
    pub fn mismatch_but(&mut self, wanted: impl fmt::Display, hint: &str) {
        let found = match self.raw {
            Value::Text(text) => format!("the text `\"{}\"`", clipped(text)),
            Value::Integer(integer) => format!("`{}`", clipped(&integer.to_string())),
            Value::Float(float) => format!("`{}`", clipped(float)),
            Value::Boolean(boolean) => format!("`{boolean}`"),
            Value::Date => "a date or time".to_string(),
            Value::List(_) => "a list".to_string(),
            Value::Table(_) => "a table".to_string(),
        };
        self.refuse(format_args!("must be {wanted}; found {found}{hint}"));
    }

    /// `true` or `false`, and nothing else.
    pub fn boolean(&mut self) -> Option<bool> {
        let meant = match self.raw {
            Value::Boolean(boolean) => return Some(boolean),
            Value::Text(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" | "y" | "t" => Some(true),
                "false" | "no" | "off" | "0" | "n" | "f" => Some(false),
                _ => None,
            },
            Value::Integer(integer) => match number(integer) {
                Some(0) => Some(false),
                Some(1) => Some(true),
                _ => None,
            },
            _ => None,
        };
        match meant {
            Some(meant) => self.mismatch(format_args!(
                "`true` or `false`, here `{meant}` without quotes"
            )),
            None => self.mismatch("`true` or `false`"),
        }
        None
    }

    /// Text without NUL bytes, which neither paths nor arguments nor environments can carry.
    pub fn text(&mut self) -> Option<&'v str> {
        self.text_such_as("text in quotes")
    }

    fn text_such_as(&mut self, wanted: &str) -> Option<&'v str> {
        let Value::Text(text) = self.raw else {
            self.mismatch(wanted);
            return None;
        };
        if text.contains('\0') {
            self.refuse("has a NUL byte in it");
            return None;
        }
        Some(text)
    }

    /// Text that is not empty.
    pub fn filled_text(&mut self) -> Option<String> {
        let text = self.text()?;
        if text.trim().is_empty() {
            self.refuse("is empty");
            return None;
        }
        Some(text.to_string())
    }

    /// The same and where it stands.
    pub fn filled_text_here(&mut self) -> Option<At<String>> {
        let (value, place) = (self.filled_text()?, self.place);
        Some(At { value, place })
    }

    /// An integer of `range`.
    pub fn integer<T>(&mut self, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + fmt::Display,
    {
        if let Value::Integer(integer) = self.raw
            && let Some(number) = number(integer)
            && let Ok(number) = T::try_from(number)
            && range.contains(&number)
        {
            return Some(number);
        }
        self.mismatch(format_args!(
            "an integer from {} to {}{}",
            range.start(),
            range.end(),
            match self.raw {
                Value::Text(_) => ", without quotes",
                _ => "",
            }
        ));
        None
    }

    /// A length of time.
    pub fn duration(&mut self) -> Option<Duration> {
        if matches!(self.raw, Value::Text(text) if is_infinity(text)) {
            self.refuse("must come to an end; write a duration such as `\"1h\"`");
            return None;
        }
        self.time(EXAMPLE_DURATION)
    }

    /// A length of time of at least a millisecond.
    pub fn tick(&mut self) -> Option<Duration> {
        let duration = self.duration()?;
        self.at_least_a_millisecond(duration)
    }

    /// A length of time; `"infinity"` is `None`.
    pub fn timeout(&mut self) -> Option<Option<Duration>> {
        if matches!(self.raw, Value::Text(text) if text.trim() == "infinity") {
            return Some(None);
        }
        if matches!(self.raw, Value::Text(text) if is_infinity(text)) {
            self.refuse("is not a duration; write `\"infinity\"` for no limit");
            return None;
        }
        self.time("a duration such as `5` or `\"1m30s\"`, or `\"infinity\"`")
            .map(Some)
    }

    /// As [`Self::timeout`]; 0 is `None` too.
    pub fn timeout_or_zero(&mut self) -> Option<Option<Duration>> {
        let timeout = self.timeout()?;
        Some(timeout.filter(|timeout| !timeout.is_zero()))
    }

    /// An interval that is off at 0.
    pub fn interval_or_off(&mut self) -> Option<Option<Duration>> {
        match self.timeout_or_zero()? {
            Some(interval) => self.at_least_a_millisecond(interval).map(Some),
            None => Some(None),
        }
    }

    fn at_least_a_millisecond(&mut self, duration: Duration) -> Option<Duration> {
        if duration < Duration::from_millis(1) {
            self.refuse("is too short; the least is `\"1ms\"`");
            return None;
        }
        Some(duration)
    }

    fn time(&mut self, wanted: &str) -> Option<Duration> {
        let duration = match self.raw {
            Value::Integer(integer) => match number(integer) {
                Some(seconds) => match u64::try_from(seconds) {
                    Ok(seconds) => duration_of_seconds(seconds),
                    Err(_) => Err("is negative; a duration is 0 or more".to_string()),
                },
                None => duration_of_seconds(u64::MAX),
            },
            Value::Float(float) => duration_of_float(float),
            Value::Text(text) => parse_duration(text),
            _ => {
                self.mismatch(wanted);
                return None;
            }
        };
        self.check(duration)
    }

    /// A signal by name or number.
    pub fn signal(&mut self) -> Option<Signal> {
        let signal = match self.raw {
            Value::Text(text) => parse_signal(text),
            Value::Integer(integer) => signal_of_number(number(integer).unwrap_or(i64::MAX)),
            _ => {
                self.mismatch("a signal such as `\"TERM\"` or `15`");
                return None;
            }
        };
        self.check(signal)
    }

    /// An octal mode of at most `max`.
    pub fn mode(&mut self, max: u32) -> Option<Mode> {
        let mode = match self.raw {
            Value::Text(text) => parse_mode(text, max),
            Value::Integer(integer) if integer.radix == 8 => parse_mode(integer.digits, max),
            Value::Integer(integer) => {
                // A value that is beyond any mode has no octal that could have been meant.
                let value = number(integer).and_then(|value| u64::try_from(value).ok());
                let value = value.filter(|value| *value <= 7777);
                let meant = value.map(|value| match integer.radix {
                    10 => mode_meant(integer.digits.trim_start_matches('+'), value),
                    _ => value & 0o7777,
                });
                Err(match meant.filter(|meant| *meant <= u64::from(max)) {
                    Some(meant) => {
                        format!("is not octal; write `\"{meant:04o}\"` or `0o{meant:o}`")
                    }
                    None => "is not octal; write it such as `\"0660\"` or `0o660`".to_string(),
                })
            }
            _ => {
                self.mismatch("an octal mode such as `\"0660\"` or `0o660`");
                return None;
            }
        };
        self.check(mode)
    }

    /// A user or group by name or number.
    pub fn principal(&mut self) -> Option<Principal> {
        let principal = match self.raw {
            Value::Text(text) => parse_principal(text),
            Value::Integer(integer) => principal_of_number(number(integer).unwrap_or(i64::MAX)),
            _ => {
                self.mismatch("a name or a number, such as `\"www-data\"` or `33`");
                return None;
            }
        };
        self.check(principal)
    }

    /// A socket's address.
    pub fn address(&mut self) -> Option<Address> {
        const WANTED: &str = "an address such as `\"127.0.0.1:8000\"`, `8000` or `\"/run/x.sock\"`";
        match self.raw {
            Value::Integer(_) => self.integer(0..=u16::MAX).map(Address::Port),
            Value::Text(text) => {
                let address = parse_address(text, self.folder);
                self.check(address)
            }
            Value::List(_) => {
                self.refuse("must be one address; write a `[socket.NAME]` for each, so that each has its own name");
                None
            }
            _ => {
                self.mismatch(WANTED);
                None
            }
        }
    }

    /// One of the words of `vocabulary`.
    pub fn word<T: Copy>(&mut self, vocabulary: Vocabulary<T>) -> Option<T> {
        let text = self.one_of(vocabulary)?;
        self.meaning(text, vocabulary)
    }

    /// As [`Self::word`], in any case and with or without `prefix`.
    pub fn prefixed_word<T: Copy>(&mut self, prefix: &str, vocabulary: Vocabulary<T>) -> Option<T> {
        let text = self.one_of(vocabulary)?;
        let word = match text.get(..prefix.len()) {
            Some(start) if start.eq_ignore_ascii_case(prefix) => &text[prefix.len()..],
            _ => text,
        };
        self.meaning(&word.to_ascii_lowercase(), vocabulary)
    }

    fn one_of<T>(&mut self, vocabulary: Vocabulary<T>) -> Option<&'v str> {
        match self.raw {
            Value::Text(text) => Some(text),
            _ => {
                self.mismatch(format_args!("one of {}", allowed(vocabulary)));
                None
            }
        }
    }

    fn meaning<T: Copy>(&mut self, word: &str, vocabulary: Vocabulary<T>) -> Option<T> {
        match vocabulary.iter().find(|(known, _)| *known == word) {
            Some((_, Some(meaning))) => Some(*meaning),
            Some((known, None)) => {
                self.refuse_unbuilt(known);
                None
            }
            None => {
                let is_built = |near: &str| {
                    let mut built = vocabulary.iter().filter(|(_, meaning)| meaning.is_some());
                    built.any(|(known, _)| *known == near)
                };
                let hint = match nearest(word, vocabulary.iter().map(|(known, _)| *known)) {
                    Some(near) if is_built(near) => format!("; did you mean `\"{near}\"`?"),
                    Some(near) => format!("; `\"{near}\"` is not built yet"),
                    None => String::new(),
                };
                self.mismatch_but(format_args!("one of {}", allowed(vocabulary)), &hint);
                None
            }
        }
    }

    /// Words: text, or a list of texts. Whether the text can be split is checked where it is known who splits it.
    pub fn words(&mut self) -> Option<Words> {
        match self.raw {
            Value::Text(_) => self.text().map(|text| Words::Text(text.to_string())),
            Value::List(_) => {
                let words = self.list("text in quotes", |word| word.text().map(str::to_string));
                words.map(Words::List)
            }
            _ => {
                self.mismatch(
                    "text or a list, such as `\"prog --flag\"` or `[\"prog\", \"--flag\"]`",
                );
                None
            }
        }
    }

    /// Words that are split here and now, if only to see that they can be.
    pub fn split_words(&mut self) -> Option<Words> {
        let words = self.words()?;
        if let Words::Text(text) = &words
            && let Err(why) = split_words(text)
        {
            self.refuse(format_args!("cannot be split into words: {why}"));
            return None;
        }
        Some(words)
    }

    /// A list, each item read by `read`; `None` if one of them has a mistake.
    pub fn list<T>(
        &mut self,
        item: &str,
        mut read: impl FnMut(&mut Field<'v, '_>) -> Option<T>,
    ) -> Option<Vec<At<T>>> {
        let Value::List(list) = self.raw else {
            match self.raw {
                Value::Text(text) if self.would_take(&mut read) => {
                    self.mismatch(format_args!("a list, such as `[{}]`", in_quotes(text)));
                }
                _ => self.mismatch(format_args!("a list of {item}")),
            }
            return None;
        };
        let mut items = Vec::with_capacity(list.len());
        let mut is_whole = true;
        for (index, item) in list.iter().enumerate() {
            let mut field = self.inner(Part::Index(index), item);
            match read(&mut field) {
                Some(value) => items.push(At {
                    value,
                    place: field.place,
                }),
                None => is_whole = false,
            }
        }
        is_whole.then_some(items)
    }

    /// Whether `read` takes the value.
    fn would_take<T>(&self, read: impl FnOnce(&mut Field<'v, '_>) -> Option<T>) -> bool {
        let findings = &mut Findings::default();
        read(&mut Field { findings, ..*self }).is_some()
    }

    /// Names of units, each at most once.
    pub fn names(&mut self) -> Option<Vec<At<Name>>> {
        let names = self.list("names in quotes", |name| name.filled_text())?;
        let mut seen = std::collections::HashSet::with_capacity(names.len());
        let mut is_good = true;
        for name in &names {
            if !seen.insert(name.value.as_str()) {
                let message = format!(
                    "{} of {} has `{}` twice",
                    self.key,
                    self.unit,
                    clipped(&name.value)
                );
                self.findings.push(Finding::error(name.place, message));
                is_good = false;
            }
        }
        is_good.then_some(names)
    }

    /// The inline table `{ ... }` with these keys; keys that are unknown or not built are reported, the others can be
    /// taken from the answer by [`Self::part`].
    pub fn table(&mut self, example: &str, known: &[&str], unbuilt: &[&str]) -> Option<Table<'v>> {
        let Value::Table(table) = self.raw else {
            self.mismatch(format_args!("a table such as `{example}`"));
            return None;
        };
        for item in table.iter() {
            let name = item.key;
            if known.contains(&name) {
                continue;
            }
            let key = self.key;
            self.findings.error_with(item.key_place, || {
                if unbuilt.contains(&name) {
                    return format!("key `{name}` of {key} is not built yet");
                }
                match nearest(name, known.iter().chain(unbuilt).copied()) {
                    Some(near) if unbuilt.contains(&near) => format!(
                        "unknown key `{}` in {key}; `{near}` is not built yet",
                        clipped(name)
                    ),
                    Some(near) => format!(
                        "unknown key `{}` in {key}; did you mean `{near}`?",
                        clipped(name)
                    ),
                    None => {
                        format!(
                            "unknown key `{}` in {key}; write `{example}`",
                            clipped(name)
                        )
                    }
                }
            });
        }
        Some(table)
    }

    /// The value of `key` in `table`, which [`Self::table`] gave.
    pub fn part(&mut self, table: Table<'v>, key: &'static str) -> Option<Field<'v, '_>> {
        let item = table.get(key)?;
        let part = match self.key.part {
            Part::Key(outer) => Part::KeyOfKey(outer, key),
            _ => Part::Key(key),
        };
        Some(self.inner(part, item))
    }

    /// The keys of this table and of those that it is laid over, in order of name.
    fn merged(&self) -> BTreeMap<&'v str, Item<'v>> {
        let own = match self.raw {
            Value::Table(table) => Some(table),
            _ => None,
        };
        let tables = self.under.iter().copied().chain(own);
        let items = tables.flat_map(Table::iter);
        items.map(|item| (item.key, item)).gather()
    }

    /// Environment variables, in order of name.
    pub fn environment(&mut self) -> Option<Vec<(String, At<String>)>> {
        let Value::Table(_) = self.raw else {
            self.mismatch("a table such as `{ NAME = \"value\" }`");
            return None;
        };
        let mut variables = Vec::new();
        let mut is_good = true;
        for (name, item) in self.merged() {
            if let Err(why) = check_variable(name) {
                let message = format!("{} of {} {why}", self.key, self.unit);
                self.findings.push(Finding::error(item.key_place, message));
                is_good = false;
            }
            let mut field = self.inner(Part::Key(name), item);
            let place = field.place;
            match field.scalar_text() {
                Some(value) => variables.push((name.to_string(), At { value, place })),
                None => is_good = false,
            }
        }
        is_good.then_some(variables)
    }

    /// Text, or a number or boolean as its text.
    fn scalar_text(&mut self) -> Option<String> {
        match self.raw {
            Value::Integer(integer) => Some(integer.to_string()),
            Value::Float(float) => Some(float.to_string()),
            Value::Boolean(boolean) => Some(boolean.to_string()),
            _ => self
                .text_such_as("text in quotes, a number or a boolean")
                .map(str::to_string),
        }
    }

    /// Resource limits, in order of resource.
    pub fn limits(&mut self) -> Option<Vec<(Resource, Limit)>> {
        let Value::Table(_) = self.raw else {
            self.mismatch("a table such as `{ nofile = 4096 }`");
            return None;
        };
        let mut limits = Vec::new();
        let mut is_good = true;
        for (name, item) in self.merged() {
            let Some((_, resource)) = RESOURCES.iter().find(|(known, _)| *known == name) else {
                let key = self.key;
                self.findings.error_with(item.key_place, || {
                    let bare = name.to_ascii_lowercase();
                    let bare = ["rlimit_", "limit"]
                        .iter()
                        .find_map(|prefix| bare.strip_prefix(prefix))
                        .unwrap_or(&bare);
                    let known = RESOURCES.iter().map(|(known, _)| *known);
                    let hint = match nearest(bare, known.clone()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("known are {}", quoted(known)),
                    };
                    format!("unknown resource `{}` in {key}; {hint}", clipped(name))
                });
                is_good = false;
                continue;
            };
            match self.inner(Part::Key(name), item).limit() {
                Some(limit) => limits.push((*resource, limit)),
                None => is_good = false,
            }
        }
        limits.arrange_by_key(|(resource, _)| *resource);
        is_good.then_some(limits)
    }

    fn limit(&mut self) -> Option<Limit> {
        const EXAMPLE: &str = "{ soft = 1024, hard = \"infinity\" }";
        match self.raw {
            Value::Table(_) => {
                let table = self.table(EXAMPLE, &["soft", "hard"], &[])?;
                let mut ends = [None; 2];
                let mut is_good = true;
                for (end, key) in ends.iter_mut().zip(["soft", "hard"]) {
                    match self.part(table, key) {
                        Some(mut field) => match field.size() {
                            Some(size) => *end = size,
                            None => is_good = false,
                        },
                        None => {
                            self.refuse(format_args!("has no `{key}`; write `{EXAMPLE}`"));
                            is_good = false;
                        }
                    }
                }
                if !is_good {
                    return None;
                }
                self.check(limit_of(ends[0], ends[1]))
            }
            Value::Text(text) => {
                let limit = parse_limit(text);
                self.check(limit)
            }
            _ => self.size().map(|size| Limit {
                soft: size,
                hard: size,
            }),
        }
    }

    fn size(&mut self) -> Option<Option<u64>> {
        match self.raw {
            Value::Integer(integer) => {
                match number(integer).and_then(|number| u64::try_from(number).ok()) {
                    Some(number) => Some(Some(number)),
                    None => {
                        self.mismatch(format_args!("from 0 to {}, or `\"infinity\"`", i64::MAX));
                        None
                    }
                }
            }
            Value::Text(text) => {
                let size = super::value::parse_size(text);
                self.check(size)
            }
            _ => {
                self.mismatch(
                    "a limit such as `4096`, `\"64M\"`, `\"1024:4096\"` or `\"infinity\"`",
                );
                None
            }
        }
    }

    /// Refuses a word of the design that is not built yet.
    pub fn refuse_unbuilt(&mut self, word: &str) {
        let message = format!("`{} = \"{word}\"` is not built yet", self.key.key);
        self.findings.push(Finding::error(self.place, message));
    }

    /// Whether the value is a number.
    pub fn is_number(&self) -> bool {
        matches!(self.raw, Value::Integer(_) | Value::Float(_))
    }

    /// Whether the value is a table.
    pub fn is_table(&self) -> bool {
        matches!(self.raw, Value::Table(_))
    }

    /// Whether the value is text, and which.
    pub fn as_text(&self) -> Option<&'v str> {
        match self.raw {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

const EXAMPLE_DURATION: &str = "a duration such as `5` or `\"1m30s\"`";

/// Whether `name` may name a unit: printable, without `/`, at most 255 bytes.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if name.len() > 255 {
        return Err("is longer than 255 bytes");
    }
    if name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    {
        return Ok(());
    }
    if name == "." || name == ".." {
        return Err("is taken for a folder");
    }
    if name.contains('/') {
        return Err("has a `/` in it");
    }
    if name.contains(|c: char| is_deceptive(c) || (c.is_whitespace() && c != ' ')) {
        return Err("has a character in it that cannot be printed");
    }
    if name != name.trim() {
        return Err("begins or ends with a blank");
    }
    Ok(())
}

/// Whether `name` may be set in a worker's environment.
fn check_variable(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("has a variable without a name".to_string());
    }
    if name.contains(['=', '\0']) {
        return Err(format!(
            "has `{}`, and a variable's name has no `=` and no NUL byte",
            clipped(name)
        ));
    }
    let is_ours = name.starts_with("TENTPOLE_")
        || matches!(
            name,
            "LISTEN_FDS"
                | "LISTEN_PID"
                | "LISTEN_PIDFDID"
                | "LISTEN_FDNAMES"
                | "NOTIFY_SOCKET"
                | "WATCHDOG_USEC"
                | "WATCHDOG_PID"
        );
    if is_ours {
        return Err(format!(
            "may not set `{}`: tentpole sets it for each worker",
            clipped(name)
        ));
    }
    Ok(())
}

fn number(integer: Integer<'_>) -> Option<i64> {
    i64::from_str_radix(integer.digits, integer.radix).ok()
}

fn is_infinity(text: &str) -> bool {
    let text = text.trim();
    ["infinity", "inf", "infinite", "never", "unlimited"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word))
}

/// The words that may be written today.
fn allowed<T>(vocabulary: Vocabulary<T>) -> String {
    let built = vocabulary.iter().filter(|(_, meaning)| meaning.is_some());
    let words: Vec<String> = built.map(|(word, _)| format!("`\"{word}\"`")).collect();
    words.join(", ")
}

fn quoted<'k>(words: impl Iterator<Item = &'k str>) -> String {
    words
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
