//! The manager's state, kept in memory that outlives it: a record of keys and values, written as transactions.
//!
//! The file is a head and a log behind it. The head says where the log starts; its first transaction holds everything
//! that was known then (`WHOLE`), each further one what has changed since (`CHANGE`). All numbers are little-endian:
//!
//! ```text
//! head          magic (8 bytes), format (4), 0 (4), start of the log or 0 (8), zeroes up to byte 64
//! transaction   checksum of all that follows (8), sequence (8), length of the records (4), WHOLE or CHANGE (4), records
//! record        length of the key (4), length of the value or GONE (4), key, value
//! ```
//!
//! A transaction counts if it is complete, its checksum is right and its sequence is one more than that of the one before
//! it; the first that does not ends the log. So a writer may be killed at any byte: what it was writing never happened.
//!
//! When the changes have grown larger than what they change, the whole state is written anew, behind the log or, where
//! there is room, before it. Only then the head is told of it, by one write of eight bytes that lie in one page, which the
//! kernel does not interrupt. What lies outside of the log is given back to the kernel. The file never takes more memory
//! than some three times the state.

use crate::sys::memory;
use crate::unit::Gather;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

const MAGIC: [u8; 8] = *b"tentpole";

/// Rises when an older reader could not make sense of the file any more.
const FORMAT: u32 = 1;

/// Bytes of the head, and where the start of the log stands in it.
const HEAD: u64 = 64;
const START_AT: u64 = 16;

/// Bytes of a transaction before its records.
const HEADER: usize = 24;

/// The kinds of transactions.
const WHOLE: u32 = 1;
const CHANGE: u32 = 2;

/// In place of a value's length: the key is no more.
const GONE: u32 = u32::MAX;

/// The longest log, in bytes: far beyond what 100,000 workers need.
const LONGEST: u64 = 1 << 30;

/// Changes may always grow so far, in bytes, before the state is written anew.
const SLACK: u64 = 64 << 10;

/// Keys and their values, as of the last commit.
pub type State = BTreeMap<String, Vec<u8>>;

/// The same, where the bytes of a log lie in memory.
type Stored<'a> = BTreeMap<&'a str, &'a [u8]>;

/// The record. One process writes to it at a time.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    log: Log,
    /// What the next commit writes. It stays until it is written.
    buffered: BTreeMap<String, Option<Vec<u8>>>,
    /// The last commit has failed.
    is_behind: bool,
    slack: u64,
}

/// Where the log is and what comes next in it.
#[derive(Clone, Copy, Debug)]
struct Log {
    /// 0 if there was no commit yet.
    start: u64,
    end: u64,
    /// Bytes of its first transaction.
    whole: u64,
    /// That of the last transaction.
    sequence: u64,
}

/// Why a record can't be read.
#[derive(Debug)]
pub enum Unreadable {
    /// It is something else.
    Foreign,
    /// Another tentpole wrote it, in this format.
    Format(u32),
    /// It is not as a writer leaves it, even one that was killed.
    Damaged(&'static str),
    /// The kernel's word.
    Failed(io::Error),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Foreign => write!(f, "this is no state of tentpole"),
            Unreadable::Format(format) => write!(
                f,
                "the state has format {format}, and this tentpole ({}) reads format {FORMAT} alone",
                env!("CARGO_PKG_VERSION")
            ),
            Unreadable::Damaged(what) => write!(f, "the state is damaged: {what}"),
            Unreadable::Failed(error) => write!(f, "the state can't be read: {error}"),
        }
    }
}

impl std::error::Error for Unreadable {}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Unreadable {
        Unreadable::Failed(error)
    }
}

impl Ledger {
    /// An empty record.
    pub fn create() -> io::Result<Ledger> {
        Ledger::create_in(memory::file(c"tentpole-state")?)
    }

    fn create_in(file: File) -> io::Result<Ledger> {
        let mut head = [0; HEAD as usize];
        head[..8].copy_from_slice(&MAGIC);
        head[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        file.write_all_at(&head, 0)?;
        Ok(Ledger::new(file, Log::EMPTY))
    }

    /// Takes a record up where its last writer left it. Nobody else may write to it any more.
    pub fn open(fd: OwnedFd) -> Result<(Ledger, State), Unreadable> {
        let file = File::from(fd);
        let (log, state) = read(&file)?;
        // What an interrupted write has left there must not come after what is written next.
        file.set_len(log.end)?;
        Ok((Ledger::new(file, log), state))
    }

    /// What a record says, without any change to it: to find out whether it can be read.
    pub fn look(fd: impl AsFd) -> Result<State, Unreadable> {
        let file = File::from(fd.as_fd().try_clone_to_owned()?);
        Ok(read(&file)?.1)
    }

    fn new(file: File, log: Log) -> Ledger {
        Ledger {
            file,
            log,
            buffered: BTreeMap::new(),
            is_behind: false,
            slack: SLACK,
        }
    }

    /// The key has this value from the next commit on.
    pub fn put(&mut self, key: &str, value: Vec<u8>) {
        self.buffered.insert(key.to_owned(), Some(value));
    }

    /// The key is no more from the next commit on.
    pub fn delete(&mut self, key: &str) {
        self.buffered.insert(key.to_owned(), None);
    }

    /// How many values the next commit writes.
    pub fn buffered(&self) -> usize {
        self.buffered.values().flatten().count()
    }

    /// Writes what is buffered, by one system call in most cases; nothing buffered is none.
    ///
    /// A failure (no memory, RLIMIT_FSIZE, with SIGXFSZ ignored) leaves the stored state as it was, and is an error when it
    /// begins, not again until a commit has worked. What could not be written stays buffered, so what is stored is always
    /// a state that was once true, whole.
    pub fn commit(&mut self) -> io::Result<()> {
        if self.buffered.is_empty() {
            return Ok(());
        }
        let changes = self.log.end - self.log.start - self.log.whole;
        // After a failure the whole state is written: it may fit in front of the log, where the changes do not behind it.
        let anew =
            self.log.start == 0 || self.is_behind || changes > self.log.whole.max(self.slack);
        match if anew {
            self.write_whole()
        } else {
            self.append()
        } {
            Ok(()) => {
                self.buffered = BTreeMap::new();
                self.is_behind = false;
                Ok(())
            }
            Err(_) if self.is_behind => Ok(()),
            Err(error) => {
                self.is_behind = true;
                Err(error)
            }
        }
    }

    /// Whether the last commit has failed: what is stored is older than what is true.
    #[cfg(test)]
    fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// For those who keep it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn append(&mut self) -> io::Result<()> {
        let records = self.buffered.iter();
        let records = records.map(|(key, value)| (key.as_str(), value.as_deref()));
        let bytes = transaction(CHANGE, self.log.sequence + 1, records)?;
        let end = self.log.end + bytes.len() as u64;
        if end - self.log.start > LONGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if let Err(error) = self.file.write_all_at(&bytes, self.log.end) {
            // It would not count, but its memory is better given back.
            let _ = self.file.set_len(self.log.end);
            return Err(error);
        }
        self.log.end = end;
        self.log.sequence += 1;
        Ok(())
    }

    fn write_whole(&mut self) -> io::Result<()> {
        let before = load(&self.file).map_err(io::Error::other)?;
        let mut state = match &before {
            Some((start, bytes)) => replay(*start, bytes).map_err(io::Error::other)?.1,
            None => Stored::new(),
        };
        for (key, value) in &self.buffered {
            put(&mut state, key, value.as_deref());
        }
        let records = state.iter().map(|(key, value)| (*key, Some(*value)));
        let bytes = transaction(WHOLE, self.log.sequence + 1, records)?;
        let length = bytes.len() as u64;
        let fits_before = HEAD + length <= self.log.start;
        let start = if fits_before { HEAD } else { self.log.end };
        let written = self
            .file
            .write_all_at(&bytes, start)
            .and_then(|()| self.file.write_all_at(&start.to_le_bytes(), START_AT));
        if let Err(error) = written {
            let _ = match fits_before {
                true => memory::free(&self.file, HEAD..self.log.start),
                false => self.file.set_len(self.log.end),
            };
            return Err(error);
        }
        self.log = Log {
            start,
            end: start + length,
            whole: length,
            sequence: self.log.sequence + 1,
        };
        // Whoever reads it does not care what lies outside of the log; this is for the memory alone.
        let _ = self.file.set_len(self.log.end);
        let _ = memory::free(&self.file, HEAD..start);
        Ok(())
    }
}

impl Log {
    const EMPTY: Log = Log {
        start: 0,
        end: HEAD,
        whole: 0,
        sequence: 0,
    };
}

/// A transaction as it is written.
fn transaction<'a>(
    kind: u32,
    sequence: u64,
    records: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
) -> io::Result<Vec<u8>> {
    let length = |length: usize| {
        u32::try_from(length)
            .ok()
            .filter(|length| u64::from(*length) <= LONGEST)
            .ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))
    };
    let mut bytes = vec![0; HEADER];
    for (key, value) in records {
        let value_length = value.map_or(Ok(GONE), |value| length(value.len()))?;
        bytes.extend(length(key.len())?.to_le_bytes());
        bytes.extend(value_length.to_le_bytes());
        bytes.extend(key.as_bytes());
        bytes.extend(value.unwrap_or_default());
    }
    let records = length(bytes.len() - HEADER)?;
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    bytes[16..20].copy_from_slice(&records.to_le_bytes());
    bytes[20..24].copy_from_slice(&kind.to_le_bytes());
    let checksum = checksum(&bytes[8..]);
    bytes[..8].copy_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

/// For each word a step that loses nothing, so that no change in one word goes unnoticed. It guards against what a crash
/// leaves, not against anybody.
fn checksum(bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut sum = bytes.len() as u64 ^ ODD;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sum = (sum ^ u64::from_le_bytes(word))
            .wrapping_mul(ODD)
            .rotate_left(29);
    }
    sum
}

fn put<'a>(state: &mut Stored<'a>, key: &'a str, value: Option<&'a [u8]>) {
    match value {
        Some(value) => state.insert(key, value),
        None => state.remove(key),
    };
}

fn read(file: &File) -> Result<(Log, State), Unreadable> {
    let Some((start, bytes)) = load(file)? else {
        return Ok((Log::EMPTY, State::new()));
    };
    let (log, state) = replay(start, &bytes)?;
    let own = |(key, value): (&str, &[u8])| (key.to_owned(), value.to_vec());
    Ok((log, state.into_iter().map(own).gather()))
}

/// Where the log starts, and its bytes. `None` if there was no commit yet.
fn load(file: &File) -> Result<Option<(u64, Vec<u8>)>, Unreadable> {
    let data = file.metadata()?;
    if !data.is_file() || data.len() < HEAD {
        return Err(Unreadable::Foreign);
    }
    let mut head = [0; HEAD as usize];
    file.read_exact_at(&mut head, 0)?;
    let mut head = Reader(&head);
    if head.take() != Some(MAGIC) {
        return Err(Unreadable::Foreign);
    }
    match head.number() {
        Some(FORMAT) => {}
        other => return Err(Unreadable::Format(other.unwrap_or(0))),
    }
    let _ = head.number();
    let start = head.take().map_or(0, u64::from_le_bytes);
    if start == 0 {
        return Ok(None);
    }
    let length = data.len().checked_sub(start).filter(|_| start >= HEAD);
    let Some(length) = length.filter(|length| *length <= LONGEST) else {
        return Err(Unreadable::Damaged("its head leads nowhere"));
    };
    let mut bytes = Vec::new();
    let room = usize::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    bytes
        .try_reserve_exact(room)
        .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    bytes.resize(room, 0);
    file.read_exact_at(&mut bytes, start)?;
    Ok(Some((start, bytes)))
}

/// What a log comes to.
fn replay(start: u64, bytes: &[u8]) -> Result<(Log, Stored<'_>), Unreadable> {
    let mut log = Reader(bytes);
    let mut state = Stored::new();
    let Some(first) = log.transaction().filter(|first| first.kind == WHOLE) else {
        return Err(Unreadable::Damaged(
            "its log does not begin with a whole state",
        ));
    };
    let whole = bytes.len() - log.0.len();
    let mut next = Some(first);
    let (mut sequence, mut end) = (0, start);
    while let Some(transaction) = next {
        match transaction.kind {
            WHOLE => state.clear(),
            CHANGE => {}
            _ => return Err(Unreadable::Damaged("a transaction is of an unknown kind")),
        }
        transaction.apply(&mut state)?;
        sequence = transaction.sequence;
        end = start + (bytes.len() - log.0.len()) as u64;
        next = log
            .transaction()
            .filter(|next| next.sequence == sequence + 1);
    }
    let log = Log {
        start,
        end,
        whole: whole as u64,
        sequence,
    };
    Ok((log, state))
}

/// What is still to be read.
struct Reader<'a>(&'a [u8]);

struct Transaction<'a> {
    sequence: u64,
    kind: u32,
    records: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn number(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// The next transaction, if it is complete and its checksum right.
    fn transaction(&mut self) -> Option<Transaction<'a>> {
        let expected = self.take().map(u64::from_le_bytes)?;
        let checked = self.0;
        let sequence = self.take().map(u64::from_le_bytes)?;
        let length = self.number()?;
        let kind = self.number()?;
        let records = self.bytes(usize::try_from(length).ok()?)?;
        let checked = &checked[..checked.len() - self.0.len()];
        (checksum(checked) == expected).then_some(Transaction {
            sequence,
            kind,
            records,
        })
    }

    /// The next record: a key, and its value if it has one.
    fn record(&mut self) -> Option<(&'a str, Option<&'a [u8]>)> {
        let (key, value) = (self.number()?, self.number()?);
        let key = std::str::from_utf8(self.bytes(usize::try_from(key).ok()?)?).ok()?;
        let value = match value {
            GONE => None,
            length => Some(self.bytes(usize::try_from(length).ok()?)?),
        };
        Some((key, value))
    }
}

impl<'a> Transaction<'a> {
    fn apply(&self, state: &mut Stored<'a>) -> Result<(), Unreadable> {
        let mut reader = Reader(self.records);
        while !reader.0.is_empty() {
            let record = reader.record();
            let (key, value) =
                record.ok_or(Unreadable::Damaged("a record is not as long as it says"))?;
            put(state, key, value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::signals;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use proptest::prelude::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::MetadataExt;
    use std::process::{Child, Command, Stdio};

    fn state(pairs: &[(&str, &str)]) -> State {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), value.as_bytes().to_vec());
        pairs.iter().map(own).collect()
    }

    /// The bytes of a record, as a file of their own.
    fn copy(bytes: &[u8]) -> OwnedFd {
        let file = memory::file(c"tentpole-test").unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.into()
    }

    fn bytes(ledger: &Ledger) -> Vec<u8> {
        let mut bytes = vec![0; ledger.file.metadata().unwrap().len() as usize];
        ledger.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn stored(ledger: &Ledger) -> State {
        Ledger::look(ledger).unwrap()
    }

    fn reopened(ledger: Ledger) -> (Ledger, State) {
        Ledger::open(ledger.file.into()).unwrap()
    }

    impl AsFd for Ledger {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.fd()
        }
    }

    #[test]
    fn what_was_committed_is_read_and_what_was_not_is_not() {
        let mut ledger = Ledger::create().unwrap();
        assert_eq!(stored(&ledger), state(&[]));
        ledger.put("manager", b"{}".to_vec());
        ledger.put("w1.1", b"old".to_vec());
        assert_eq!(stored(&ledger), state(&[]));
        ledger.commit().unwrap();
        ledger.put("w1.1", b"new".to_vec());
        ledger.put("w1.2", b"".to_vec());
        ledger.delete("manager");
        ledger.commit().unwrap();
        ledger.put("lost", b"x".to_vec());
        let (mut ledger, found) = reopened(ledger);
        assert_eq!(found, state(&[("w1.1", "new"), ("w1.2", "")]));
        ledger.delete("w1.2");
        ledger.delete("unknown");
        ledger.commit().unwrap();
        assert_eq!(reopened(ledger).1, state(&[("w1.1", "new")]));
    }

    #[test]
    fn nothing_buffered_writes_nothing() {
        let mut ledger = Ledger::create().unwrap();
        ledger.commit().unwrap();
        let before = bytes(&ledger);
        assert_eq!(before.len() as u64, HEAD);
        ledger.commit().unwrap();
        assert_eq!(bytes(&ledger), before);
    }

    /// A record of several commits, its bytes, and the states that there were.
    fn history() -> (Vec<u8>, Vec<State>) {
        let mut ledger = Ledger::create().unwrap();
        let mut states = vec![State::new()];
        let steps: [&[(&str, Option<&str>)]; 4] = [
            &[("a", Some("1")), ("bb", Some("22"))],
            &[("a", Some("3"))],
            &[("bb", None), ("ccc", Some("{\"pid\":4}"))],
            &[("a", None), ("d", Some("some more text than before"))],
        ];
        for step in steps {
            for (key, value) in step {
                match value {
                    Some(value) => ledger.put(key, value.as_bytes().to_vec()),
                    None => ledger.delete(key),
                }
            }
            ledger.commit().unwrap();
            states.push(stored(&ledger));
        }
        (bytes(&ledger), states)
    }

    #[test]
    fn a_file_that_ends_anywhere_holds_a_state_that_was() {
        let (bytes, states) = history();
        let mut seen = std::collections::BTreeSet::new();
        for length in 0..=bytes.len() {
            match Ledger::open(copy(&bytes[..length])) {
                Ok((mut ledger, found)) => {
                    let index = states.iter().position(|state| *state == found);
                    seen.insert(index.unwrap_or_else(|| panic!("cut at {length}: {found:?}")));
                    // And it is gone on with.
                    ledger.put("next", b"x".to_vec());
                    ledger.commit().unwrap();
                    let mut expected = found;
                    expected.insert("next".into(), b"x".to_vec());
                    assert_eq!(reopened(ledger).1, expected, "cut at {length}");
                }
                // The head is written when nobody knows of the file yet, the first state before the head leads to it.
                Err(error) => assert!(length < bytes.len() / 2, "cut at {length}: {error}"),
            }
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_file_that_is_wrong_anywhere_holds_a_state_that_was() {
        let (bytes, states) = history();
        for at in 0..bytes.len() {
            for change in [1, 0x80, 0xff] {
                let mut wrong = bytes.clone();
                wrong[at] ^= change;
                if let Ok((_, found)) = Ledger::open(copy(&wrong)) {
                    assert!(states.contains(&found), "byte {at}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn what_an_interrupted_write_left_never_comes_back() {
        let (bytes, states) = history();
        // The last transaction lacks its last byte; a shorter one comes in its place.
        let (mut ledger, found) = Ledger::open(copy(&bytes[..bytes.len() - 1])).unwrap();
        assert_eq!(found, states[3]);
        ledger.delete("bb");
        ledger.commit().unwrap();
        let length = super::tests::bytes(&ledger).len() as u64;
        assert_eq!(length, ledger.log.end);
        assert_eq!(reopened(ledger).1, states[3]);
    }

    #[test]
    fn what_is_no_record_is_refused_with_words() {
        let (bytes, _) = history();
        let refusal = |bytes: &[u8]| Ledger::open(copy(bytes)).unwrap_err().to_string();
        assert_eq!(refusal(b""), "this is no state of tentpole");
        assert_eq!(refusal(&[b'x'; 200]), "this is no state of tentpole");
        let mut newer = bytes.clone();
        newer[8] = 2;
        assert_eq!(
            refusal(&newer),
            format!(
                "the state has format 2, and this tentpole ({}) reads format 1 alone",
                env!("CARGO_PKG_VERSION")
            )
        );
        let mut astray = bytes.clone();
        astray[START_AT as usize + 6] = 1;
        assert_eq!(
            refusal(&astray),
            "the state is damaged: its head leads nowhere"
        );
        let mut astray = bytes;
        astray[START_AT as usize] += 1;
        assert_eq!(
            refusal(&astray),
            "the state is damaged: its log does not begin with a whole state"
        );
        let (reader, _writer) = io::pipe().unwrap();
        assert!(matches!(
            Ledger::open(reader.into()),
            Err(Unreadable::Foreign)
        ));
    }

    #[test]
    fn a_look_changes_nothing() {
        let (bytes, states) = history();
        let fd = copy(&bytes[..bytes.len() - 1]);
        assert_eq!(Ledger::look(&fd).unwrap(), states[3]);
        assert_eq!(
            File::from(fd).metadata().unwrap().len(),
            bytes.len() as u64 - 1
        );
    }

    #[test]
    fn the_file_stays_in_proportion_to_the_state() {
        let mut ledger = Ledger::create().unwrap();
        let mut most = 0;
        for round in 0..3000u32 {
            ledger.put(&format!("w{}", round % 100), vec![round as u8; 1000]);
            ledger.commit().unwrap();
            most = most.max(ledger.file.metadata().unwrap().blocks() * 512);
        }
        assert!(most < 5 * 100_000, "{most} bytes");
        // The place in front is used again, so the file does not grow for ever.
        assert!(ledger.log.end < 1 << 20, "{:?}", ledger.log);
        let (_, found) = reopened(ledger);
        assert_eq!(found.len(), 100);
        assert_eq!(found["w99"], vec![2999u32 as u8; 1000]);
    }

    #[test]
    fn a_crash_between_the_steps_of_writing_anew_loses_nothing() {
        let mut ledger = Ledger::create().unwrap();
        ledger.slack = 0;
        let mut expected = State::new();
        for round in 0..20 {
            let before = bytes(&ledger);
            let old = ledger.log;
            ledger.put("a", vec![round; 50]);
            ledger.put(&format!("k{}", round % 3), vec![round]);
            let previous = expected.clone();
            expected.insert("a".into(), vec![round; 50]);
            expected.insert(format!("k{}", round % 3), vec![round]);
            ledger.commit().unwrap();
            if ledger.log.start == old.start || old.start == 0 {
                continue;
            }
            // The new state is there, wholly or in part, and the head does not lead to it yet.
            let new = bytes(&ledger)[ledger.log.start as usize..ledger.log.end as usize].to_vec();
            for part in 0..=new.len() {
                let mut torn = before.clone();
                let start = ledger.log.start as usize;
                torn.resize(torn.len().max(start + part), 0);
                torn[start..start + part].copy_from_slice(&new[..part]);
                let found = Ledger::look(copy(&torn)).unwrap();
                assert!(
                    found == previous || found == expected,
                    "{part} bytes of {}",
                    new.len()
                );
            }
            // The head leads to it, and the old log is still there.
            let mut untidy = before.clone();
            untidy.resize(untidy.len().max(ledger.log.end as usize), 0);
            untidy[ledger.log.start as usize..ledger.log.end as usize].copy_from_slice(&new);
            untidy[START_AT as usize..][..8].copy_from_slice(&ledger.log.start.to_le_bytes());
            assert_eq!(Ledger::look(copy(&untidy)).unwrap(), expected);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, Vec<u8>),
        Delete(u8),
        Commit,
        /// The writer is killed; it may have written so many bytes of its next transaction.
        Crash(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..12, proptest::collection::vec(any::<u8>(), 0..60)).prop_map(|(key, value)| Step::Put(key, value)),
            2 => (0u8..12).prop_map(Step::Delete),
            3 => Just(Step::Commit),
            1 => (0usize..200).prop_map(Step::Crash),
        ]
    }

    proptest! {
        #[test]
        fn it_behaves_as_a_map_that_survives_crashes(
            steps in proptest::collection::vec(step(), 0..120), slack in 0u64..2000,
        ) {
            let mut ledger = Ledger::create().unwrap();
            ledger.slack = slack;
            let (mut model, mut committed) = (State::new(), State::new());
            for step in steps {
                match step {
                    Step::Put(key, value) => {
                        model.insert(format!("k{key}"), value.clone());
                        ledger.put(&format!("k{key}"), value);
                    }
                    Step::Delete(key) => {
                        model.remove(&format!("k{key}"));
                        ledger.delete(&format!("k{key}"));
                    }
                    Step::Commit => {
                        ledger.commit().unwrap();
                        committed = model.clone();
                    }
                    Step::Crash(written) => {
                        let mut next = transaction(
                            CHANGE,
                            ledger.log.sequence + 1,
                            ledger.buffered.iter().map(|(key, value)| (key.as_str(), value.as_deref())),
                        ).unwrap();
                        // Short of the whole, or it would count.
                        next.truncate(written.min(next.len() - 1));
                        ledger.file.write_all_at(&next, ledger.log.end).unwrap();
                        let (reopened, found) = reopened(ledger);
                        prop_assert_eq!(&found, &committed);
                        ledger = reopened;
                        ledger.slack = slack;
                        model = found;
                    }
                }
                prop_assert_eq!(&stored(&ledger), &committed);
            }
        }
    }

    /// This very test in a process of its own, where it finds `ROLE` set.
    fn in_own_process(test: &str, role: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
        command
            .args(["--exact", &name, "--nocapture"])
            .env("ROLE", role);
        command
    }

    #[test]
    fn a_failed_write_is_told_once_and_leaves_no_hole() {
        if std::env::var_os("ROLE").is_none() {
            let test = "a_failed_write_is_told_once_and_leaves_no_hole";
            let output = in_own_process(test, "limited").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && text.contains("1 passed"),
                "{text}"
            );
            return;
        }
        signals::ignore(libc::SIGXFSZ).unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        let limit = |bytes| setrlimit(Resource::RLIMIT_FSIZE, bytes, hard).unwrap();
        let mut ledger = Ledger::create().unwrap();
        ledger.put("a", vec![1; 1000]);
        ledger.commit().unwrap();
        let good = stored(&ledger);
        for round in 0..2u8 {
            // In the middle of what is written.
            limit(ledger.log.end + 500);
            ledger.put("b", vec![round; 1000]);
            let error = ledger.commit().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
            assert!(ledger.is_behind());
            assert_eq!(ledger.file.metadata().unwrap().len(), ledger.log.end);
            // Told once; and what comes after it does not count without it.
            ledger.put("c", vec![3]);
            ledger.commit().unwrap();
            assert!(ledger.is_behind());
            if round == 0 {
                assert_eq!(stored(&ledger), good);
            }
            limit(hard);
            ledger.delete("a");
            ledger.commit().unwrap();
            assert!(!ledger.is_behind());
            let expected = State::from([("b".into(), vec![round; 1000]), ("c".into(), vec![3])]);
            assert_eq!(stored(&ledger), expected);
        }
        assert_eq!(reopened(ledger).1.len(), 2);
    }

    /// Counts as fast as it can, in two keys that are always alike, and says how far it has come.
    fn count(path: &str) {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let (mut ledger, state) = Ledger::open(file.into()).unwrap();
        ledger.slack = 500;
        let mut number: u64 = state
            .get("a")
            .map_or(0, |value| String::from_utf8_lossy(value).parse().unwrap());
        loop {
            number += 1;
            for key in ["a", "b"] {
                ledger.put(key, number.to_string().into_bytes());
            }
            ledger.put(
                &format!("c{}", number % 5),
                vec![7; (number % 97) as usize * 50],
            );
            ledger.commit().unwrap();
            println!("{number}");
        }
    }

    #[test]
    fn a_writer_that_is_killed_at_any_moment_leaves_what_it_has_committed() {
        let test = "a_writer_that_is_killed_at_any_moment_leaves_what_it_has_committed";
        if let Ok(path) = std::env::var("ROLE") {
            count(&path);
        }
        let folder = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let path = folder.path().join("ledger");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        drop(Ledger::create_in(file).unwrap());
        let mut last = 0;
        for round in 0..25u64 {
            let mut child: Child = in_own_process(test, path.to_str().unwrap())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap())
                .lines()
                .map_while(Result::ok);
            let mut numbers = lines.by_ref().filter_map(|line| line.parse::<u64>().ok());
            let said = numbers.nth((round * 37 % 400) as usize).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            let said = numbers.last().unwrap_or(said);
            let found = Ledger::look(File::open(&path).unwrap()).unwrap();
            let number =
                |key: &str| -> u64 { String::from_utf8_lossy(&found[key]).parse().unwrap() };
            assert_eq!(number("a"), number("b"));
            assert!(
                number("a") >= said && said > last,
                "{} after {said}",
                number("a")
            );
            last = number("a");
        }
    }
}
