//! From paths to units: the search path, drop-ins and masking.

use super::toml::Reader;
use super::value::clipped;
use super::{Finding, Place, Sources, Units};
use nix::errno::Errno;
use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where to look for unit files, and as whom.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// What the user named: folders and files. Empty takes `folders`.
    pub paths: Vec<PathBuf>,
    /// The search path: a file name found earlier hides the same name later.
    pub folders: Vec<PathBuf>,
    /// Refuse files and folders that others may write (we are root).
    pub distrust_writable: bool,
}

/// What [`load`] found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The units; what has errors is left out.
    pub units: Units,
    /// All errors and warnings, in order of file and place.
    pub findings: Vec<Finding>,
    /// The texts the findings point into.
    pub sources: Sources,
}

/// Reads all unit files of `search`. Never fails: what went wrong is among the findings.
///
/// A folder named by the user gives all its `*.toml` in order of name, each with the drop-ins of its own
/// `NAME.toml.d`. On the search path the first folder that has a file name wins, a link to `/dev/null` masks the name,
/// and the drop-ins of all folders are taken together. Hidden files are left alone.
pub fn load(search: &Search) -> Loaded {
    let mut loader = Loader {
        distrust_writable: search.distrust_writable,
        ..Loader::default()
    };
    if search.paths.is_empty() {
        loader.take_search_path(&search.folders);
    }
    for path in &search.paths {
        loader.take_path(path);
    }
    loader.finish()
}

/// Reads one text as if it were the file `name`, without drop-ins. Relative paths start at the folder of `name`.
pub fn read_text(name: &Path, text: &str) -> Loaded {
    let mut loader = Loader::default();
    let file = loader.sources.add(name, text.to_string());
    loader.groups.push(Group {
        folder: folder_of(name),
        files: vec![file],
    });
    loader.finish()
}

/// No unit file is longer, in bytes: room for a hundred thousand units.
const LONGEST: u64 = 16 << 20;

/// A main file and its drop-ins, which are read as one.
struct Group {
    /// Folder of the main file, absolute.
    folder: PathBuf,
    /// The main file first.
    files: Vec<u32>,
}

#[derive(Default)]
struct Loader {
    distrust_writable: bool,
    sources: Sources,
    findings: Vec<Finding>,
    groups: Vec<Group>,
    /// Main files that were taken, so that one that is named twice (or its folder beside it) is read once.
    taken: HashSet<PathBuf>,
}

/// What a folder has for us.
#[derive(Default)]
struct Listing {
    /// Names that end in `.toml`.
    files: Vec<OsString>,
    /// Names that end in `.toml.d`, without the `.d`.
    drop_ins: Vec<OsString>,
}

impl Loader {
    fn finish(mut self) -> Loaded {
        let mut reader = Reader::default();
        for group in &self.groups {
            reader.read(&self.sources, &group.folder, &group.files);
        }
        let (units, findings) = reader.finish();
        self.findings.extend(findings);
        self.findings.sort_by_key(|finding| finding.place);
        Loaded {
            units,
            findings: self.findings,
            sources: self.sources,
        }
    }

    fn take_search_path(&mut self, folders: &[PathBuf]) {
        // By file name: where it was found first, and the folders of drop-ins, in order of the search path.
        let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
        let mut drop_ins: BTreeMap<OsString, Vec<PathBuf>> = BTreeMap::new();
        let mut seen = HashSet::new();
        for folder in folders
            .iter()
            .filter(|folder| seen.insert(folder.as_path()))
        {
            let Some(listing) = self.list(folder, true) else {
                continue;
            };
            for name in listing.files {
                let path = folder.join(&name);
                files.entry(name).or_insert(path);
            }
            for name in listing.drop_ins {
                let mut folder = folder.join(&name).into_os_string();
                folder.push(".d");
                drop_ins.entry(name).or_default().push(folder.into());
            }
        }
        for (name, path) in files {
            let folders = drop_ins.remove(&name).unwrap_or_default();
            if !is_masked(&path) {
                self.take_file(&path, &folders);
            }
        }
        for folder in drop_ins.into_values().flatten() {
            self.warn_stray(&folder);
        }
    }

    /// Takes what the user named.
    fn take_path(&mut self, path: &Path) {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return self.refuse_missing(path, &error),
        };
        if metadata.is_dir() {
            return self.take_folder(path);
        }
        match path.extension().map(OsStr::as_bytes) {
            Some(b"toml") => {
                let mut drop_ins = path.as_os_str().to_os_string();
                drop_ins.push(".d");
                let drop_ins = PathBuf::from(drop_ins);
                let has_drop_ins = fs::symlink_metadata(&drop_ins).is_ok();
                self.take_file(
                    path,
                    if has_drop_ins {
                        std::slice::from_ref(&drop_ins)
                    } else {
                        &[]
                    },
                );
            }
            Some(b"ini") => self.refuse(path, "a Circus ini file, which is not built yet"),
            Some(b"socket" | b"service") => {
                self.refuse(path, "a systemd unit, which is not built yet")
            }
            _ => self.refuse(path, "not a unit file: the name of one ends in `.toml`"),
        }
    }

    fn take_folder(&mut self, folder: &Path) {
        let Some(listing) = self.list(folder, false) else {
            return;
        };
        if listing.files.is_empty() {
            self.warn(folder, "no unit files (`*.toml`) in this folder");
        }
        let names: HashSet<&OsString> = listing.files.iter().collect();
        let with_drop_ins: HashSet<&OsString> = listing.drop_ins.iter().collect();
        let drop_ins_of = |name: &OsString| {
            let mut path = folder.join(name).into_os_string();
            path.push(".d");
            PathBuf::from(path)
        };
        for name in &listing.files {
            let path = folder.join(name);
            if is_masked(&path) {
                continue;
            }
            match with_drop_ins.contains(name) {
                true => self.take_file(&path, &[drop_ins_of(name)]),
                false => self.take_file(&path, &[]),
            }
        }
        for name in listing.drop_ins.iter().filter(|name| !names.contains(name)) {
            self.warn_stray(&drop_ins_of(name));
        }
    }

    /// Takes the main file `path` and the `*.toml` of the folders `drop_ins`, of which the first that has a name wins.
    fn take_file(&mut self, path: &Path, drop_ins: &[PathBuf]) {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let folder = folder_of(&absolute);
        if !self.taken.insert(absolute) {
            return;
        }
        let main = self.read(path);
        let mut names: BTreeMap<OsString, PathBuf> = BTreeMap::new();
        for folder in drop_ins {
            let Some(listing) = self.list(folder, false) else {
                continue;
            };
            for name in listing.files {
                let path = folder.join(&name);
                names.entry(name).or_insert(path);
            }
        }
        let mut files: Vec<u32> = main.into_iter().collect();
        for path in names.into_values().filter(|path| !is_masked(path)) {
            files.extend(self.read(&path));
        }
        // Drop-ins without what they are laid over would have mistakes that are none.
        if main.is_some() {
            self.groups.push(Group { folder, files });
        }
    }

    /// The unit files and drop-in folders of `folder`, in order of name. A folder that `may_be_missing` and is has none.
    fn list(&mut self, folder: &Path, may_be_missing: bool) -> Option<Listing> {
        let metadata = match fs::metadata(folder) {
            Ok(metadata) => metadata,
            Err(error)
                if may_be_missing
                    && is_missing(&error)
                    && fs::symlink_metadata(folder).is_err() =>
            {
                return None;
            }
            Err(error) => {
                self.refuse_missing(folder, &error);
                return None;
            }
        };
        if !metadata.is_dir() {
            self.refuse(folder, "not a folder");
            return None;
        }
        if !self.trusts(folder, &metadata) {
            return None;
        }
        let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => {
                self.refuse(
                    folder,
                    &format!("cannot read this folder: {}", reason(&error)),
                );
                return None;
            }
        };
        let mut listing = Listing::default();
        for name in entries.into_iter().map(|entry| entry.file_name()) {
            let bytes = name.as_bytes();
            if bytes.starts_with(b".") {
                continue;
            }
            if bytes.ends_with(b".toml") {
                listing.files.push(name);
            } else if let Some(stem) = bytes.strip_suffix(b".d")
                && stem.ends_with(b".toml")
            {
                listing
                    .drop_ins
                    .push(OsStr::from_bytes(stem).to_os_string());
            }
        }
        listing.files.sort_unstable();
        listing.drop_ins.sort_unstable();
        Some(listing)
    }

    /// Adds the text of `path` to the sources.
    fn read(&mut self, path: &Path) -> Option<u32> {
        let (metadata, bytes) = match read_regular(path) {
            Ok(read) => read,
            Err(why) => {
                self.refuse(path, &why);
                return None;
            }
        };
        if !self.trusts(path, &metadata) {
            return None;
        }
        match String::from_utf8(bytes) {
            Ok(text) if text.trim_ascii().is_empty() => {
                // A full disk leaves such files; to read them as "no units" would stop everything.
                self.refuse(path, "an empty file; to have no units here, write a comment, or link it to `/dev/null`");
                None
            }
            Ok(text) => Some(self.sources.add(path, text)),
            Err(error) => {
                let start = error.utf8_error().valid_up_to();
                // Up to there the text stays what it was, so the place is right in what is shown.
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let line = text[..start].bytes().filter(|byte| *byte == b'\n').count() + 1;
                let start = start as u32;
                let file = self.sources.add(path, text);
                let place = Place {
                    file,
                    start,
                    end: start + char::REPLACEMENT_CHARACTER.len_utf8() as u32,
                };
                let message = format!("not UTF-8 on line {line}; a unit file is UTF-8 text");
                self.findings.push(Finding::error(place, message));
                None
            }
        }
    }

    /// Whether nobody but root may write here; a finding says who, and how to change it.
    fn trusts(&mut self, path: &Path, metadata: &Metadata) -> bool {
        if !self.distrust_writable {
            return true;
        }
        let mode = metadata.mode();
        let what = if metadata.is_dir() { "folder" } else { "file" };
        let shown = shell_words::quote(&path.to_string_lossy()).into_owned();
        let mut faults = Vec::new();
        let mut remedies = Vec::new();
        if metadata.uid() != 0 {
            faults.push(format!("user {} owns it", metadata.uid()));
            remedies.push(format!("chown root:root {shown}"));
        }
        let by_group = mode & 0o020 != 0 && metadata.gid() != 0;
        let by_others = mode & 0o002 != 0;
        if by_group {
            faults.push(format!("group {} may write it", metadata.gid()));
        }
        if by_others {
            faults.push("everybody may write it".to_string());
        }
        if by_group || by_others {
            remedies.push(format!("chmod go-w {shown}"));
        }
        if faults.is_empty() {
            return true;
        }
        self.refuse(
            path,
            &format!(
                "refused, since as root this {what} says what is run: {}; run `{}`",
                faults.join(" and "),
                remedies.join(" && ")
            ),
        );
        false
    }

    fn refuse_missing(&mut self, path: &Path, error: &io::Error) {
        let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
        match fs::read_link(path) {
            Ok(target) if is_link && is_missing(error) => self.refuse(
                path,
                &format!(
                    "a link to `{}`, which does not exist",
                    clipped(&target.to_string_lossy())
                ),
            ),
            _ => self.refuse(path, &reason(error)),
        }
    }

    fn warn_stray(&mut self, drop_ins: &Path) {
        let name = drop_ins.with_extension("");
        let name = name
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        self.warn(
            drop_ins,
            &format!(
                "drop-ins without their unit file: there is no `{}`",
                clipped(&name)
            ),
        );
    }

    /// An error of the file or folder as a whole.
    fn refuse(&mut self, path: &Path, message: &str) {
        let place = self.whole(path);
        self.findings.push(Finding::error(place, message));
    }

    fn warn(&mut self, path: &Path, message: &str) {
        let place = self.whole(path);
        self.findings.push(Finding::warning(place, message));
    }

    fn whole(&mut self, path: &Path) -> Place {
        Place {
            file: self.sources.add(path, String::new()),
            start: 0,
            end: 0,
        }
    }
}

/// What a regular file holds. A FIFO or device is never opened, nor waited for if it takes the file's place meanwhile.
fn read_regular(path: &Path) -> Result<(Metadata, Vec<u8>), String> {
    let metadata = fs::metadata(path).map_err(|error| match fs::read_link(path) {
        Ok(target) if is_missing(&error) => {
            format!(
                "a link to `{}`, which does not exist",
                clipped(&target.to_string_lossy())
            )
        }
        _ => reason(&error),
    })?;
    check_regular(&metadata)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|error| format!("cannot open this file: {}", reason(&error)))?;
    read_open(&file).map_err(|why| format!("cannot read this file: {why}"))
}

fn read_open(file: &File) -> Result<(Metadata, Vec<u8>), String> {
    let metadata = file.metadata().map_err(|error| reason(&error))?;
    check_regular(&metadata)?;
    let too_long = || format!("it is larger than {} MiB", LONGEST >> 20);
    if metadata.len() > LONGEST {
        return Err(too_long());
    }
    // In range: it is at most LONGEST.
    let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
    file.take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| reason(&error))?;
    match bytes.len() as u64 {
        length if length > LONGEST => Err(too_long()),
        _ => Ok((metadata, bytes)),
    }
}

fn check_regular(metadata: &Metadata) -> Result<(), String> {
    let kind = metadata.file_type();
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(format!("{what}, not a regular file"))
}

/// Whether `path` is a link to `/dev/null`, which need not exist.
fn is_masked(path: &Path) -> bool {
    match fs::read_link(path) {
        Ok(target) if target == Path::new("/dev/null") => true,
        Ok(_) => fs::metadata(path).is_ok_and(|metadata| {
            metadata.file_type().is_char_device()
                && metadata.rdev() == nix::sys::stat::makedev(1, 3)
        }),
        Err(_) => false,
    }
}

/// The folder that `path` stands in, absolute.
fn folder_of(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| Path::new("/").join(path));
    absolute.parent().unwrap_or(Path::new("/")).to_path_buf()
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// What strerror(3) says.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_string(),
        None => error.to_string(),
    }
}
