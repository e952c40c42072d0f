//! The TOML front door: a main file with its drop-ins becomes tables, tables become units.
//!
//! Drop-ins are laid over the main file key by key before anything is typed, so that a mistake which a drop-in puts
//! right is none, and each value still knows its own file.

use super::field::{Raw, check_name, place};
use super::finding::floor_char_boundary;
use super::keys::{self, Entry, Kind, Table, header_of, home_of};
use super::nearest::nearest;
use super::value::clipped;
use super::{At, Finding, Name, Place, Sources, Units};
use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// Collects the units of one main file after the other.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub units: Units,
    pub findings: Vec<Finding>,
    manager: Option<Place>,
    /// Names in lower case, with the name as written: look-ups are case-insensitive, as in Circus.
    sockets: HashMap<String, At<Name>>,
    watchers: HashMap<String, At<Name>>,
}

impl Reader {
    /// Reads a main file of `folder` with its drop-ins, the main file first.
    pub fn read(&mut self, sources: &Sources, folder: &Path, files: &[u32]) {
        let before = self.findings.len();
        let documents: Vec<Document<'_>> = files
            .iter()
            .map(|&file| parse(file, sources.text(file)))
            .collect();
        let is_partial = documents.iter().any(|document| document.is_broken());
        let mut layers = Vec::new();
        for document in &documents {
            self.find_tables(document, &mut layers);
        }
        // Stable, so that a drop-in stays behind what it is laid over.
        layers.sort_by(|a, b| (a.kind, a.name).cmp(&(b.kind, b.name)));
        for same in layers.chunk_by(|a, b| (a.kind, a.name) == (b.kind, b.name)) {
            let table = merge(same, folder, is_partial);
            self.read_table(&table, sources);
        }
        for document in documents.into_iter().filter(Document::is_broken) {
            document.report(before, sources.text(document.file), &mut self.findings);
        }
    }

    /// All units so far, in order of name, and the findings in order of place.
    pub fn finish(self) -> (Units, Vec<Finding>) {
        let Reader {
            mut units,
            mut findings,
            ..
        } = self;
        units
            .sockets
            .sort_by(|a, b| a.name.value.cmp(&b.name.value));
        units
            .watchers
            .sort_by(|a, b| a.name.value.cmp(&b.name.value));
        findings.sort_by_key(|finding| finding.place);
        (units, findings)
    }

    /// The tables of a document; what is none of ours is reported.
    fn find_tables<'v>(&mut self, document: &'v Document<'v>, layers: &mut Vec<Layer<'v>>) {
        let file = document.file;
        for (key, raw) in document.root.iter() {
            let Some(kind) = Kind::ALL
                .into_iter()
                .find(|kind| kind.name() == key.get_ref())
            else {
                self.error(
                    place(file, key.span()),
                    unknown_table(key.get_ref(), raw.get_ref()),
                );
                continue;
            };
            let DeValue::Table(table) = raw.get_ref() else {
                let message = format!(
                    "`{}` must be a table: write {}",
                    kind.name(),
                    header_of(kind)
                );
                self.error(place(file, key.span()), message);
                continue;
            };
            if kind == Kind::Manager {
                layers.push(Layer::new(kind, "", file, document.header(key, raw), table));
                continue;
            }
            for (name, raw) in table.iter() {
                let DeValue::Table(table) = raw.get_ref() else {
                    // One finding is enough: all keys of `[socket]` have the same mistake.
                    let message = format!("`[{0}]` needs a name; write `[{0}.NAME]`", kind.name());
                    self.error(place(file, key.span()), message);
                    break;
                };
                let header = document.header(name, raw);
                layers.push(Layer::new(kind, name.get_ref(), file, header, table));
            }
        }
    }

    fn read_table(&mut self, table: &Table<'_>, sources: &Sources) {
        let is_new = table.is_partial || self.check_identity(table, sources);
        match table.kind {
            Kind::Manager => {
                if let Some(manager) = keys::manager(table, &mut self.findings)
                    && is_new
                {
                    self.units.manager = manager;
                }
            }
            Kind::Socket => {
                let socket = keys::socket(table, &mut self.findings);
                self.units.sockets.extend(socket.filter(|_| is_new));
            }
            Kind::Watcher => {
                let watcher = keys::watcher(table, &mut self.findings);
                self.units.watchers.extend(watcher.filter(|_| is_new));
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
        let own = At {
            value: table.name.to_string(),
            place: table.header,
        };
        let message = match known.entry(table.name.to_lowercase()) {
            Slot::Vacant(slot) => {
                slot.insert(own);
                return true;
            }
            Slot::Occupied(other) if other.get().value == table.name => format!(
                "{kind} `{}` is already defined at {}",
                clipped(table.name),
                sources.locate(other.get().place)
            ),
            Slot::Occupied(other) => format!(
                "{kind} `{}` differs from `{}` at {} by case alone; rename one",
                clipped(table.name),
                clipped(&other.get().value),
                sources.locate(other.get().place)
            ),
        };
        self.error(table.header, message);
        false
    }

    fn error(&mut self, place: Place, message: String) {
        self.findings.push(Finding::error(place, message));
    }
}

/// What to say of a key of the document's top that is no kind of table.
fn unknown_table(key: &str, value: &DeValue<'_>) -> String {
    let shown = clipped(key);
    let lower = key.to_ascii_lowercase();
    if !matches!(value, DeValue::Table(_) | DeValue::Array(_)) {
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
    file: u32,
    header: Place,
    table: &'v DeTable<'v>,
}

impl<'v> Layer<'v> {
    fn new(kind: Kind, name: &'v str, file: u32, header: Place, table: &'v DeTable<'v>) -> Self {
        Layer {
            kind,
            name,
            file,
            header,
            table,
        }
    }

    fn entries(&self) -> impl Iterator<Item = Entry<'v>> {
        let file = self.file;
        self.table.iter().map(move |(key, raw)| Entry {
            key: key.get_ref(),
            key_place: place(file, key.span()),
            value: raw.get_ref(),
            place: place(file, raw.span()),
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
        for (key, _) in layer.table.iter() {
            for other in first.kind.replaced_by(key.get_ref()) {
                merged.remove(other);
            }
        }
        for mut entry in layer.entries() {
            if let Some(below) = merged.remove(entry.key)
                && MERGED.contains(&entry.key)
                && let (DeValue::Table(table), DeValue::Table(_)) = (below.value, entry.value)
            {
                entry.under = below.under;
                entry.under.push((below.place.file, table));
            }
            merged.insert(entry.key, entry);
        }
    }
    table.entries = merged.into_values().collect();
    table
}

/// A parsed file.
struct Document<'v> {
    file: u32,
    text: &'v str,
    root: DeTable<'v>,
    /// Where the syntax errors are, and what they are.
    errors: Vec<(Range<usize>, String)>,
    /// Syntax errors that are left out.
    further_errors: usize,
}

/// Texts longer than this have only their first syntax error reported: garbage of that size has millions.
const LONGEST_RECOVERED: usize = 4 << 20;
/// So many syntax errors of a file are reported.
const MOST_ERRORS: usize = 100;

fn parse(file: u32, text: &str) -> Document<'_> {
    let (root, errors) = match DeTable::parse(text) {
        Ok(root) => (root, Vec::new()),
        Err(error) if text.len() > LONGEST_RECOVERED => {
            (Spanned::new(0..0, DeTable::new()), vec![error])
        }
        Err(_) => DeTable::parse_recoverable(text),
    };
    let further_errors = errors.len().saturating_sub(MOST_ERRORS);
    let errors = errors.iter().take(MOST_ERRORS).map(|error| {
        let span = error.span().unwrap_or(0..0);
        let start = floor_char_boundary(text, span.start);
        let end = floor_char_boundary(text, span.end).max(start);
        (start..end, explain(error.message(), text, start..end))
    });
    Document {
        file,
        text,
        errors: errors.collect(),
        further_errors,
        root: root.into_inner(),
    }
}

impl Document<'_> {
    fn is_broken(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Where the header `[a.b]` of the table `raw` stands; its key where there is none, as with `a.b.c = 1`.
    fn header(&self, key: &Spanned<DeString<'_>>, raw: &Raw<'_>) -> Place {
        let span = raw.span();
        let is_header = self
            .text
            .get(span.clone())
            .is_some_and(|text| text.starts_with('['));
        place(self.file, if is_header { span } else { key.span() })
    }

    /// Adds the syntax errors to `findings`, and takes out of those from `since` on what may only follow from them.
    fn report(&self, since: usize, text: &str, findings: &mut Vec<Finding>) {
        // What comes behind an unclosed bracket may stand in the wrong table.
        let certain = self
            .errors
            .iter()
            .filter(|(_, message)| is_structural(message))
            .map(|(span, _)| span.start)
            .min()
            .unwrap_or(usize::MAX);
        let mut index = 0;
        findings.retain(|finding| {
            index += 1;
            if index <= since || finding.place.file != self.file {
                return true;
            }
            let (start, end) = (finding.place.start as usize, finding.place.end as usize);
            let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
            let line_end = text[end..].find('\n').map_or(text.len(), |at| end + at);
            let touches = |span: &Range<usize>| span.start <= line_end && span.end >= line_start;
            start < certain && !self.errors.iter().any(|(span, _)| touches(span))
        });
        for (span, message) in &self.errors {
            findings.push(Finding::error(
                place(self.file, span.clone()),
                message.clone(),
            ));
        }
        if self.further_errors > 0 {
            let end = text.len();
            let message = format!(
                "{} more mistakes of syntax are not shown",
                self.further_errors
            );
            findings.push(Finding::error(place(self.file, end..end), message));
        }
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

/// `toml`'s message, said so that it helps with what people write in unit files.
fn explain(message: &str, text: &str, span: Range<usize>) -> String {
    let line_start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next().unwrap_or("");
    let message = message
        .strip_suffix(", expected nothing")
        .unwrap_or(message);
    if message == "duplicate key" {
        let key = clipped(text[span].trim());
        return match line.trim_start().starts_with('[') {
            true => format!(
                "duplicate table `{}`: this file has it above",
                clipped(line.trim())
            ),
            false => format!("duplicate key `{key}`: its table has it already"),
        };
    }
    if let Some(rest) = line.trim_start().strip_prefix('[')
        && let Some((kind, name)) = rest.split_once(':')
        && Kind::ALL.iter().any(|known| known.name() == kind)
    {
        let name = clipped(name.trim_end().trim_end_matches(']'));
        return format!("this is how Circus writes it; write `[{kind}.{name}]`");
    }
    let value = line.split_once('=').map(|(_, value)| value.trim());
    let is_bare = value.is_some_and(|value| !value.starts_with(['"', '\'', '[', '{']));
    match value {
        Some("") if message.starts_with("string values must be quoted") => {
            "missing value".to_string()
        }
        Some(value) if message == "unexpected leading zero" => {
            let digits = value.split([' ', '#', ',']).next().unwrap_or(value);
            format!(
                "a number with a leading zero; write a mode as `\"{}\"`",
                clipped(digits)
            )
        }
        Some(value) if is_bare && is_about_a_value(message) => {
            match value.split('#').next().unwrap_or(value).trim() {
                "yes" | "on" | "True" | "TRUE" | "Yes" | "On" | "YES" | "ON" => {
                    "not a TOML value; write `true`".to_string()
                }
                "no" | "off" | "False" | "FALSE" | "No" | "Off" | "NO" | "OFF" => {
                    "not a TOML value; write `false`".to_string()
                }
                value if value.contains(['"', '\'']) => "text must stand in quotes".to_string(),
                value => format!("text must stand in quotes: write `\"{}\"`", clipped(value)),
            }
        }
        _ => message.to_string(),
    }
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
