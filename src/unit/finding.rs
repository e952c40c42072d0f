//! What is wrong with a unit file, where, and how it is shown.

use super::Arrange;
use super::document::place_in_string;
use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use unicode_width::UnicodeWidthChar;

/// A stretch of bytes in one of the [`Sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Which source.
    pub file: u32,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Place {
    /// Of what was not written anywhere, such as a default.
    pub const NOWHERE: Place = Place {
        file: u32::MAX,
        start: 0,
        end: 0,
    };
}

impl Default for Place {
    fn default() -> Self {
        Place::NOWHERE
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The units are refused.
    Error,
    /// Worth a look; `check --strict` refuses the units.
    Warning,
}

/// One thing that is wrong, as a sentence: lower case, no final period, names in backticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where.
    pub place: Place,
    /// What, and what would be right.
    pub message: String,
}

impl Finding {
    /// An error at `place`.
    pub fn error(place: Place, message: impl Into<String>) -> Self {
        Finding {
            severity: Severity::Error,
            place,
            message: message.into(),
        }
    }

    /// A warning at `place`.
    pub fn warning(place: Place, message: impl Into<String>) -> Self {
        Finding {
            severity: Severity::Warning,
            place,
            message: message.into(),
        }
    }
}

/// So many errors of a file are kept, and so many warnings: a file that is none of ours may have millions.
const MOST: usize = 100;

/// Findings: of each file the first, and how many more there are.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    kept: Vec<Finding>,
    /// Of files that have more than are kept.
    rests: BTreeMap<(u32, Severity), Rest>,
    errors: usize,
    /// When so many are kept, those beyond the first of each file are dropped.
    limit: usize,
}

/// What is not kept of a file.
#[derive(Clone, Copy, Debug)]
struct Rest {
    /// All that come from here on; what is found before it may still be one of the first.
    from: Place,
    count: usize,
}

impl Findings {
    /// Adds a finding.
    pub fn push(&mut self, finding: Finding) {
        let Finding {
            severity, place, ..
        } = finding;
        if self.count(severity, place) {
            self.keep(finding);
        }
    }

    /// Adds an error whose message is not made if nobody is going to see it.
    pub fn error_with(&mut self, place: Place, message: impl FnOnce() -> String) {
        if self.count(Severity::Error, place) {
            self.keep(Finding::error(place, message()));
        }
    }

    /// Counts a finding; whether it is to be kept.
    fn count(&mut self, severity: Severity, place: Place) -> bool {
        self.errors += usize::from(severity == Severity::Error);
        match self.rests.get_mut(&(place.file, severity)) {
            Some(rest) if place >= rest.from => {
                rest.count += 1;
                false
            }
            _ => true,
        }
    }

    fn keep(&mut self, finding: Finding) {
        // Doubled each time, so that it costs little however the findings are spread over files.
        if self.kept.len() >= self.limit {
            self.sort();
            self.limit = 2 * (self.kept.len() + MOST);
        }
        self.kept.push(finding);
    }

    /// Counts further errors of `file`.
    pub(super) fn leave_out(&mut self, file: u32, more: usize) {
        rest(&mut self.rests, (file, Severity::Error)).count += more;
        self.errors += more;
    }

    /// Whether an error at `place` is not kept any more.
    pub fn is_beyond(&self, place: Place) -> bool {
        let rest = self.rests.get(&(place.file, Severity::Error));
        rest.is_some_and(|rest| place >= rest.from)
    }

    /// How many errors there are, whether they are kept or not.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// How many warnings there are, whether they are kept or not.
    pub fn warnings(&self) -> usize {
        let left_out: usize = self.rests.values().map(|rest| rest.count).sum();
        self.kept.len() + left_out - self.errors
    }

    /// Keeps those that `is_wanted`.
    pub fn retain(&mut self, mut is_wanted: impl FnMut(&Finding) -> bool) {
        let errors = &mut self.errors;
        self.kept.retain(|finding| {
            let is_kept = is_wanted(finding);
            *errors -= usize::from(!is_kept && finding.severity == Severity::Error);
            is_kept
        });
    }

    /// Leaves the warnings out.
    pub fn retain_errors(&mut self) {
        self.kept
            .retain(|finding| finding.severity == Severity::Error);
        self.rests
            .retain(|(_, severity), _| *severity == Severity::Error);
    }

    /// Adds those of another collection.
    pub fn extend(&mut self, others: Findings) {
        for finding in others.kept {
            self.push(finding);
        }
        for (key, Rest { count, .. }) in others.rests {
            rest(&mut self.rests, key).count += count;
            if key.1 == Severity::Error {
                self.errors += count;
            }
        }
    }

    /// Brings them in order of place, and drops those beyond the first of each file; those of one place stay in the order
    /// in which they were found.
    pub fn sort(&mut self) {
        self.kept.arrange_by_key(|finding| finding.place);
        let mut file = Place::NOWHERE.file;
        let mut counts = [0; 2];
        let rests = &mut self.rests;
        self.kept.retain(|finding| {
            let Finding {
                severity, place, ..
            } = *finding;
            if place.file != file {
                (file, counts) = (place.file, [0; 2]);
            }
            let count = &mut counts[severity as usize];
            *count += 1;
            // What stands in no file is little.
            if *count <= MOST || place == Place::NOWHERE {
                return true;
            }
            let rest = rest(rests, (file, severity));
            rest.from = rest.from.min(place);
            rest.count += 1;
            false
        });
    }

    /// All that is to be shown, in order of place. What is not kept is counted at the end of its file.
    pub fn finish(mut self, sources: &Sources) -> Vec<Finding> {
        self.sort();
        for ((file, severity), Rest { count, .. }) in self.rests {
            if count == 0 {
                continue;
            }
            let end = u32::try_from(sources.text(file).len()).unwrap_or(u32::MAX);
            let what = match (severity, count) {
                (Severity::Error, 1) => "error",
                (Severity::Error, _) => "errors",
                (Severity::Warning, 1) => "warning",
                (Severity::Warning, _) => "warnings",
            };
            self.kept.push(Finding {
                severity,
                place: Place {
                    file,
                    start: end,
                    end,
                },
                message: format!("and {count} more {what} of this file, not shown"),
            });
        }
        self.kept.arrange_by_key(|finding| finding.place);
        self.kept
    }
}

/// What is not kept of a file, and is nothing yet if there is no entry.
fn rest(rests: &mut BTreeMap<(u32, Severity), Rest>, key: (u32, Severity)) -> &mut Rest {
    let (start, end) = (u32::MAX, u32::MAX);
    let from = Place {
        file: key.0,
        start,
        end,
    };
    rests.entry(key).or_insert(Rest { from, count: 0 })
}

impl Deref for Findings {
    type Target = [Finding];

    fn deref(&self) -> &[Finding] {
        &self.kept
    }
}

impl<'a> IntoIterator for &'a Findings {
    type Item = &'a Finding;
    type IntoIter = std::slice::Iter<'a, Finding>;

    fn into_iter(self) -> Self::IntoIter {
        self.kept.iter()
    }
}

/// The texts that places point into. Kept only while findings are made.
#[derive(Debug, Default)]
pub struct Sources {
    files: Vec<Source>,
}

#[derive(Debug)]
struct Source {
    path: PathBuf,
    text: String,
    /// Where each line starts: made when the first finding is shown, so that ten thousand findings cost one scan.
    lines: OnceCell<Vec<u32>>,
    /// A line's start, a place in it and that place's column, of the finding shown last: findings come in order of
    /// place, so a line of megabytes is counted through once and not for each of its findings.
    known_column: Cell<(usize, usize, usize)>,
}

impl Sources {
    /// Adds a text; the answer is its [`Place::file`].
    pub fn add(&mut self, path: &Path, text: String) -> u32 {
        self.files.push(Source {
            path: path.to_path_buf(),
            text,
            lines: OnceCell::new(),
            known_column: Cell::default(),
        });
        (self.files.len() - 1) as u32
    }

    /// The text that was added as `file`.
    pub fn text(&self, file: u32) -> &str {
        self.files
            .get(file as usize)
            .map_or("", |source| &source.text)
    }

    /// Where in the string that stands at `place` its byte `offset` and `length` more are written; `place` where that can't be
    /// told.
    pub fn within(&self, place: Place, offset: usize, length: usize) -> Place {
        let written = place.start as usize..place.end as usize;
        let raw = self.text(place.file).get(written);
        let Some(start) = raw.and_then(|raw| place_in_string(raw, offset)) else {
            return place;
        };
        // Both are within a file, whose bytes are counted in 32 bits.
        let start = place.start + start as u32;
        Place {
            start,
            end: place.end.min(start + length as u32),
            ..place
        }
    }

    /// The path that `file` was added with.
    pub fn path(&self, file: u32) -> Option<&Path> {
        self.files
            .get(file as usize)
            .map(|source| source.path.as_path())
    }

    /// `place` as `FILE:LINE:COLUMN`, both from 1, the column in characters; `FILE` alone where the place is a whole
    /// file, and nothing for [`Place::NOWHERE`].
    pub fn locate(&self, place: Place) -> impl fmt::Display + '_ {
        Located {
            sources: self,
            place,
        }
    }

    /// The line and the column of `place`, both from 1, the column in characters; `None` where the place is a whole file,
    /// and for [`Place::NOWHERE`].
    pub fn position(&self, place: Place) -> Option<(usize, usize)> {
        let line = self.files.get(place.file as usize)?.line(place)?;
        Some((line.number, line.column + 1))
    }

    /// `finding` as a user reads it: `FILE:LINE:COLUMN: message`, then the line and a caret. Warnings say so before
    /// the message. Control characters of the file never reach the terminal.
    pub fn render<'a>(&'a self, finding: &'a Finding) -> impl fmt::Display + 'a {
        Rendered {
            sources: self,
            finding,
        }
    }
}

impl Source {
    /// The line that `place` starts on; `None` if the place is the whole file.
    fn line(&self, place: Place) -> Option<Line<'_>> {
        if self.text.is_empty() && place.start == 0 && place.end == 0 {
            return None;
        }
        let lines = self.lines.get_or_init(|| {
            let newlines = self.text.bytes().enumerate();
            let newlines = newlines.filter(|(_, byte)| *byte == b'\n');
            std::iter::once(0)
                .chain(newlines.map(|(at, _)| at as u32 + 1))
                .collect()
        });
        let start = floor_char_boundary(&self.text, place.start as usize);
        let end = floor_char_boundary(&self.text, place.end as usize).max(start);
        // The first line starts at 0, so at least one line starts at or before any place.
        let number = lines.partition_point(|&line| line as usize <= start);
        let line_start = lines[number - 1] as usize;
        let line_end = lines
            .get(number)
            .map_or(self.text.len(), |&next| next as usize - 1);
        let text = &self.text[line_start..line_end];
        let text = text.strip_suffix('\r').unwrap_or(text);
        // A place may be the end of the line itself, or reach into further lines.
        let first = (start - line_start).min(text.len());
        let last = (end - line_start).min(text.len());
        Some(Line {
            number,
            column: self.column(line_start, line_start + first),
            text,
            first,
            last,
        })
    }

    /// How many characters stand between `line_start` and `at`.
    fn column(&self, line_start: usize, at: usize) -> usize {
        let (known_line, known_at, known_column) = self.known_column.get();
        let column = if known_line == line_start && known_at <= at {
            known_column + self.text[known_at..at].chars().count()
        } else {
            self.text[line_start..at].chars().count()
        };
        self.known_column.set((line_start, at, column));
        column
    }
}

/// A line of a file, and the span in it, in bytes.
struct Line<'a> {
    number: usize,
    /// How many characters stand before the span.
    column: usize,
    text: &'a str,
    first: usize,
    last: usize,
}

struct Located<'a> {
    sources: &'a Sources,
    place: Place,
}

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(source) = self.sources.files.get(self.place.file as usize) else {
            return Ok(());
        };
        write_harmless(f, &source.path.to_string_lossy())?;
        match source.line(self.place) {
            Some(line) => write!(f, ":{}:{}", line.number, line.column + 1),
            None => Ok(()),
        }
    }
}

struct Rendered<'a> {
    sources: &'a Sources,
    finding: &'a Finding,
}

impl fmt::Display for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.finding.place;
        let source = self.sources.files.get(place.file as usize);
        if source.is_some() {
            write!(f, "{}: ", self.sources.locate(place))?;
        }
        if self.finding.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        write_harmless(f, &self.finding.message)?;
        match source.and_then(|source| source.line(place)) {
            Some(line) => line.write_snippet(f),
            None => Ok(()),
        }
    }
}

/// How much of a long line is shown, in characters.
const WINDOW: usize = 160;
/// How much of it stands before the span.
const LEAD: usize = 40;
/// What a tab is shown as.
const TAB: &str = "    ";

impl Line<'_> {
    fn write_snippet(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = if self.text.chars().nth(WINDOW).is_some() {
            let before = self.text[..self.first].char_indices().rev();
            before.take(LEAD).last().map_or(self.first, |(at, _)| at)
        } else {
            0
        };
        let mut shown = String::new();
        let mut carets = String::new();
        if from > 0 {
            shown.push_str("...");
            carets.push_str("   ");
        }
        let mut chars = self.text[from..].char_indices();
        for (at, c) in chars.by_ref().take(WINDOW) {
            let at = from + at;
            let is_under = (self.first..self.last.max(self.first + 1)).contains(&at);
            let under = if is_under { '^' } else { ' ' };
            if c == '\t' {
                shown.push_str(TAB);
                carets.extend(TAB.chars().map(|_| under));
            } else {
                let c = harmless(c);
                shown.push(c);
                // What a terminal gives it: none to a combining mark, two to an ideograph.
                let width = c.width().unwrap_or(1);
                carets.extend(std::iter::repeat_n(under, width));
            }
        }
        if chars.next().is_some() {
            shown.push_str("...");
        }
        if !carets.contains('^') {
            carets.push('^');
        }
        let number = self.number.to_string();
        write!(
            f,
            "\n{number} | {}\n{:width$} | {}",
            shown.trim_end(),
            "",
            carets.trim_end(),
            width = number.len()
        )
    }
}

fn write_harmless(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| f.write_char(harmless(c)))
}

/// A character that a terminal can be trusted with: control characters become their pictures, and what reorders text
/// (so that a line would read as another than it is) a replacement character.
fn harmless(c: char) -> char {
    match c {
        '\0'..='\x1f' => char::from_u32(0x2400 + c as u32).unwrap_or(char::REPLACEMENT_CHARACTER),
        '\x7f' => '\u{2421}',
        c if is_deceptive(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    }
}

/// Whether `c` does something to the text around it instead of being seen.
pub(super) fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The last place up to `at` where a character of `text` begins or ends.
pub(super) fn floor_char_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(text: &str, start: usize, end: usize, message: &str) -> String {
        let mut sources = Sources::default();
        let file = sources.add(Path::new("web.toml"), text.to_string());
        let place = Place {
            file,
            start: start as u32,
            end: end as u32,
        };
        sources.render(&Finding::error(place, message)).to_string()
    }

    #[test]
    fn of_very_many_findings_of_a_file_the_first_are_kept_and_the_others_counted() {
        let mut sources = Sources::default();
        let files = ["a", "b"].map(|name| sources.add(Path::new(name), "xy".repeat(500)));
        let place = |file: usize, start| Place {
            file: files[file],
            start,
            end: start + 1,
        };
        let mut findings = Findings::default();
        let count = 2 * MOST as u32 + 7;
        // The last come first.
        for start in (0..count).rev() {
            findings.push(Finding::error(place(0, start), "no"));
            findings.push(Finding::warning(place(0, start), "hm"));
        }
        findings.sort();
        assert!(findings.is_beyond(place(0, 100)) && !findings.is_beyond(place(0, 99)));
        assert!(!findings.is_beyond(place(1, 999)));
        findings.error_with(place(0, 999), || panic!("nobody sees it"));
        findings.error_with(place(1, 0), || "no".into());
        assert_eq!(findings.errors(), 2 * MOST + 9);
        assert_eq!(findings.warnings(), 2 * MOST + 7);

        let mut others = Findings::default();
        for start in 0..MOST as u32 + 1 {
            others.push(Finding::error(place(1, start), "not"));
        }
        others.retain(|finding| finding.place.start > 0);
        assert_eq!(others.errors(), MOST);
        findings.extend(others);
        findings.leave_out(files[1], 2);
        assert_eq!(findings.errors(), 3 * MOST + 11);
        findings.retain_errors();
        assert_eq!(findings.warnings(), 0);

        let shown = findings.finish(&sources);
        assert_eq!(shown.len(), 2 * MOST + 2);
        assert!(shown.is_sorted_by_key(|finding| finding.place));
        for (file, shown) in files.into_iter().zip(shown.chunks(MOST + 1)) {
            let starts: Vec<_> = (shown.iter().take(MOST))
                .map(|finding| (finding.place.file, finding.place.start))
                .collect();
            let first: Vec<_> = (0..MOST as u32).map(|start| (file, start)).collect();
            assert_eq!(starts, first);
        }
        let lasts = [&shown[MOST], &shown[2 * MOST + 1]];
        assert_eq!(
            lasts.map(|last| last.message.as_str()),
            [
                "and 108 more errors of this file, not shown",
                "and 3 more errors of this file, not shown",
            ]
        );
    }

    #[test]
    fn the_first_are_kept_whatever_the_order_and_few_others_on_the_way() {
        let file_count = 5;
        let mut findings = Findings::default();
        // A permutation: 7919 is a prime.
        for number in 0..10_000u32 {
            let at = number * 7919 % 10_000;
            let place = Place {
                file: at % file_count,
                start: at / file_count,
                end: at,
            };
            findings.push(Finding::error(place, ""));
            assert!(findings.len() <= 2 * MOST * (file_count as usize + 1));
        }
        findings.sort();
        assert_eq!(findings.errors(), 10_000);
        let kept: Vec<_> = findings.iter().map(|it| it.place).collect();
        assert_eq!(kept.len(), MOST * file_count as usize);
        assert!(kept.iter().all(|place| place.start < MOST as u32));
    }

    #[test]
    fn a_finding_names_file_line_and_column_and_marks_the_span() {
        let text = "[socket.web]\nlisten = 1\n\nbacklag = 5\n";
        assert_eq!(
            render(
                text,
                25,
                32,
                "unknown key `backlag` in `[socket]`; did you mean `backlog`?"
            ),
            "web.toml:4:1: unknown key `backlag` in `[socket]`; did you mean `backlog`?\n\
             4 | backlag = 5\n\
             \x20 | ^^^^^^^"
        );
    }

    #[test]
    fn columns_count_characters_and_warnings_say_so() {
        let mut sources = Sources::default();
        let file = sources.add(Path::new("a.toml"), "\u{e4}\u{f6} = 1".to_string());
        let place = Place {
            file,
            start: 7,
            end: 8,
        };
        assert_eq!(
            sources.render(&Finding::warning(place, "hm")).to_string(),
            "a.toml:1:6: warning: hm\n1 | \u{e4}\u{f6} = 1\n  |      ^"
        );
    }

    #[test]
    fn a_place_that_is_no_place_renders_the_message_alone() {
        let sources = Sources::default();
        assert_eq!(
            sources
                .render(&Finding::error(Place::NOWHERE, "no"))
                .to_string(),
            "no"
        );
        assert_eq!(
            sources
                .render(&Finding::warning(Place::NOWHERE, "no"))
                .to_string(),
            "warning: no"
        );
    }

    #[test]
    fn a_whole_file_renders_without_a_line() {
        assert_eq!(render("", 0, 0, "gone"), "web.toml: gone");
    }

    #[test]
    fn a_span_over_several_lines_is_marked_on_its_first() {
        assert_eq!(
            render("a = [\n1,\n2]\n", 4, 11, "x"),
            "web.toml:1:5: x\n1 | a = [\n  |     ^"
        );
    }

    #[test]
    fn an_empty_span_and_the_end_of_the_text_get_one_caret() {
        assert_eq!(render("ab", 2, 2, "x"), "web.toml:1:3: x\n1 | ab\n  |   ^");
        assert_eq!(
            render("ab\r\ncd", 3, 3, "x"),
            "web.toml:1:3: x\n1 | ab\n  |   ^"
        );
        assert_eq!(render("a b", 1, 1, "x"), "web.toml:1:2: x\n1 | a b\n  |  ^");
        assert_eq!(render("ab\n", 3, 3, "x"), "web.toml:2:1: x\n2 | \n  | ^");
    }

    #[test]
    fn a_place_outside_the_text_or_inside_a_character_is_no_panic() {
        assert_eq!(
            render("\u{e4}", 1, 900, "x"),
            "web.toml:1:1: x\n1 | \u{e4}\n  | ^"
        );
        assert_eq!(
            render("ab", 900, 1, "x"),
            "web.toml:1:3: x\n1 | ab\n  |   ^"
        );
    }

    #[test]
    fn tabs_and_control_characters_are_shown_and_the_caret_stays_below() {
        assert_eq!(
            render("\ta\u{1b}[2J = 1", 1, 6, "\u{1b}[31m\u{202e}"),
            "web.toml:1:2: \u{241b}[31m\u{fffd}\n1 |     a\u{241b}[2J = 1\n  |     ^^^^^"
        );
    }

    #[test]
    fn the_caret_stays_below_characters_of_any_width() {
        let text = "cmd = \"\u{65e5}\u{672c}\u{8a9e} e\u{301} $(x)\"";
        let start = text.find('$').unwrap();
        let shown = render(text, start, start + 4, "x");
        let lines: Vec<&str> = shown.lines().collect();
        // The place is counted in characters, as editors do.
        assert_eq!(lines[0], "web.toml:1:15: x");
        assert_eq!(lines[2], format!("  | {}^^^^", " ".repeat(16)));
        let shown = render("\u{65e5}\u{672c} = 1", 0, 6, "x");
        assert!(shown.ends_with("\n  | ^^^^"), "{shown}");
    }

    #[test]
    fn a_huge_line_is_cut_to_a_window_around_the_span() {
        let text = format!("{}HERE{}", "a".repeat(100_000), "b".repeat(100_000));
        let shown = render(&text, 100_000, 100_004, "x");
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "web.toml:1:100001: x");
        assert_eq!(
            lines[1],
            format!("1 | ...{}HERE{}...", "a".repeat(40), "b".repeat(116))
        );
        assert_eq!(lines[2], format!("  | {}^^^^", " ".repeat(43)));
    }
}
