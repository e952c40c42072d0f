//! The TOML front door: a main file with its drop-ins becomes tables, tables become units.
//!
//! Drop-ins are laid over the main file key by key before anything is typed, so that a mistake which a drop-in puts
//! right is none, and each value still knows its own file.

use super::document::{self, Item, Value};
use super::doubt::{Doubt, Doubts, Unsure};
use super::field::check_name;
use super::finding::floor_char_boundary;
use super::keys::{self, Entry, Kind, Reading, Table, header_of, home_of};
use super::nearest::nearest;
use super::value::{clipped, parse_mode};
use super::{Arrange, Finding, Findings, Name, NameMap, Place, Sources, Units};
use std::collections::BTreeMap;
use std::collections::hash_map::Entry as Slot;
use std::ops::Range;
use std::path::Path;

/// Collects the units of one main file after the other.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub units: Units,
    /// The units that have a mistake, as far as they could be read.
    pub unfinished: Units,
    /// What is not known of those.
    pub doubts: Doubts,
    pub findings: Findings,
    manager: Option<Place>,
    /// By name in lower case, since look-ups are case-insensitive, as in Circus.
    sockets: NameMap<Name, Known>,
    watchers: NameMap<Name, Known>,
}

/// A name that is taken.
#[derive(Debug)]
struct Known {
    header: Place,
    /// As it was written, if not in lower case.
    written: Option<Name>,
}

impl Reader {
    /// Reads a main file of `folder` with its drop-ins, the main file first. What they say is not all that the group
    /// has if it `is_partial`.
    pub fn read(&mut self, sources: &Sources, folder: &Path, files: &[u32], is_partial: bool) {
        let documents: Vec<Document<'_>> = files
            .iter()
            .map(|&file| parse(file, sources.text(file)))
            .collect();
        for document in documents.iter().filter(|document| document.is_broken()) {
            // It may have a header in what was not understood.
            self.doubts.any_name = true;
            self.doubts.unsure.insert(document.file, document.unsure());
        }
        let is_partial = is_partial || documents.iter().any(Document::is_broken);
        let mut layers = Vec::new();
        for document in &documents {
            self.find_tables(document, &mut layers);
        }
        let count = |kind| layers.iter().filter(|layer| layer.kind == kind).count();
        let (sockets, watchers) = (count(Kind::Socket), count(Kind::Watcher));
        self.sockets.reserve(sockets);
        self.watchers.reserve(watchers);
        self.units.sockets.reserve(sockets);
        self.units.watchers.reserve(watchers);
        // Stable, so that a drop-in stays behind what it is laid over.
        layers.arrange_by(|a, b| (a.kind, a.name).cmp(&(b.kind, b.name)));
        let same = layers.chunk_by(|a, b| (a.kind, a.name) == (b.kind, b.name));
        let mut same: Vec<_> = same.collect();
        // As they were written: of very many mistakes the first are told, and little work is put into the others.
        same.arrange_by_key(|same| same[0].header);
        for same in same {
            let table = merge(same, folder, is_partial);
            self.read_table(&table, sources);
        }
        for document in documents.into_iter().filter(Document::is_broken) {
            self.take_back(document.file);
            document.report(&mut self.findings);
        }
    }

    /// Brings the units in order of name, and the findings in order of place.
    pub fn sort(&mut self) {
        self.units.sort();
        self.findings.sort();
    }

    /// Takes out of the findings what may only follow from the mistakes of syntax of `file`.
    fn take_back(&mut self, file: u32) {
        let doubts = &self.doubts;
        self.findings
            .retain(|finding| finding.place.file != file || !doubts.cover(finding));
    }

    /// The tables of a document; what is none of ours is reported.
    fn find_tables<'v>(&mut self, document: &'v Document<'v>, layers: &mut Vec<Layer<'v>>) {
        for item in document.values.root().iter() {
            let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == item.key) else {
                self.findings
                    .error_with(item.key_place, || unknown_table(&item));
                self.suspect(&item);
                continue;
            };
            let Value::Table(table) = item.value else {
                let message = format!(
                    "`{}` must be a table: write {}",
                    kind.name(),
                    header_of(kind)
                );
                self.error(item.key_place, message);
                self.suspect(&item);
                continue;
            };
            if kind == Kind::Manager {
                layers.push(Layer::new(kind, "", document.header(&item), table));
                continue;
            }
            layers.reserve(table.len());
            let mut is_named = true;
            for unit in table.iter() {
                let Value::Table(table) = unit.value else {
                    self.doubts.names.insert(unit.key.to_lowercase());
                    // Of a header the key is a part.
                    if matches!(unit.value, Value::List(_))
                        && unit.place.start < unit.key_place.start
                    {
                        let message = format!(
                            "double brackets make a list of tables; write {} in single ones",
                            header_of(kind)
                        );
                        self.error(unit.key_place, message);
                    } else {
                        is_named = false;
                    }
                    continue;
                };
                layers.push(Layer::new(kind, unit.key, document.header(&unit), table));
            }
            if !is_named {
                // One finding is enough: all keys of `[socket]` have the same mistake.
                let message = format!("`[{0}]` needs a name; write `[{0}.NAME]`", kind.name());
                self.error(item.key_place, message);
            }
        }
    }

    /// What stands in no table of ours may be meant for units.
    fn suspect(&mut self, item: &Item<'_>) {
        match item.value {
            Value::Table(table) => {
                let names = table.iter().map(|unit| unit.key.to_lowercase());
                self.doubts.names.extend(names);
            }
            Value::List(_) => self.doubts.any_name = true,
            Value::Text(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Date => {}
        }
    }

    fn read_table(&mut self, table: &Table<'_>, sources: &Sources) {
        let unsure = self.doubts.unsure.get(&table.header.file);
        let is_sure = unsure.is_none_or(|unsure| !unsure.covers(table.header));
        let is_new = is_sure && self.check_identity(table, sources);
        if !is_new && table.kind != Kind::Manager {
            self.doubts.names.insert(table.name.to_lowercase());
        }
        match table.kind {
            Kind::Manager => {
                let Reading { unit, doubt } = keys::manager(table, &mut self.findings);
                if is_new {
                    let is_finished = doubt.is_none();
                    self.doubts.manager = doubt;
                    let units = match is_finished {
                        true => &mut self.units,
                        false => &mut self.unfinished,
                    };
                    units.manager = unit;
                }
            }
            Kind::Socket => {
                let Reading { unit, doubt } = keys::socket(table, &mut self.findings);
                if is_new {
                    self.home_of(table.header, doubt)
                        .sockets
                        .push(Box::new(unit));
                }
            }
            Kind::Watcher => {
                let Reading { unit, doubt } = keys::watcher(table, &mut self.findings);
                if is_new {
                    self.home_of(table.header, doubt)
                        .watchers
                        .push(Box::new(unit));
                }
            }
        }
    }

    /// Where a unit with such doubts belongs.
    fn home_of(&mut self, header: Place, doubt: Option<Doubt>) -> &mut Units {
        match doubt {
            None => &mut self.units,
            Some(doubt) => {
                self.doubts.units.insert(header, doubt);
                &mut self.unfinished
            }
        }
    }

    /// Whether the table's name may stand, and no other file has it.
    fn check_identity(&mut self, table: &Table<'_>, sources: &Sources) -> bool {
        let known = match table.kind {
            Kind::Manager => {
                let first = *self.manager.get_or_insert(table.header);
                if first != table.header {
                    let message = format!(
                        "a second `[manager]`; the first stands at {}, and there is one for all files",
                        sources.locate(first)
                    );
                    self.error(table.header, message);
                }
                return first == table.header;
            }
            Kind::Socket => &mut self.sockets,
            Kind::Watcher => &mut self.watchers,
        };
        let kind = table.kind.name();
        if let Err(why) = check_name(table.name) {
            let message = format!("the name `{}` of a {kind} {why}", clipped(table.name));
            self.error(table.header, message);
            return false;
        }
        let is_lower = |byte: u8| byte.is_ascii() && !byte.is_ascii_uppercase();
        let lower = match table.name.bytes().all(is_lower) {
            true => table.name.to_string(),
            false => table.name.to_lowercase(),
        };
        let written = (lower != table.name).then(|| table.name.to_string());
        let known = match known.entry(lower) {
            Slot::Vacant(slot) => {
                let header = table.header;
                slot.insert(Known { header, written });
                return true;
            }
            Slot::Occupied(known) => known,
        };
        let first = sources.locate(known.get().header);
        let message = if known.get().written == written {
            let name = clipped(table.name);
            format!("{kind} `{name}` is already defined at {first}")
        } else {
            let other = known.get().written.as_ref().unwrap_or(known.key());
            format!(
                "{kind} `{}` differs from `{}` at {first} by case alone; rename one",
                clipped(table.name),
                clipped(other)
            )
        };
        self.error(table.header, message);
        false
    }

    fn error(&mut self, place: Place, message: String) {
        self.findings.push(Finding::error(place, message));
    }
}

/// What to say of a key of the document's top that is no kind of table.
fn unknown_table(item: &Item<'_>) -> String {
    let key = item.key;
    let shown = clipped(key);
    let lower = key.to_ascii_lowercase();
    if !matches!(item.value, Value::Table(_) | Value::List(_)) {
        return match home_of(key, None) {
            Some(home) => {
                format!("key `{shown}` stands outside of any table; it belongs in {home}")
            }
            None => format!("unknown key `{shown}` outside of any table"),
        };
    }
    let foreign = match lower.as_str() {
        "circus" | "global" | "settings" | "tentpole" => Some(Kind::Manager),
        "service" | "program" | "process" | "worker" | "task" | "unit" => Some(Kind::Watcher),
        _ => None,
    };
    let near = foreign.or_else(|| {
        let near = nearest(&lower, Kind::ALL.into_iter().map(Kind::name))?;
        Kind::ALL.into_iter().find(|kind| kind.name() == near)
    });
    match near {
        Some(kind) => format!(
            "unknown table `[{shown}]`; did you mean {}?",
            header_of(kind)
        ),
        None if lower == "env" => {
            "unknown table `[env]`; write `env = { ... }` in `[manager]` or in `[watcher.NAME]`"
                .to_string()
        }
        None => format!(
            "unknown table `[{shown}]`; known are `[manager]`, `[socket.NAME]` and `[watcher.NAME]`"
        ),
    }
}

/// A table as one file has it.
struct Layer<'v> {
    kind: Kind,
    name: &'v str,
    header: Place,
    table: document::Table<'v>,
}

impl<'v> Layer<'v> {
    fn new(kind: Kind, name: &'v str, header: Place, table: document::Table<'v>) -> Self {
        Layer {
            kind,
            name,
            header,
            table,
        }
    }

    fn entries(&self) -> impl Iterator<Item = Entry<'v>> {
        self.table.iter().map(|item| Entry {
            key: item.key,
            key_place: item.key_place,
            value: item.value,
            place: item.place,
            under: Vec::new(),
        })
    }
}

/// Keys whose tables are merged themselves.
const MERGED: [&str; 2] = ["env", "rlimits"];

/// Lays the tables of one name over each other; there is at least one.
fn merge<'v>(layers: &[Layer<'v>], folder: &'v Path, is_partial: bool) -> Table<'v> {
    let first = &layers[0];
    let mut table = Table {
        kind: first.kind,
        name: first.name,
        header: first.header,
        folder,
        entries: Vec::new(),
        is_partial,
    };
    if layers.len() == 1 {
        table.entries = first.entries().collect();
        return table;
    }
    let mut merged: BTreeMap<&str, Entry<'v>> = BTreeMap::new();
    for layer in layers {
        // What the layers below say in another way goes; what this one says in two ways is for the reader to refuse.
        for item in layer.table.iter() {
            for other in first.kind.replaced_by(item.key) {
                merged.remove(other);
            }
        }
        for mut entry in layer.entries() {
            if let Some(below) = merged.remove(entry.key)
                && MERGED.contains(&entry.key)
                && let (Value::Table(table), Value::Table(_)) = (below.value, entry.value)
            {
                entry.under = below.under;
                entry.under.push(table);
            }
            merged.insert(entry.key, entry);
        }
    }
    table.entries = merged.into_values().collect();
    table.entries.arrange_by_key(|entry| entry.key_place);
    table
}

/// A parsed file.
struct Document<'v> {
    file: u32,
    text: &'v str,
    values: document::Document<'v>,
    /// Where the syntax errors are, and what they are.
    errors: Vec<(Range<usize>, String)>,
}

/// Texts longer than this have only their first syntax error reported: garbage of that size has millions.
const LONGEST_RECOVERED: usize = 4 << 20;
/// So many syntax errors of a file are reported.
const MOST_ERRORS: usize = 100;

fn parse(file: u32, text: &str) -> Document<'_> {
    let mut values = document::Document::parse(file, text, MOST_ERRORS);
    if text.len() > LONGEST_RECOVERED && !values.mistakes.is_empty() {
        values.forget();
    }
    let mut errors: Vec<(Range<usize>, String)> = values
        .mistakes
        .iter()
        .map(|(span, message)| {
            let start = floor_char_boundary(text, span.start);
            let end = floor_char_boundary(text, span.end).max(start);
            explain(message, text, start..end)
        })
        .collect();
    errors.arrange_by_key(|(span, _)| span.start);
    // The keys of a duplicate table are duplicates for that reason alone.
    errors.dedup_by(|next, kept| {
        next.1.starts_with(DUPLICATE_KEY)
            && kept.1.starts_with(DUPLICATE_TABLE)
            && !text[kept.0.end..next.0.start.max(kept.0.end)].contains("\n[")
    });
    Document {
        file,
        text,
        values,
        errors,
    }
}

impl Document<'_> {
    fn is_broken(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Where the header `[a.b]` of the table `raw` stands; its key where there is none, as with `a.b.c = 1`.
    fn header(&self, item: &Item<'_>) -> Place {
        let text = self.text.as_bytes();
        match text.get(item.place.start as usize) {
            Some(b'[') => item.place,
            _ => item.key_place,
        }
    }

    fn place(&self, span: Range<usize>) -> Place {
        let clamp = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Place {
            file: self.file,
            start: clamp(span.start),
            end: clamp(span.end),
        }
    }

    /// Where its text can't be trusted.
    fn unsure(&self) -> Unsure {
        let text = self.text;
        // What comes behind an unclosed bracket may stand in the wrong table.
        let from = self
            .errors
            .iter()
            .filter(|(_, message)| is_structural(message))
            .map(|(span, _)| span.start)
            .min()
            .unwrap_or(usize::MAX);
        let lines = self
            .errors
            .iter()
            .map(|(span, _)| {
                let start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
                let end = text[span.end..]
                    .find('\n')
                    .map_or(text.len(), |at| span.end + at);
                start..end
            })
            .collect();
        Unsure { from, lines }
    }

    /// Adds the syntax errors to `findings`.
    fn report(&self, findings: &mut Findings) {
        for (span, message) in &self.errors {
            findings.push(Finding::error(self.place(span.clone()), message.clone()));
        }
        findings.leave_out(self.file, self.values.further_mistakes);
    }
}

/// Whether what follows this error may be read as something else than it was meant to be.
fn is_structural(message: &str) -> bool {
    [
        "array",
        "inline table",
        "multi-line",
        "unclosed",
        "key-value pair",
    ]
    .iter()
    .any(|part| message.contains(part))
}

const DUPLICATE_TABLE: &str = "duplicate table ";
const DUPLICATE_KEY: &str = "duplicate key ";

/// The parser's message, said so that it helps with what people write in unit files, and the span that is meant.
fn explain(message: &str, text: &str, span: Range<usize>) -> (Range<usize>, String) {
    let line_start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next().unwrap_or("");
    if message == "duplicate key" {
        let message = match line.trim_start().starts_with('[') {
            true => format!(
                "{DUPLICATE_TABLE}`{}`: this file has it above",
                clipped(line.trim())
            ),
            false => {
                let key = clipped(text[span.clone()].trim());
                format!("{DUPLICATE_KEY}`{key}`: its table has it already")
            }
        };
        return (span, message);
    }
    if let Some(rest) = line.trim_start().strip_prefix('[')
        && let Some((kind, name)) = rest.split_once(':')
        && Kind::ALL.iter().any(|known| known.name() == kind)
    {
        let name = clipped(name.trim_end().trim_end_matches(']'));
        let message = format!("this is how Circus writes it; write `[{kind}.{name}]`");
        return (span, message);
    }
    let Some((key, rest)) = line.split_once('=') else {
        return (span, message.to_string());
    };
    // What was meant for a value: the rest of the line but for a comment.
    let value = rest.split('#').next().unwrap_or(rest).trim_end();
    let value_start = line_start + key.len() + 1 + (value.len() - value.trim_start().len());
    let value = value.trim();
    let value_span = value_start..value_start + value.len();
    let message = match value {
        "" if message.starts_with("string values must be quoted") => "missing value".to_string(),
        _ if value.starts_with(['"', '\'', '[', '{']) => return (span, message.to_string()),
        _ if message == "unexpected leading zero" => match parse_mode(value, 0o7777) {
            Ok(_) => format!("a number with a leading zero; write a mode as `\"{value}\"`"),
            Err(_) => "a number with a leading zero".to_string(),
        },
        _ if !is_about_a_value(message) => return (span, message.to_string()),
        "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "True" | "TRUE" => {
            "not a TOML value; write `true`".to_string()
        }
        "no" | "No" | "NO" | "off" | "Off" | "OFF" | "False" | "FALSE" => {
            "not a TOML value; write `false`".to_string()
        }
        _ if value.contains(['"', '\'', '\\']) => "text must stand in quotes".to_string(),
        _ => format!("text must stand in quotes: write `\"{}\"`", clipped(value)),
    };
    (value_span, message)
}

fn is_about_a_value(message: &str) -> bool {
    [
        "string values must be quoted",
        "invalid float",
        "invalid integer",
        "invalid date",
        "invalid time",
        "invalid offset",
    ]
    .iter()
    .any(|start| message.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::super::{Loaded, read_text};
    use super::*;
    use proptest::prelude::*;

    fn first_lines(loaded: &Loaded) -> Vec<String> {
        let rendered = loaded.findings.iter().map(|finding| {
            let rendered = loaded.sources.render(finding).to_string();
            rendered.lines().next().unwrap_or_default().to_string()
        });
        rendered.collect()
    }

    fn findings(text: &str) -> Vec<String> {
        first_lines(&read_text(Path::new("/u/t"), text))
    }

    /// Reads the first text as main file and the others as its drop-ins `1`, `2`, ...
    fn read_layers(texts: &[&str]) -> Loaded {
        let mut sources = Sources::default();
        let files: Vec<u32> = (0..)
            .zip(texts)
            .map(|(number, text)| sources.add(Path::new(&format!("{number}")), text.to_string()))
            .collect();
        let mut reader = Reader::default();
        reader.read(&sources, Path::new("/u"), &files, false);
        reader.sort();
        Loaded {
            units: reader.units,
            unfinished: reader.unfinished,
            doubts: reader.doubts,
            findings: reader.findings,
            sources,
        }
    }

    #[test]
    fn tables_that_are_unknown_or_in_the_wrong_place_are_refused() {
        for (text, wanted) in [
            (
                "[sockets.a]",
                "/u/t:1:2: unknown table `[sockets]`; did you mean `[socket.NAME]`?",
            ),
            (
                "[wacther.a]",
                "/u/t:1:2: unknown table `[wacther]`; did you mean `[watcher.NAME]`?",
            ),
            (
                "[circus]",
                "/u/t:1:2: unknown table `[circus]`; did you mean `[manager]`?",
            ),
            (
                "[program.x]",
                "/u/t:1:2: unknown table `[program]`; did you mean `[watcher.NAME]`?",
            ),
            (
                "[env]",
                "/u/t:1:2: unknown table `[env]`; write `env = { ... }` in `[manager]` or in `[watcher.NAME]`",
            ),
            (
                "[plugin.x]",
                "/u/t:1:2: unknown table `[plugin]`; known are `[manager]`, `[socket.NAME]` and `[watcher.NAME]`",
            ),
            (
                "listen = 1",
                "/u/t:1:1: key `listen` stands outside of any table; it belongs in `[socket.NAME]`",
            ),
            (
                "accept = 1",
                "/u/t:1:1: key `accept` stands outside of any table; it belongs in `[watcher.NAME]`",
            ),
            (
                "foo = 1",
                "/u/t:1:1: unknown key `foo` outside of any table",
            ),
            (
                "socket = 1",
                "/u/t:1:1: `socket` must be a table: write `[socket.NAME]`",
            ),
            (
                "[[socket]]\nlisten = 1",
                "/u/t:1:3: `socket` must be a table: write `[socket.NAME]`",
            ),
            (
                "[[manager]]",
                "/u/t:1:3: `manager` must be a table: write `[manager]`",
            ),
            (
                "[socket]\nlisten = 1\nbacklag = 2",
                "/u/t:1:2: `[socket]` needs a name; write `[socket.NAME]`",
            ),
            (
                "[[socket.a]]\nlisten = 1",
                "/u/t:1:10: double brackets make a list of tables; write `[socket.NAME]` in single ones",
            ),
            (
                "[socket]\na = [[1]]",
                "/u/t:1:2: `[socket]` needs a name; write `[socket.NAME]`",
            ),
        ] {
            assert_eq!(findings(text), [wanted], "{text}");
        }
        assert_eq!(findings("[socket]\n[watcher]\n"), Vec::<String>::new());
    }

    #[test]
    fn names_are_printable_and_without_slashes() {
        let long = "x".repeat(256);
        for (name, wanted) in [
            ("", "the name `` of a socket is empty"),
            (".", "the name `.` of a socket is taken for a folder"),
            ("..", "the name `..` of a socket is taken for a folder"),
            ("a/b", "the name `a/b` of a socket has a `/` in it"),
            (
                "a\\nb",
                "the name `a\u{240a}b` of a socket has a character in it that cannot be printed",
            ),
            (
                "a\\u202eb",
                "the name `a\u{fffd}b` of a socket has a character in it that cannot be printed",
            ),
            (
                " a",
                "the name ` a` of a socket begins or ends with a blank",
            ),
            (
                &long,
                &format!(
                    "the name `{}...` of a socket is longer than 255 bytes",
                    "x".repeat(60)
                ),
            ),
        ] {
            let found = findings(&format!("[socket.\"{name}\"]\nlisten = 1"));
            assert_eq!(found, [format!("/u/t:1:1: {wanted}")], "{name}");
        }
        for name in ["a b", "b\u{fc}cher", "a.b", "web@1", "-"] {
            let text = format!("[socket.\"{name}\"]\nlisten = 1");
            assert_eq!(findings(&text), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn names_that_differ_by_case_alone_are_refused() {
        assert_eq!(
            findings(
                "[socket.web]\nlisten = 1\n[socket.Web]\nlisten = 2\n[watcher.WEB]\ncmd = \"x\""
            ),
            ["/u/t:3:1: socket `Web` differs from `web` at /u/t:1:1 by case alone; rename one"]
        );
    }

    #[test]
    fn all_mistakes_of_syntax_are_told_with_what_helps() {
        for (text, wanted) in [
            (
                "[socket.a]\nlisten = 1\n[socket.a]\nlisten = 2\n",
                &["3:9: duplicate table `[socket.a]`: this file has it above"][..],
            ),
            (
                "[socket.a]\nlisten = 1\nlisten = 2\n",
                &["3:1: duplicate key `listen`: its table has it already"],
            ),
            (
                "[socket:web]\nlisten = 1",
                &["1:8: this is how Circus writes it; write `[socket.web]`"],
            ),
            (
                "[socket.a]\nlisten = 127.0.0.1:80\nblocking = yes\noptional = off\nmode = 0660 # x\n",
                &[
                    "2:10: text must stand in quotes: write `\"127.0.0.1:80\"`",
                    "3:12: not a TOML value; write `true`",
                    "4:12: not a TOML value; write `false`",
                    "5:8: a number with a leading zero; write a mode as `\"0660\"`",
                ],
            ),
            (
                "[socket.a\nlisten = 1",
                &["1:10: unclosed table, expected `]`"],
            ),
            ("a = \"x", &["1:7: invalid basic string, expected `\"`"]),
        ] {
            let wanted: Vec<String> = wanted
                .iter()
                .map(|wanted| format!("/u/t:{wanted}"))
                .collect();
            assert_eq!(findings(text), wanted, "{text}");
        }
    }

    #[test]
    fn mistakes_of_syntax_do_not_cascade_and_hide_no_sure_mistake() {
        let text = "[socket.a]\nbacklag = 5\nlisten = 1.2.3.4:5\n[watcher.w]\nnice = 99\n";
        assert_eq!(
            findings(text),
            [
                "/u/t:2:1: unknown key `backlag` in `[socket]`; did you mean `backlog`?",
                "/u/t:3:10: text must stand in quotes: write `\"1.2.3.4:5\"`",
                "/u/t:5:8: `nice` of `watcher.w` must be an integer from -20 to 19; found `99`",
            ]
        );
        // The second half stands in the wrong table, for all that the parser can tell.
        let text = "[watcher.w]\nnice = 99\nenv = { A = 1\n[socket.a]\nlisten = 1\n";
        let found = findings(text);
        assert_eq!(
            found[0],
            "/u/t:2:8: `nice` of `watcher.w` must be an integer from -20 to 19; found `99`"
        );
        assert!(
            found[1..].iter().all(|line| !line.contains("unknown key")),
            "{found:#?}"
        );
        // A file that cannot be read to its end gives no units.
        let loaded = read_text(
            Path::new("/u/t"),
            "[socket.a]\nlisten = 1\n[socket.b]\nlisten = x\n",
        );
        assert_eq!(loaded.units.sockets, []);
    }

    #[test]
    fn garbage_has_a_bounded_number_of_findings() {
        let found = findings(&"=\n".repeat(100_000));
        assert_eq!(found.len(), MOST_ERRORS);
        let loaded = read_text(Path::new("/u/t"), &"=\n".repeat(100_000));
        assert!(loaded.findings.errors() > 100_000);
        assert_eq!(findings(&"=\n".repeat(LONGEST_RECOVERED)).len(), 1);
    }

    #[test]
    fn deep_nesting_is_refused_without_overflow() {
        for text in [
            format!("{}a = 1", "a.".repeat(100_000)),
            format!("[{}a]", "a.".repeat(100_000)),
            format!("a = {}", "[".repeat(100_000)),
            format!("a = {}", "{a=".repeat(100_000)),
        ] {
            assert!(!findings(&text).is_empty());
        }
    }

    #[test]
    fn a_byte_order_mark_and_carriage_returns_are_taken() {
        assert_eq!(
            findings("\u{feff}[socket.a]\r\nlisten = 1\r\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_drop_in_replaces_key_by_key() {
        let loaded = read_layers(&[
            "[watcher.w]\ncmd = \"old\"\nnumprocesses = 2\nuid = 1\nrespawn = false\n\
             env = { A = \"1\", B = \"1\" }\nrlimits = { nofile = 1, core = 1 }\n[socket.s]\nhost = \"a\"\nport = 1\n",
            "[watcher.w]\ncmd = \"new\"\nuser = \"u\"\nrestart = \"always\"\n[watcher.w.env]\nB = \"2\"\nC = \"2\"\n",
            "[watcher.w]\nenv.C = \"3\"\nrlimits.core = 3\n[socket.s]\npath = \"x\"\n[socket.new]\nlisten = 1\n",
        ]);
        assert_eq!(first_lines(&loaded), Vec::<String>::new());
        let w = &loaded.units.watchers[0];
        assert_eq!(w.cmd.value, super::super::Words::Text("new".to_string()));
        assert_eq!(w.cmd.place.file, 1);
        assert_eq!(w.name.place.file, 0);
        assert_eq!(w.numprocesses.value, 2);
        assert_eq!(w.restart, super::super::Restart::Always);
        let user = w.user.as_ref().map(|user| &user.value);
        assert_eq!(user, Some(&super::super::Principal::Name("u".to_string())));
        let env: Vec<_> = w
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.value.as_str(), value.place.file))
            .collect();
        assert_eq!(env, [("A", "1", 0), ("B", "2", 1), ("C", "3", 2)]);
        let soft: Vec<_> = w.rlimits.iter().map(|(_, limit)| limit.soft).collect();
        assert_eq!(soft, [Some(3), Some(1)]);
        let names: Vec<_> = loaded
            .units
            .sockets
            .iter()
            .map(|s| s.name.value.as_str())
            .collect();
        assert_eq!(names, ["new", "s"]);
        assert_eq!(
            loaded.units.sockets[1].address.value,
            super::super::Address::Path("/u/x".into())
        );
    }

    #[test]
    fn a_mistake_that_a_drop_in_puts_right_is_none_and_its_own_are_told_at_its_own_place() {
        let loaded = read_layers(&[
            "[watcher.w]\nnumprocesses = -1\nenv = { LISTEN_FDS = 1 }\n",
            "[watcher.w]\ncmd = \"x\"\nnumprocesses = 1\nnice = 99\n",
        ]);
        assert_eq!(
            first_lines(&loaded),
            [
                "0:3:9: `env` of `watcher.w` may not set `LISTEN_FDS`: tentpole sets it for each worker",
                "1:4:8: `nice` of `watcher.w` must be an integer from -20 to 19; found `99`",
            ]
        );
        let loaded = read_layers(&[
            "[watcher.w]\nenv = 5\ncmd = \"x\"",
            "[watcher.w]\nenv = { A = 1 }",
        ]);
        assert_eq!(loaded.units.watchers[0].env.len(), 1);
    }

    #[test]
    fn a_broken_drop_in_costs_the_units_and_makes_no_false_findings() {
        let loaded = read_layers(&[
            "[socket.s]\nbacklog = 1\n",
            "[socket.s]\nlisten = 1.2.3.4:5\n",
        ]);
        assert_eq!(
            first_lines(&loaded),
            ["1:2:10: text must stand in quotes: write `\"1.2.3.4:5\"`"]
        );
        assert_eq!(loaded.units.sockets, []);
    }

    #[test]
    fn ten_thousand_units_of_one_file_are_read_in_order_of_name() {
        let text: String = (0..10_000)
            .map(|number| format!("[socket.s{number:05}]\nlisten = \"127.0.0.1:0\"\n"))
            .collect();
        let loaded = read_text(Path::new("/u/t"), &text);
        assert_eq!(first_lines(&loaded), Vec::<String>::new());
        assert_eq!(loaded.units.sockets.len(), 10_000);
        assert!(
            loaded
                .units
                .sockets
                .is_sorted_by(|a, b| a.name.value < b.name.value)
        );
    }

    const VALID: &str = "[manager]\ncontrol = \"/run/c.sock\"\nlog_level = \"info\"\nenv = { A = \"b\" }\ncheck_delay = 5\n\
        [socket.web]\nlisten = \"127.0.0.1:8000\"\nbacklog = 5\ntype = \"stream\"\ntrigger_limit = { burst = 1, interval = \"2s\" }\n\
        [socket.\"u n\"]\npath = \"x\u{e4}.sock\"\nmode = 0o660\numask = \"022\"\nuser = \"www\"\nfamily = 'AF_UNIX'\n\
        [watcher.web]\ncmd = [\"a\", 'b', \"\"\"c\n\"\"\"]\nargs = \"$(circus.socket.web) 'x y'\"\nsockets = [\"web\", \"u n\"]\n\
        numprocesses = 5\nstart_timeout = \"1m30s\"\nwatchdog = 0.5\nstop_signal = \"RTMIN+2\"\n\
        rlimits = { nofile = \"1K:2K\", core = { soft = 0, hard = \"infinity\" } }\nstdout = { file = \"x\" }\ncpu_affinity = [0, 2]\n\
        [watcher.web.env]\nA = 1\n\"B\" = true\n";

    #[test]
    fn the_text_that_is_mutated_is_valid() {
        assert_eq!(
            findings(VALID),
            ["/u/t:5:15: warning: `check_delay` of `manager` is needless: nothing is polled"]
        );
    }

    /// Whatever the text, reading it ends, and each finding is at a place of it and can be shown.
    fn assert_sound(text: &str) {
        let loaded = read_text(Path::new("/u/t"), text);
        for finding in &loaded.findings {
            let (start, end) = (finding.place.start as usize, finding.place.end as usize);
            assert_eq!(finding.place.file, 0, "{finding:?}");
            assert!(text.get(start..end).is_some(), "{finding:?} in {text:?}");
            let rendered = loaded.sources.render(finding).to_string();
            assert!(
                !rendered.contains(|c: char| c.is_control() && c != '\n'),
                "{rendered:?}"
            );
            assert!(rendered.lines().count() <= 3, "{rendered:?}");
            assert!(rendered.chars().count() < 2_000, "{rendered:?}");
        }
        assert!(loaded.findings.is_sorted_by_key(|finding| finding.place));
        if loaded.findings.errors() == 0 {
            let again = read_text(Path::new("/u/t"), text);
            assert_eq!(again.units, loaded.units);
        }
    }

    /// Pieces that unit files are made of, whole and broken.
    fn piece() -> impl Strategy<Value = String> {
        let known = Kind::ALL
            .iter()
            .flat_map(|kind| kind.keys())
            .collect::<Vec<_>>();
        prop_oneof![
            4 => proptest::sample::select(known).prop_map(str::to_string),
            2 => proptest::sample::select(vec![
                "[socket.web]\n", "[watcher.web]\n", "[manager]\n", "[socket.", "[[watcher]]\n", "env = {", "}", "[", "]", "\"",
                "'''", "\"\"\"", " = ", "\n", ",", ".", "#", "0o660", "-1", "99999999999999999999", "nan", "1979-05-27", "true",
                "\"1m30s\"", "\"127.0.0.1:80\"", "\"[::1]:80\"", "\"@x\"", "\"RTMIN+1\"", "\"infinity\"", "{ soft = 1, hard = 2 }",
                "\\u0000", "\u{feff}", "\r", "\t", "\u{e4}",
            ]).prop_map(str::to_string),
            1 => any::<String>(),
        ]
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic_and_with_places_in_it(text in any::<String>()) {
            assert_sound(&text);
        }

        #[test]
        fn pieces_of_unit_files_are_read_without_panic(pieces in proptest::collection::vec(piece(), 0..40)) {
            assert_sound(&pieces.concat());
        }

        #[test]
        fn mutated_unit_files_are_read_without_panic(
            cuts in proptest::collection::vec((any::<proptest::sample::Index>(), 0usize..12, piece()), 1..6),
        ) {
            let mut text = VALID.to_string();
            for (at, length, piece) in cuts {
                let start = floor_char_boundary(&text, at.index(text.len() + 1));
                let end = floor_char_boundary(&text, start + length).max(start);
                text.replace_range(start..end, &piece);
            }
            assert_sound(&text);
        }

        #[test]
        fn any_value_of_any_key_is_read_without_panic(
            kind in proptest::sample::select(Kind::ALL.to_vec()),
            key in any::<proptest::sample::Index>(),
            value in "\\PC{0,20}",
            bare in any::<bool>(),
        ) {
            let keys: Vec<&str> = kind.keys().collect();
            let key = keys[key.index(keys.len())];
            let header = header_of(kind).replace('`', "");
            let value = match bare {
                true => value,
                false => format!("\"{}\"", value.escape_default()),
            };
            assert_sound(&format!("{header}\n{key} = {value}\n"));
        }
    }
}
