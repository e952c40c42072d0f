//! A TOML text as a flat document: all its keys and values in one vector, each with its places.
//!
//! The crate `toml_parser` finds the tokens and the mistakes of syntax; here its events become values, and what TOML says
//! of tables is enforced: a key stands once, and a table has one header. With a thousand units this is a good part of a
//! start, so nothing is allocated for a key or a table: a text without escapes is borrowed, and a table is a chain through
//! the vector. A broken text gives what could be understood of it, by the same rules as the crate `toml`.

use super::{NameMap, Place};
use std::borrow::Cow;

use std::fmt;
use std::ops::Range;
use toml_parser::decoder::{Encoding, ScalarKind};
use toml_parser::parser::{EventReceiver, RecursionGuard, parse_document};
use toml_parser::{ErrorSink, Expected, ParseError, Source, Span};

/// A parsed text.
#[derive(Debug)]
pub(super) struct Document<'t> {
    /// The first is the root.
    nodes: Vec<Node<'t>>,
    /// The mistakes of syntax: the first of them, where they are and what they are.
    pub mistakes: Vec<(Range<usize>, String)>,
    /// How many more there are.
    pub further_mistakes: usize,
}

/// A value, as it is seen from outside.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'v> {
    Text(&'v str),
    Integer(Integer<'v>),
    Float(&'v str),
    Boolean(bool),
    Date,
    List(List<'v>),
    Table(Table<'v>),
}

/// An integer of any size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Integer<'v> {
    /// A sign if one was written, then digits without prefix and underscores.
    pub digits: &'v str,
    /// 2, 8, 10 or 16.
    pub radix: u32,
}

impl fmt::Display for Integer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.radix {
            2 => "0b",
            8 => "0o",
            16 => "0x",
            _ => "",
        };
        f.write_str(prefix)?;
        f.write_str(self.digits)
    }
}

/// The values of a list, in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct List<'v> {
    nodes: &'v [Node<'v>],
    chain: Chain,
}

/// The keys of a table, in order of the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'v> {
    nodes: &'v [Node<'v>],
    chain: Chain,
}

/// A key of a table and its value, or a value of a list, whose key is empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'v> {
    pub key: &'v str,
    pub key_place: Place,
    pub value: Value<'v>,
    /// Of the value; of the header where it is a table that has one.
    pub place: Place,
}

impl<'t> Document<'t> {
    /// Reads `text`, the text of the file `file`. Of the mistakes of syntax, `most` are kept.
    pub fn parse(file: u32, text: &'t str, most: usize) -> Document<'t> {
        let source = Source::new(text);
        let mut syntax = Mistakes::up_to(most);
        let mut builder = Builder::new(file, source, most);
        // Made last and freed first, so that what the document becomes gets the same memory.
        let tokens = source.lex().into_vec();
        let mut guard = RecursionGuard::new(&mut builder, DEEPEST);
        parse_document(&tokens, &mut guard, &mut syntax);
        drop(tokens);
        builder.finish();
        let count = syntax.count + builder.mistakes.count;
        let mistakes = syntax.kept.iter().chain(&builder.mistakes.kept).take(most);
        let mistakes: Vec<_> = mistakes
            .map(|mistake| {
                let span = mistake.unexpected().unwrap_or_default();
                (span.start()..span.end(), message_of(mistake))
            })
            .collect();
        Document {
            further_mistakes: count - mistakes.len(),
            mistakes,
            nodes: builder.nodes,
        }
    }

    /// The tables and keys of the top.
    pub fn root(&self) -> Table<'_> {
        let nodes = &self.nodes;
        match nodes.first().map(|node| &node.value) {
            Some(Held::Table(table)) => Table {
                nodes,
                chain: table.chain,
            },
            // What is thrown away has no root.
            Some(Held::Scalar(..) | Held::List { .. }) | None => Table {
                nodes,
                chain: Chain::default(),
            },
        }
    }

    /// Forgets all that was understood, and all mistakes but the first.
    pub fn forget(&mut self) {
        self.nodes.clear();
        self.mistakes.truncate(1);
        self.further_mistakes = 0;
    }
}

impl<'v> List<'v> {
    pub fn iter(self) -> impl Iterator<Item = Item<'v>> {
        walk(self.nodes, self.chain)
    }

    pub fn len(self) -> usize {
        self.chain.length as usize
    }
}

impl<'v> Table<'v> {
    pub fn len(self) -> usize {
        self.chain.length as usize
    }

    pub fn iter(self) -> impl Iterator<Item = Item<'v>> {
        walk(self.nodes, self.chain)
    }

    /// The value of `key`, found by going through the keys: for tables that are known to be small.
    pub fn get(self, key: &str) -> Option<Item<'v>> {
        self.iter().find(|item| item.key == key)
    }
}

fn walk<'v>(nodes: &'v [Node<'v>], chain: Chain) -> impl Iterator<Item = Item<'v>> {
    let mut next = chain.first;
    std::iter::from_fn(move || {
        // No chain leads back to the root.
        if next == ROOT {
            return None;
        }
        let node = &nodes[next as usize];
        next = node.next;
        Some(Item {
            key: &node.key.text,
            key_place: node.key.place,
            value: node.value.seen(nodes),
            place: node.place,
        })
    })
}

/// A value with its key, and the next of the same table or list.
#[derive(Debug)]
struct Node<'t> {
    key: Key<'t>,
    value: Held<'t>,
    place: Place,
    next: Id,
}

/// The number of a node.
type Id = u32;

/// The root is nobody's child: as a `next` it is the end of a chain.
const ROOT: Id = 0;

#[derive(Clone, Debug, Default)]
struct Key<'t> {
    text: Cow<'t, str>,
    place: Place,
}

/// A value, as it is kept.
#[derive(Debug)]
enum Held<'t> {
    Scalar(ScalarKind, Cow<'t, str>),
    List { chain: Chain, is_of_tables: bool },
    Table(HeldTable),
}

#[derive(Clone, Copy, Debug, Default)]
struct HeldTable {
    chain: Chain,
    /// Made for what is inside of it, as the `a` of `[a.b]` and of `a.b = 1`.
    is_implicit: bool,
    /// Made by a key with dots.
    is_dotted: bool,
    /// Written in braces, or made inside of them.
    is_inline: bool,
}

/// The nodes of a table or list.
#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    first: Id,
    last: Id,
    length: u32,
}

impl<'t> Held<'t> {
    fn seen<'v>(&'v self, nodes: &'v [Node<'v>]) -> Value<'v> {
        match self {
            Held::Scalar(kind, text) => match kind {
                ScalarKind::String => Value::Text(text),
                ScalarKind::Boolean(boolean) => Value::Boolean(*boolean),
                ScalarKind::DateTime => Value::Date,
                ScalarKind::Float => Value::Float(text),
                ScalarKind::Integer(radix) => Value::Integer(Integer {
                    digits: text,
                    radix: radix.value(),
                }),
            },
            Held::List { chain, .. } => Value::List(List {
                nodes,
                chain: *chain,
            }),
            Held::Table(table) => Value::Table(Table {
                nodes,
                chain: table.chain,
            }),
        }
    }

    /// What it is called in a message.
    fn name(&self) -> &'static str {
        match self {
            Held::Scalar(kind, _) => match kind {
                ScalarKind::String => "string",
                ScalarKind::Boolean(_) => "boolean",
                ScalarKind::DateTime => "datetime",
                ScalarKind::Float => "float",
                ScalarKind::Integer(_) => "integer",
            },
            Held::List { .. } => "array",
            Held::Table(_) => "table",
        }
    }
}

/// Lists, inline tables and keys may be nested so deep.
const DEEPEST: u32 = 80;

/// Tables of more keys than this are looked up by a hash.
const FEW: u32 = 8;

/// The first mistakes, and how many there are.
struct Mistakes {
    kept: Vec<ParseError>,
    most: usize,
    count: usize,
}

impl Mistakes {
    fn up_to(most: usize) -> Self {
        Mistakes {
            kept: Vec::new(),
            most,
            count: 0,
        }
    }

    fn duplicate(&mut self, key: Place) {
        self.report_error(ParseError::new("duplicate key").with_unexpected(span_of(key)));
    }

    fn not_a_table(&mut self, what: &str, key: Place) {
        let message = format!("cannot extend value of type {what} with a dotted key");
        self.report_error(ParseError::new(message).with_unexpected(span_of(key)));
    }
}

impl ErrorSink for Mistakes {
    fn report_error(&mut self, mistake: ParseError) {
        self.count += 1;
        if self.kept.len() < self.most {
            self.kept.push(mistake);
        }
    }
}

/// Makes nodes of events.
struct Builder<'t> {
    source: Source<'t>,
    file: u32,
    nodes: Vec<Node<'t>>,
    /// The keys of tables with more than [`FEW`].
    index: NameMap<(Id, Cow<'t, str>), Id>,
    state: State,
    /// The table of the last header.
    current: Id,
    /// The parts of the keys that are being read: that of the header or line, then those of the inline tables.
    path: Vec<Key<'t>>,
    /// A dot was read, and the next part of the key belongs to it.
    is_behind_dot: bool,
    /// The lists and inline tables that are open.
    frames: Vec<Frame>,
    /// Those that `toml_parser` does not see.
    mistakes: Mistakes,
}

/// What was read last.
#[derive(Clone, Copy)]
enum State {
    /// A whole line.
    Line,
    /// The `[` of a header.
    Header { open: Span, is_array: bool },
    /// A key.
    Key,
    /// The `=` behind a key.
    Equals,
    /// Something of a list or inline table.
    Inside,
    /// A line after which nothing can be understood.
    Nonsense,
}

/// A list or inline table that is open.
struct Frame {
    node: Id,
    is_table: bool,
    /// How much of the path is of the keys outside.
    outer: usize,
    /// The last value, which has no comma behind it yet.
    value: Option<Id>,
}

impl<'t> Builder<'t> {
    fn new(file: u32, source: Source<'t>, most: usize) -> Self {
        let mut builder = Builder {
            source,
            file,
            // Enough for lines of a usual length; what stays untouched costs nothing.
            nodes: Vec::with_capacity(source.input().len() / 16 + 1),
            index: NameMap::default(),
            state: State::Line,
            current: ROOT,
            path: Vec::new(),
            is_behind_dot: false,
            frames: Vec::new(),
            mistakes: Mistakes::up_to(most),
        };
        builder.add(Held::Table(HeldTable::default()), Span::default());
        builder
    }

    fn finish(&mut self) {
        // What is still open ends here.
        match self.state {
            State::Line | State::Key | State::Nonsense => (),
            State::Header { open, is_array } => self.begin_table(open, is_array),
            State::Equals => self.take_nothing(),
            State::Inside => {
                while let Some(frame) = self.frames.pop() {
                    self.path.truncate(frame.outer);
                    self.deliver(frame.node);
                }
            }
        }
    }

    fn place(&self, span: Span) -> Place {
        let clamp = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Place {
            file: self.file,
            start: clamp(span.start()),
            end: clamp(span.end()),
        }
    }

    /// Adds a value that belongs to nobody yet.
    fn add(&mut self, value: Held<'t>, span: Span) -> Id {
        // A text is shorter than 4 GiB, and has fewer values than bytes.
        let id = self.nodes.len() as Id;
        self.nodes.push(Node {
            key: Key::default(),
            value,
            place: self.place(span),
            next: ROOT,
        });
        id
    }

    /// Puts a value at the end of a table or list.
    fn attach(&mut self, parent: Id, key: Key<'t>, child: Id) {
        let (chain, is_table) = match &mut self.nodes[parent as usize].value {
            Held::Table(table) => (&mut table.chain, true),
            Held::List { chain, .. } => (chain, false),
            Held::Scalar(..) => return,
        };
        let last = std::mem::replace(&mut chain.last, child);
        if chain.length == 0 {
            chain.first = child;
        }
        chain.length += 1;
        let (first, length) = (chain.first, chain.length);
        if last != ROOT {
            self.nodes[last as usize].next = child;
        }
        self.nodes[child as usize].key = key;
        if is_table && length > FEW {
            if self.index.is_empty() {
                // The table of the sockets, say, which has a name for every two lines.
                self.index.reserve(self.nodes.capacity() / 2);
            }
            let mut next = if length == FEW + 1 { first } else { child };
            while next != ROOT {
                let node = &self.nodes[next as usize];
                self.index.insert((parent, node.key.text.clone()), next);
                next = node.next;
            }
        }
    }

    fn find(&self, table: Id, key: &Key<'t>) -> Option<Id> {
        let Held::Table(HeldTable { chain, .. }) = self.nodes[table as usize].value else {
            return None;
        };
        if chain.length > FEW {
            return self.index.get(&(table, key.text.clone())).copied();
        }
        let mut next = chain.first;
        while next != ROOT {
            let node = &self.nodes[next as usize];
            if node.key.text == key.text {
                return Some(next);
            }
            next = node.next;
        }
        None
    }

    /// Reads one part of a key.
    fn push_key(&mut self, span: Span, encoding: Option<Encoding>) {
        let mut text = Cow::Borrowed("");
        if let Some(raw) = self.source.get(span) {
            let raw = toml_parser::Raw::new_unchecked(raw.as_str(), encoding, span);
            raw.decode_key(&mut text, &mut self.mistakes);
        }
        let place = self.place(span);
        self.path.push(Key { text, place });
        self.is_behind_dot = false;
    }

    /// Whether nothing but blanks is between the last key and `span`.
    fn is_behind_key(&self, span: Span) -> bool {
        let blank = |between: &str| between.bytes().all(|byte| matches!(byte, b' ' | b'\t'));
        self.path.last().is_some_and(|key| {
            let between = self
                .source
                .input()
                .get(key.place.end as usize..span.start());
            between.is_some_and(blank)
        })
    }

    /// Whether the path from `from` on is a key; one that is too long is reported and dropped.
    fn has_key(&mut self, from: usize) -> bool {
        if self.path.len() > from + DEEPEST as usize {
            self.mistakes
                .report_error(ParseError::new("recursion limit"));
            self.path.truncate(from);
        }
        self.path.len() > from
    }

    /// Follows the path from `from` on, but for its last part, starting at `table`; makes the tables that are missing.
    ///
    /// The path loses its texts. `None` was reported.
    fn descend(&mut self, mut table: Id, from: usize, is_dotted: bool) -> Option<Id> {
        let is_inline = !self.frames.is_empty();
        for part in from..self.path.len() - 1 {
            let key = std::mem::take(&mut self.path[part]);
            let place = key.place;
            let Some(known) = self.find(table, &key) else {
                let made = HeldTable {
                    chain: Chain::default(),
                    is_implicit: true,
                    is_dotted,
                    is_inline,
                };
                let made = self.add(Held::Table(made), span_of(place));
                self.attach(table, key, made);
                table = made;
                continue;
            };
            match &mut self.nodes[known as usize].value {
                Held::Table(known) if known.is_inline && !is_inline => {
                    self.mistakes.not_a_table("inline table", place);
                    return None;
                }
                // Who has a header cannot be added to by keys with dots.
                Held::Table(known) if is_dotted && !known.is_implicit => {
                    self.mistakes.duplicate(place);
                    return None;
                }
                Held::Table(known) => known.is_dotted |= is_dotted,
                Held::List {
                    chain,
                    is_of_tables: true,
                } => {
                    // It has one: what makes such a list adds a table to it.
                    table = chain.last;
                    continue;
                }
                other => {
                    let name = other.name();
                    self.mistakes.not_a_table(name, place);
                    return None;
                }
            }
            table = known;
        }
        Some(table)
    }

    /// Makes the table of a header the current one.
    fn begin_table(&mut self, span: Span, is_array: bool) {
        self.state = State::Line;
        let Some(table) = self.table_of_header(span, is_array) else {
            // What stands below such a header goes nowhere.
            self.current = self.add(Held::Table(HeldTable::default()), span);
            return;
        };
        self.current = table;
    }

    fn table_of_header(&mut self, span: Span, is_array: bool) -> Option<Id> {
        if !self.has_key(0) {
            return None;
        }
        let parent = self.descend(ROOT, 0, false)?;
        let key = self.path.pop()?;
        let known = self.find(parent, &key);
        if is_array {
            return self.table_of_list(parent, key, known, span);
        }
        let Some(known) = known else {
            let made = self.add(Held::Table(HeldTable::default()), span);
            self.attach(parent, key, made);
            return Some(made);
        };
        let place = self.place(span);
        let node = &mut self.nodes[known as usize];
        let (table, is_duplicate) = match node.value {
            Held::Table(table) => (table, !table.is_implicit || table.is_dotted),
            Held::Scalar(..) | Held::List { .. } => (HeldTable::default(), true),
        };
        node.value = Held::Table(HeldTable {
            is_implicit: false,
            is_dotted: false,
            ..table
        });
        node.place = place;
        node.key.place = key.place;
        if is_duplicate {
            self.mistakes.duplicate(key.place);
        }
        Some(known)
    }

    /// The table of a header `[[a]]`.
    fn table_of_list(
        &mut self,
        parent: Id,
        key: Key<'t>,
        known: Option<Id>,
        span: Span,
    ) -> Option<Id> {
        let list = match known {
            Some(known) => known,
            None => {
                let list = Held::List {
                    chain: Chain::default(),
                    is_of_tables: true,
                };
                let list = self.add(list, span);
                self.attach(parent, key.clone(), list);
                list
            }
        };
        let Held::List {
            is_of_tables: true, ..
        } = self.nodes[list as usize].value
        else {
            self.mistakes.duplicate(key.place);
            return None;
        };
        let table = self.add(Held::Table(HeldTable::default()), span);
        self.attach(list, Key::default(), table);
        Some(table)
    }

    /// Gives a value that is whole to the list, the inline table or the line that it stands in.
    fn deliver(&mut self, value: Id) {
        if let Some(frame) = self.frames.last_mut() {
            frame.value = Some(value);
            return;
        }
        self.state = State::Line;
        let is_dotted = self.path.len() > 1;
        let Some(table) = self.descend(self.current, 0, is_dotted) else {
            return;
        };
        // The last table of a list of tables has a header, and cannot be added to by keys with dots.
        if is_dotted
            && let Held::Table(HeldTable {
                is_implicit: false, ..
            }) = self.nodes[table as usize].value
            && let Some(key) = self.path.last()
        {
            return self.mistakes.duplicate(key.place);
        }
        self.attach_new(table, value);
    }

    /// Puts the last value of the innermost list or inline table into it.
    fn settle(&mut self) {
        let Some(frame) = self.frames.last_mut() else {
            return;
        };
        let (node, outer, value) = (frame.node, frame.outer, frame.value.take());
        if !frame.is_table {
            if let Some(value) = value {
                self.attach(node, Key::default(), value);
            }
            return;
        }
        if let Some(value) = value
            && self.has_key(outer)
        {
            // What is reached by dots was made by dots: else there was a mistake on the way.
            if let Some(table) = self.descend(node, outer, true) {
                self.attach_new(table, value);
            }
        }
        self.path.truncate(outer);
    }

    /// Puts a value into a table, at the last part of the path; its key must be new.
    fn attach_new(&mut self, table: Id, value: Id) {
        let Some(key) = self.path.pop() else { return };
        if self.find(table, &key).is_none() {
            self.attach(table, key, value);
        } else {
            self.mistakes.duplicate(key.place);
        }
    }

    /// What was to be a value is none.
    fn take_nothing(&mut self) {
        let kind = ScalarKind::Integer(toml_parser::decoder::IntegerRadix::Dec);
        let nothing = self.add(Held::Scalar(kind, Cow::Borrowed("0")), Span::default());
        self.deliver(nothing);
    }

    fn open_header(&mut self, open: Span, is_array: bool) {
        if let State::Line = self.state {
            self.path.clear();
            self.is_behind_dot = false;
            self.state = State::Header { open, is_array };
        } else {
            self.take_unexpected(open);
        }
    }

    fn open(&mut self, span: Span, is_table: bool) {
        match self.state {
            State::Equals | State::Inside => (),
            State::Line | State::Header { .. } | State::Key | State::Nonsense => {
                return self.take_unexpected(span);
            }
        }
        self.state = State::Inside;
        let value = match is_table {
            true => Held::Table(HeldTable {
                is_inline: true,
                ..HeldTable::default()
            }),
            false => Held::List {
                chain: Chain::default(),
                is_of_tables: false,
            },
        };
        let node = self.add(value, span);
        self.frames.push(Frame {
            node,
            is_table,
            outer: self.path.len(),
            value: None,
        });
    }

    fn close(&mut self, span: Span, is_table: bool) {
        if let State::Inside = self.state
            && self
                .frames
                .last()
                .is_some_and(|frame| frame.is_table == is_table)
        {
            self.settle();
        }
        self.take_unexpected(span);
    }

    /// What cannot stand here ends what it stands in.
    fn take_unexpected(&mut self, span: Span) {
        match self.state {
            // A header without its `]` goes on until there is one.
            State::Line | State::Header { .. } | State::Nonsense => (),
            State::Key => self.state = State::Nonsense,
            State::Equals => self.take_nothing(),
            State::Inside => {
                if let Some(frame) = self.frames.pop() {
                    self.path.truncate(frame.outer);
                    self.nodes[frame.node as usize].place.end = self.place(span).end;
                    self.deliver(frame.node);
                }
            }
        }
    }

    fn is_in_inline_table(&self) -> bool {
        self.frames.last().is_some_and(|frame| frame.is_table)
    }
}

impl EventReceiver for Builder<'_> {
    fn std_table_open(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        self.open_header(span, false);
    }

    fn std_table_close(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        if let State::Header { open, is_array } = self.state {
            self.begin_table(open.append(span), is_array);
        } else {
            self.take_unexpected(span);
        }
    }

    fn array_table_open(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        self.open_header(span, true);
    }

    fn array_table_close(&mut self, span: Span, error: &mut dyn ErrorSink) {
        self.std_table_close(span, error);
    }

    fn inline_table_open(&mut self, span: Span, _error: &mut dyn ErrorSink) -> bool {
        self.open(span, true);
        true
    }

    fn inline_table_close(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        self.close(span, true);
    }

    fn array_open(&mut self, span: Span, _error: &mut dyn ErrorSink) -> bool {
        self.open(span, false);
        true
    }

    fn array_close(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        self.close(span, false);
    }

    fn simple_key(&mut self, span: Span, encoding: Option<Encoding>, _error: &mut dyn ErrorSink) {
        let outer = match self.state {
            State::Line => {
                self.state = State::Key;
                self.is_behind_dot = false;
                0
            }
            State::Header { .. } => 0,
            State::Key if self.is_behind_dot => 0,
            State::Inside if self.is_in_inline_table() => {
                self.frames.last().map_or(0, |frame| frame.outer)
            }
            State::Key | State::Equals | State::Inside | State::Nonsense => {
                return self.take_unexpected(span);
            }
        };
        if !self.is_behind_dot {
            self.path.truncate(outer);
        }
        self.push_key(span, encoding);
    }

    fn key_sep(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        match self.state {
            State::Header { .. } | State::Key => self.is_behind_dot = true,
            State::Inside if self.is_in_inline_table() && self.is_behind_key(span) => {
                self.is_behind_dot = true;
            }
            State::Line | State::Equals | State::Inside | State::Nonsense => {
                self.take_unexpected(span);
            }
        }
    }

    fn key_val_sep(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        match self.state {
            State::Key => {
                self.state = match self.has_key(0) {
                    true => State::Equals,
                    false => State::Nonsense,
                }
            }
            State::Inside if self.is_in_inline_table() => (),
            State::Line
            | State::Header { .. }
            | State::Equals
            | State::Inside
            | State::Nonsense => self.take_unexpected(span),
        }
    }

    fn scalar(&mut self, span: Span, encoding: Option<Encoding>, _error: &mut dyn ErrorSink) {
        match self.state {
            State::Equals | State::Inside => (),
            State::Line | State::Header { .. } | State::Key | State::Nonsense => {
                return self.take_unexpected(span);
            }
        }
        let mut text = Cow::Borrowed("");
        let raw = self.source.get(span).map_or("", |raw| raw.as_str());
        let raw = toml_parser::Raw::new_unchecked(raw, encoding, span);
        let kind = raw.decode_scalar(&mut text, &mut self.mistakes);
        if kind == ScalarKind::DateTime
            && let Err(why) = text.parse::<toml_datetime::Datetime>()
        {
            self.mistakes
                .report_error(ParseError::new(why.to_string()).with_unexpected(span));
        }
        let value = self.add(Held::Scalar(kind, text), span);
        self.deliver(value);
    }

    fn value_sep(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        if let State::Inside = self.state {
            self.settle();
        } else {
            self.take_unexpected(span);
        }
    }

    fn comment(&mut self, span: Span, error: &mut dyn ErrorSink) {
        if let Some(raw) = self.source.get(span) {
            raw.decode_comment(error);
        }
        self.error(span, error);
    }

    fn newline(&mut self, span: Span, error: &mut dyn ErrorSink) {
        if let Some(raw) = self.source.get(span) {
            raw.decode_newline(error);
        }
        self.error(span, error);
    }

    fn error(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        // Lists and inline tables go on.
        if !matches!(self.state, State::Inside) {
            self.take_unexpected(span);
        }
    }
}

/// Where the byte `offset` of the text that `raw` stands for is written in it; `raw` is a string with its quotes. `None`
/// where it has no such byte, and where that is too far to count.
pub(super) fn place_in_string(raw: &str, offset: usize) -> Option<usize> {
    // Each of very many mistakes may ask.
    const FAR: usize = 1 << 20;
    if offset > FAR {
        return None;
    }
    let has_escapes = raw.starts_with('"');
    let mut at = match raw.get(..3) {
        // A line end behind the quotes is not a part of it.
        Some("\"\"\"" | "'''") => match &raw[3..] {
            rest if rest.starts_with('\n') => 4,
            rest if rest.starts_with("\r\n") => 5,
            _ => 3,
        },
        _ => usize::from(raw.starts_with(['"', '\''])),
    };
    let mut read = 0;
    loop {
        let rest = raw.as_bytes().get(at..)?;
        let (written, meant) = match rest {
            [b'\\', b' ' | b'\t' | b'\r' | b'\n', ..] if has_escapes => {
                let is_blank = |byte: &&u8| b" \t\r\n".contains(byte);
                (1 + rest[1..].iter().take_while(is_blank).count(), 0)
            }
            [b'\\', b'u', ..] if has_escapes => (6, coded(&rest[2..6.min(rest.len())])?),
            [b'\\', b'U', ..] if has_escapes => (10, coded(&rest[2..10.min(rest.len())])?),
            [b'\\', b'x', ..] if has_escapes => (4, coded(&rest[2..4.min(rest.len())])?),
            [b'\\', ..] if has_escapes => (2, 1),
            _ => (1, 1),
        };
        // What stands for nothing is before what comes next.
        if read >= offset && meant > 0 {
            return Some(at);
        }
        at += written;
        read += meant;
    }
}

/// How many bytes the character of this code has.
fn coded(digits: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(digits).ok()?;
    let code = u32::from_str_radix(digits, 16).ok()?;
    char::from_u32(code).map(char::len_utf8)
}

fn span_of(place: Place) -> Span {
    Span::new_unchecked(place.start as usize, place.end as usize)
}

/// What is wrong, and what was expected there.
fn message_of(mistake: &ParseError) -> String {
    let mut message = mistake.description().to_string();
    let Some(expected) = mistake.expected().filter(|expected| !expected.is_empty()) else {
        return message;
    };
    message.push_str(", expected ");
    for (index, expected) in expected.iter().enumerate() {
        if index > 0 {
            message.push_str(", ");
        }
        match expected {
            Expected::Literal("\n") => message.push_str("newline"),
            Expected::Literal(literal) => {
                message.push('`');
                message.push_str(literal);
                message.push('`');
            }
            Expected::Description(description) => message.push_str(description),
            _ => message.push_str("something else"),
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::toml::Spanned;
    use ::toml::de::{DeTable, DeValue};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    type Written = BTreeSet<(usize, usize, String)>;

    /// Each value of a document with the way to it and its places; of tables and lists that they are there.
    fn values(table: Table<'_>) -> Written {
        fn collect(value: Value<'_>, place: Place, way: &str, written: &mut Written) {
            let shown = match value {
                Value::Text(text) => format!("{text:?}"),
                Value::Integer(integer) => integer.to_string(),
                Value::Float(float) => format!("float {float}"),
                Value::Boolean(boolean) => boolean.to_string(),
                Value::Date => "date".to_string(),
                Value::List(_) => "list".to_string(),
                Value::Table(_) => "table".to_string(),
            };
            let (start, end) = (place.start as usize, place.end as usize);
            written.insert((start, end, format!("{way} = {shown}")));
            match value {
                Value::List(list) => {
                    for (index, item) in list.iter().enumerate() {
                        collect(item.value, item.place, &format!("{way}[{index}]"), written);
                    }
                }
                Value::Table(table) => collect_table(table, way, written),
                _ => (),
            }
        }
        fn collect_table(table: Table<'_>, way: &str, written: &mut Written) {
            for item in table.iter() {
                let (start, end) = (item.key_place.start, item.key_place.end);
                let way = format!("{way}.{:?}@{start}..{end}", item.key);
                let is_new = table.iter().filter(|other| other.key == item.key).count() == 1;
                assert!(is_new, "{way} twice");
                collect(item.value, item.place, &way, written);
            }
        }
        let mut written = Written::new();
        collect_table(table, "", &mut written);
        written
    }

    /// The same of what the crate `toml` reads.
    fn values_of_toml(table: &DeTable<'_>) -> Written {
        fn collect(raw: &Spanned<DeValue<'_>>, way: &str, written: &mut Written) {
            let shown = match raw.get_ref() {
                DeValue::String(text) => format!("{text:?}"),
                DeValue::Integer(integer) => integer.to_string(),
                DeValue::Float(float) => format!("float {float}"),
                DeValue::Boolean(boolean) => boolean.to_string(),
                DeValue::Datetime(_) => "date".to_string(),
                DeValue::Array(_) => "list".to_string(),
                DeValue::Table(_) => "table".to_string(),
            };
            written.insert((raw.span().start, raw.span().end, format!("{way} = {shown}")));
            match raw.get_ref() {
                DeValue::Array(list) => {
                    for (index, item) in list.iter().enumerate() {
                        collect(item, &format!("{way}[{index}]"), written);
                    }
                }
                DeValue::Table(table) => collect_table(table, way, written),
                _ => (),
            }
        }
        fn collect_table(table: &DeTable<'_>, way: &str, written: &mut Written) {
            for (key, raw) in table.iter() {
                let way = format!("{way}.{:?}@{:?}", key.get_ref(), key.span());
                collect(raw, &way, written);
            }
        }
        let mut written = Written::new();
        collect_table(table, "", &mut written);
        written
    }

    /// Both see the same values at the same places, and the same mistakes.
    fn assert_alike(text: &str) -> Result<(), TestCaseError> {
        let ours = Document::parse(0, text, usize::MAX);
        let (theirs, errors) = DeTable::parse_recoverable(text);
        let mistakes: BTreeSet<_> = ours
            .mistakes
            .iter()
            .map(|(span, message)| (span.start, span.end, message.clone()))
            .collect();
        let errors: BTreeSet<_> = errors
            .iter()
            .map(|error| {
                let span = error.span().unwrap_or(0..0);
                let message = error.message();
                let message = message
                    .strip_suffix(", expected nothing")
                    .unwrap_or(message);
                (span.start, span.end, message.to_string())
            })
            .collect();
        prop_assert_eq!(mistakes, errors, "of {:?}", text);
        let (values, theirs) = (values(ours.root()), values_of_toml(theirs.get_ref()));
        prop_assert_eq!(values, theirs, "of {:?}", text);
        Ok(())
    }

    #[test]
    fn what_toml_says_of_tables_is_read_as_by_the_crate_toml() {
        for text in [
            "",
            "a = 1\n[a]\nb = 2\n",
            "a = 1\n[a.b]\nc = 2\n",
            "[a]\nx = 1\n[a]\ny = 2\nx = 3\n",
            "[a.b]\nx = 1\n[a]\ny = 2\n[a.c]\n",
            "[a.b]\n[a]\n[a]\n",
            "[a]\nb.c = 1\n[a.b]\nd = 2\n",
            "[a]\nb.c = 1\nb.d = 2\nb = 3\n",
            "a.b = 1\na.c.d = 2\n[a]\ne = 3\n",
            "[a.b.c]\n[a]\nb.d = 1\n",
            "a = { b = 1 }\na.c = 2\n[a.d]\n[a]\ne = 3\n",
            "a = { b.c = 1, b.d = 2, b = 3, c = 4, c.d = 5 }\n",
            "a = { b = { c = 1 }, b.d = 2 }\n",
            "a = [1, [2, { b = 3 }], 'x', \"\\u00e4\", 1.5, true, 1979-05-27]\n",
            "[[a]]\nx = 1\n[[a]]\nx = 2\n[a.b]\ny = 3\n",
            "[a]\n[[a]]\nx = 1\n",
            "a = []\n[[a]]\nx = 1\n[a.b]\n",
            "[[a]]\n[a]\nx = 1\n",
            "[[a.b]]\n[a]\nb = 1\n",
            "[[a.b]]\n[a]\nb.c = 1\nb.d.e = 2\n",
            "[a\nb = 1\n[c]\nd = 2\n",
            "[[a]\nb = 1\n",
            "a\nb = 1\n",
            "a = \nb = 1\n",
            "a = = 1\nb = 1\n",
            "a = [1, 2\nb = 3\n[c]\nd = 4\n",
            "a = { b = 1\n[c]\nd = 4\n",
            "a = [{ {x}, b = 1 }, 2]\nc = 3\n",
            "a = { [1], b = 2 }\nc = 3\n",
            "a = { b = [ { {}, c.d = 1 } ], e = 2 }\nf = 3\n",
            "a = ]\nb = }\n",
            "a = 1979-99-99\nb = 25:00\nc = 0x1_F\nd = -0b1\ne = 1__0\n",
            "\"a.b\" . 'c' = 1\n. = 2\n= 3\na. = 4\n",
            "# \u{1}\na = 1 # \u{7f}\r\nb = 2\rc = 3\n",
            "\u{feff}a = '''\n x\r\n''' ",
            "a = 1\n\u{feff}b = 2\n",
            "a = 1\nb = { c = 2 }\na = 3\nb.d = 4\nd = \"\u{1}\"\n= 5\ne",
            "a = \"\"\"\nx\\\n   y\"\"\"\n'''k''' = 1\n",
        ] {
            assert_alike(text).unwrap_or_else(|why| panic!("{why}"));
        }
    }

    #[test]
    fn depth_has_the_same_limits() {
        for depth in [79, 80, 81, 82, 200] {
            for text in [
                format!("{}a = 1\nb = 2\n", "a.".repeat(depth)),
                format!("[{}a]\nb = 2\n[c]\n", "a.".repeat(depth)),
                format!("a = {}1{}\nb = 2\n", "[".repeat(depth), "]".repeat(depth)),
                format!("a = {}1{}\nb = 2\n", "{a=".repeat(depth), "}".repeat(depth)),
                format!("a = {{ {}a = 1 }}\nb = 2\n", "a.".repeat(depth)),
            ] {
                assert_alike(&text).unwrap_or_else(|why| panic!("{why}"));
            }
        }
    }

    #[test]
    fn tables_of_many_keys_are_read_alike() {
        for many in [FEW - 1, FEW, FEW + 1, FEW + 2, 100] {
            let keys = |sign: &str| -> String {
                let keys = (0..many).map(|number| format!("k{number} = {number}{sign}"));
                keys.collect()
            };
            let tables: String = (0..many)
                .map(|number| format!("[t.u{number}]\nx = 1\n[t.u{number}.v]\ny = 2\n"))
                .collect();
            let lines = keys("\n");
            for text in [
                format!("{lines}k0 = 5\n\"k\\u0031\" = 6\nnew = 7\n{tables}[t.u0]\n[t]\nu1 = 5\n"),
                format!(
                    "a = {{ {} k0 = 1, k2.x = 1 }}\n[b]\n{lines}{lines}",
                    keys(",")
                ),
            ] {
                assert_alike(&text).unwrap_or_else(|why| panic!("{why}"));
            }
        }
    }

    #[test]
    fn of_many_mistakes_some_are_kept_and_the_others_counted() {
        let text = "=\n".repeat(1000);
        let all = Document::parse(0, &text, usize::MAX);
        let some = Document::parse(0, &text, 10);
        assert_eq!(some.mistakes, all.mistakes[..10]);
        assert_eq!(some.further_mistakes + 10, all.mistakes.len());
        assert_eq!(all.further_mistakes, 0);
    }

    /// Checks that the `@` of a string is found where it is written.
    fn assert_found(raw: &str) -> Result<(), TestCaseError> {
        let text = format!("a = {raw}");
        let document = Document::parse(0, &text, 1);
        let item = document.root().get("a");
        let (Some(item), []) = (item, &document.mistakes[..]) else {
            return Err(TestCaseError::reject("not a string"));
        };
        let Value::Text(meant) = item.value else {
            return Err(TestCaseError::reject("not a string"));
        };
        let at = meant.find('@').expect("it has one");
        prop_assert_eq!(place_in_string(raw, at), raw.find('@'), "{}", raw);
        prop_assert_eq!(place_in_string(raw, meant.len() + 4), None);
        Ok(())
    }

    proptest! {
        #[test]
        fn a_byte_of_a_string_is_found_where_it_is_written(
            before in "(x|\u{e4}|\\\\[btnfre\"\\\\]|\\\\u00e4|\\\\U0001f600|\\\\x41|\\\\xe4| ){0,8}",
            lines in "(\r?\n)?(x|\u{e4}|\"|'|\r?\n|\\\\ ?\r?\n \r?\n?\t|\\\\t| ){0,8}",
            literal in "(x|\u{e4}|\\\\|\"| ){0,8}",
        ) {
            assert_found(&format!("\"{before}@x\""))?;
            assert_found(&format!("'{literal}@x'"))?;
            // What ends the string too early is none.
            if !lines.contains("\"\"\"") {
                assert_found(&format!("\"\"\"{lines}@x\"\"\""))?;
            }
            if !lines.contains("'''") {
                assert_found(&format!("'''{lines}@x'''"))?;
            }
        }
    }

    /// What documents are made of.
    fn piece() -> impl Strategy<Value = &'static str> {
        const WHOLE: &[&str] = &[
            "[a]\n",
            "[a.b]\n",
            "[b.a]\n",
            "[a.b.c]\n",
            "[[a]]\n",
            "[[a.b]]\n",
            "[a.\"b\"]\n",
            "[ a . b ]\n",
            "a = 1\n",
            "b = 'x'\n",
            "c = \"\\t\\u00e4\"\n",
            "a.b = 2\n",
            "a.b.c = 2\n",
            "b.a = 0o17\n",
            "a = {}\n",
            "a = { b = 1, c.d = 2 }\n",
            "b = { a = { a = 1 }, a.b = 2, }\n",
            "a.c = [1, [2], { b = 3 }]\n",
            "c = [\n1, # one\n2,\n]\n",
            "b = 1979-05-27T07:32:00Z\n",
            "b = 1.5e3\n",
            "c = true\n",
            "# x\n",
            "c = \"\"\"\nx\"\"\"\n",
            "\n",
            "a = \"x\"\r\n",
            " [a.\"x y\".'z']\t# \u{e4}\n",
            "c = ['a', \"b\", 1, true,]\n",
            "b = [ ]#\n",
            "\tb=false # x\n",
            "a = \"\"\n",
            "a = \n",
            "b = 007\n",
            "b = -1\n",
            "c = '\\'\n",
            "c = \"a\"\"\n",
            "c = 1 2\n",
            "[c] d\n",
            "# \u{7f}\n",
            "\u{feff}b = 1\n",
            "c-1_ = 18446744073709551616\n",
        ];
        const BROKEN: &[&str] = &[
            "[",
            "]",
            "[[",
            "]]",
            "{",
            "}",
            ",",
            ".",
            "=",
            " ",
            "\t",
            "\n",
            "\r",
            "\r\n",
            "#",
            "\"",
            "'",
            "\"\"\"",
            "'''",
            "a",
            "b",
            "c",
            "\"a\"",
            "'b'",
            "1",
            "0x",
            "0b1",
            "1_0",
            "_",
            "+1",
            "01",
            "1.",
            "inf",
            "-nan",
            "true",
            "yes",
            "\\",
            "\\u00",
            "1979-05-27",
            "1979-13-27",
            "07:32",
            "\u{0}",
            "\u{7f}",
            "\u{e4}",
            "\u{feff}",
            " = ",
            "a = ",
            "[a",
            "a = [",
            "a = {",
            "b = 1",
            " b = 1,",
            "{ b = ",
            "# x",
        ];
        prop_oneof![
            3 => proptest::sample::select(WHOLE),
            2 => proptest::sample::select(BROKEN),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn pieces_are_read_as_by_the_crate_toml(pieces in proptest::collection::vec(piece(), 0..24)) {
            assert_alike(&pieces.concat())?;
        }

        #[test]
        fn any_text_is_read_as_by_the_crate_toml(text in any::<String>()) {
            assert_alike(&text)?;
        }

        #[test]
        fn whole_lines_are_read_as_by_the_crate_toml(
            lines in proptest::collection::vec(piece().prop_filter("whole", |line| line.ends_with('\n')), 0..24),
        ) {
            assert_alike(&lines.concat())?;
        }
    }
}
