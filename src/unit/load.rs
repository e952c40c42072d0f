//! From paths to units: the search path, drop-ins and masking.

use super::toml::Reader;
use super::value::clipped;
use super::{Arrange, Doubts, Finding, Findings, Place, Sources, Units};
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
    /// Those that have errors, as far as they could be read: what else is wrong with them can be told all the same.
    pub unfinished: Units,
    /// What is not known of those.
    pub doubts: Doubts,
    /// All errors and warnings, in order of file and place.
    pub findings: Findings,
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
        is_partial: false,
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
    /// A drop-in of it could not be read.
    is_partial: bool,
}

#[derive(Default)]
struct Loader {
    distrust_writable: bool,
    sources: Sources,
    findings: Findings,
    groups: Vec<Group>,
    /// How many files and folders could not be read.
    unread: usize,
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
            reader.read(&self.sources, &group.folder, &group.files, group.is_partial);
        }
        reader.sort();
        let Reader {
            units,
            unfinished,
            mut doubts,
            findings,
            ..
        } = reader;
        doubts.any_name |= self.unread > 0;
        self.findings.extend(findings);
        self.findings.sort();
        Loaded {
            units,
            unfinished,
            doubts,
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
            Some(b"toml") if is_masked(path) => {
                self.refuse(
                    path,
                    "masked: a link to `/dev/null`, which stands for no units",
                );
            }
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
        let unread = self.unread;
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
            self.groups.push(Group {
                folder,
                files,
                is_partial: self.unread > unread,
            });
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
        listing.files.arrange();
        listing.drop_ins.arrange();
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
                self.unread += 1;
                None
            }
        }
    }

    /// Whether nobody but root may write here; a finding says who, and how to change it.
    fn trusts(&mut self, path: &Path, metadata: &Metadata) -> bool {
        if !self.distrust_writable {
            return true;
        }
        let Some((faults, remedies)) =
            distrust(metadata.uid(), metadata.gid(), metadata.mode(), path)
        else {
            return true;
        };
        let what = if metadata.is_dir() { "folder" } else { "file" };
        self.refuse(
            path,
            &format!(
                "refused, since as root this {what} says what is run: {faults}; run `{remedies}`"
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
        self.unread += 1;
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

/// Why a file or folder with this owner, group and mode could be another user's doing, and the commands against it.
fn distrust(uid: u32, gid: u32, mode: u32, path: &Path) -> Option<(String, String)> {
    let path = path.to_string_lossy();
    let path = shell_words::quote(&path);
    let mut faults = Vec::new();
    let mut remedies = Vec::new();
    if uid != 0 {
        faults.push(format!("user {uid} owns it"));
        remedies.push(format!("chown root:root {path}"));
    }
    // To be in root's own group is to be trusted.
    let by_group = mode & 0o020 != 0 && gid != 0;
    let by_others = mode & 0o002 != 0;
    if by_group {
        faults.push(format!("group {gid} may write it"));
    }
    if by_others {
        faults.push("everybody may write it".to_string());
    }
    if by_group || by_others {
        remedies.push(format!("chmod go-w {path}"));
    }
    (!faults.is_empty()).then(|| (faults.join(" and "), remedies.join(" && ")))
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

/// What strerror(3) says: the number of an error tells nobody more.
pub fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_string(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    /// A folder with these files; a text of `-> TARGET` makes a symlink.
    fn folder(files: &[(&str, &str)]) -> TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("it has a parent")).expect("a folder");
            match text.strip_prefix("-> ") {
                Some(target) => symlink(target, path).expect("a symlink"),
                None => fs::write(path, text).expect("a file"),
            }
        }
        folder
    }

    fn load_paths(paths: &[&Path]) -> Loaded {
        load(&Search {
            paths: paths.iter().map(|path| path.to_path_buf()).collect(),
            ..Search::default()
        })
    }

    fn load_folders(folders: &[&Path]) -> Loaded {
        load(&Search {
            folders: folders.iter().map(|path| path.to_path_buf()).collect(),
            ..Search::default()
        })
    }

    /// The first line of each finding, with the paths of temporary folders left out.
    fn findings(loaded: &Loaded, folders: &[&TempDir]) -> Vec<String> {
        let rendered = loaded.findings.iter().map(|finding| {
            let mut text = loaded.sources.render(finding).to_string();
            text.truncate(text.find('\n').unwrap_or(text.len()));
            for (number, folder) in folders.iter().enumerate() {
                text = text.replace(&folder.path().display().to_string(), &format!("F{number}"));
            }
            text
        });
        rendered.collect()
    }

    fn sockets(loaded: &Loaded) -> Vec<String> {
        let sockets = loaded.units.sockets.iter();
        sockets
            .map(|socket| format!("{} {:?}", socket.name.value, socket.address.value))
            .collect()
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn a_folder_gives_its_unit_files_with_their_own_drop_ins() {
        let f = folder(&[
            ("b.toml", "[socket.b]\nlisten = 1"),
            ("a.toml", "[socket.a]\nlisten = 1"),
            ("a.toml.d/10.toml", "[socket.a]\nlisten = 10"),
            ("a.toml.d/20.toml", "[socket.a]\nlisten = 20"),
            ("a.toml.d/.30.toml", "broken"),
            ("a.toml.d/README", "broken"),
            (".hidden.toml", "broken"),
            ("c.toml~", "broken"),
            ("d.ini", "broken"),
            ("masked.toml", "-> /dev/null"),
        ]);
        let loaded = load_paths(&[f.path()]);
        assert_eq!(findings(&loaded, &[&f]), NONE);
        assert_eq!(sockets(&loaded), ["a Port(20)", "b Port(1)"]);
    }

    #[test]
    fn a_file_that_is_named_takes_its_drop_ins_and_is_read_once() {
        let f = folder(&[
            ("a.toml", "[socket.a]\npath = \"a.sock\""),
            ("a.toml.d/x.toml", "[socket.a]\nbacklog = 7"),
        ]);
        let file = f.path().join("a.toml");
        let loaded = load_paths(&[&file, f.path(), &file]);
        assert_eq!(findings(&loaded, &[&f]), NONE);
        assert_eq!(loaded.units.sockets.len(), 1);
        assert_eq!(loaded.units.sockets[0].backlog, 7);
        let path = f.path().join("a.sock");
        assert_eq!(
            loaded.units.sockets[0].address.value,
            super::super::Address::Path(path)
        );
    }

    #[test]
    fn on_the_search_path_names_hide_and_mask_and_drop_ins_add_up() {
        let first = folder(&[
            ("a.toml", "[socket.a]\nlisten = 1"),
            ("masked.toml", "-> /dev/null"),
            ("lib.toml.d/20.toml", "[socket.lib]\nlisten = 20"),
            ("lib.toml.d/40.toml", "-> /dev/null"),
            ("masked.toml.d/1.toml", "[socket.masked]\nlisten = 1"),
        ]);
        let second = folder(&[
            ("a.toml", "broken"),
            ("masked.toml", "broken"),
            ("lib.toml", "[socket.lib]\nlisten = 1\nbacklog = 1"),
            (
                "lib.toml.d/10.toml",
                "[socket.lib]\nlisten = 10\nbacklog = 10",
            ),
            ("lib.toml.d/20.toml", "broken"),
            ("lib.toml.d/40.toml", "broken"),
        ]);
        let missing = first.path().join("missing");
        let loaded = load_folders(&[first.path(), &missing, second.path(), first.path()]);
        assert_eq!(findings(&loaded, &[&first, &second]), NONE);
        assert_eq!(sockets(&loaded), ["a Port(1)", "lib Port(20)"]);
        assert_eq!(loaded.units.sockets[1].backlog, 10);
    }

    #[test]
    fn relative_paths_start_at_the_folder_of_the_main_file() {
        let main = folder(&[("a.toml", "[watcher.w]\ncmd = \"x\"\n[socket.s]\nlisten = 1")]);
        let other = folder(&[("a.toml.d/x.toml", "[socket.s]\nlisten = \"./s.sock\"")]);
        let loaded = load_folders(&[other.path(), main.path()]);
        assert_eq!(findings(&loaded, &[&main, &other]), NONE);
        assert_eq!(loaded.units.watchers[0].folder, main.path().into());
        let wanted = super::super::Address::Path(main.path().join("s.sock"));
        assert_eq!(loaded.units.sockets[0].address.value, wanted);
    }

    #[test]
    fn a_unit_of_two_files_is_refused_with_both_places() {
        let f = folder(&[
            ("a.toml", "[socket.web]\nlisten = 1\n[manager]\n"),
            ("b.toml", "\n[socket.web]\nlisten = 2\n[manager]\n"),
            ("c.toml", "[socket.WEB]\nlisten = 3"),
        ]);
        let loaded = load_paths(&[f.path()]);
        assert_eq!(
            findings(&loaded, &[&f]),
            [
                "F0/b.toml:2:1: socket `web` is already defined at F0/a.toml:1:1",
                "F0/b.toml:4:1: a second `[manager]`; the first stands at F0/a.toml:3:1, and there is one for all files",
                "F0/c.toml:1:1: socket `WEB` differs from `web` at F0/a.toml:1:1 by case alone; rename one",
            ]
        );
    }

    #[test]
    fn a_masked_file_that_is_named_is_told_so() {
        let f = folder(&[("a.toml", "-> /dev/null")]);
        let loaded = load_paths(&[&f.path().join("a.toml")]);
        assert_eq!(
            findings(&loaded, &[&f]),
            ["F0/a.toml: masked: a link to `/dev/null`, which stands for no units"]
        );
    }

    #[test]
    fn what_cannot_be_read_is_told_by_name() {
        let f = folder(&[
            ("empty.toml", " \n"),
            ("dangling.toml", "-> nowhere"),
            ("dir.toml/x", ""),
            ("null.toml", "-> /dev/zero"),
            ("loop.toml", "-> loop.toml"),
            ("stray.toml.d/x.toml", "broken"),
            ("good.toml", "[socket.s]\nlisten = 1"),
        ]);
        fs::write(f.path().join("latin.toml"), b"# ok\n# \xe4\n").expect("a file");
        let huge = File::create(f.path().join("huge.toml")).expect("a file");
        huge.set_len(LONGEST + 1).expect("a sparse file");
        let fifo = f.path().join("fifo.toml");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600))
            .expect("a FIFO");
        let loaded = load_paths(&[f.path()]);
        assert_eq!(
            findings(&loaded, &[&f]),
            [
                "F0/dangling.toml: a link to `nowhere`, which does not exist",
                "F0/dir.toml: a folder, not a regular file",
                "F0/empty.toml: an empty file; to have no units here, write a comment, or link it to `/dev/null`",
                "F0/fifo.toml: a FIFO, not a regular file",
                "F0/huge.toml: cannot read this file: it is larger than 16 MiB",
                "F0/latin.toml:2:3: not UTF-8 on line 2; a unit file is UTF-8 text",
                "F0/loop.toml: Too many symbolic links encountered",
                "F0/null.toml: a device, not a regular file",
                "F0/stray.toml.d: warning: drop-ins without their unit file: there is no `stray.toml`",
            ]
        );
        assert_eq!(sockets(&loaded), ["s Port(1)"]);
    }

    #[test]
    fn what_the_user_names_has_to_be_there_and_a_unit_file() {
        let f = folder(&[
            ("circus.ini", "x"),
            ("a.socket", "x"),
            ("a.service", "x"),
            ("a.conf", "x"),
            ("a.toml", "[socket.s]\nlisten = 1"),
            ("a.toml.d", "not a folder"),
            ("empty/x", ""),
        ]);
        let names = [
            "gone",
            "circus.ini",
            "a.socket",
            "a.service",
            "a.conf",
            "a.toml",
            "empty",
            "a.toml/x",
        ];
        let paths: Vec<PathBuf> = names.iter().map(|name| f.path().join(name)).collect();
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        assert_eq!(
            findings(&load_paths(&paths), &[&f]),
            [
                "F0/gone: No such file or directory",
                "F0/circus.ini: a Circus ini file, which is not built yet",
                "F0/a.socket: a systemd unit, which is not built yet",
                "F0/a.service: a systemd unit, which is not built yet",
                "F0/a.conf: not a unit file: the name of one ends in `.toml`",
                "F0/a.toml.d: not a folder",
                "F0/empty: warning: no unit files (`*.toml`) in this folder",
                "F0/a.toml/x: Not a directory",
            ]
        );
        let file = f.path().join("a.conf");
        assert_eq!(
            findings(&load_folders(&[&file]), &[&f]),
            ["F0/a.conf: not a folder"]
        );
    }

    #[test]
    fn distrust_says_who_may_write_and_what_to_do() {
        let distrust = |uid, gid, mode| distrust(uid, gid, mode, Path::new("/u/a b.toml"));
        for (uid, gid, mode) in [
            (0, 0, 0o100644),
            (0, 0, 0o100664),
            (0, 7, 0o100644),
            (0, 7, 0o40755),
        ] {
            assert_eq!(distrust(uid, gid, mode), None, "{uid} {gid} {mode:o}");
        }
        let wanted =
            |faults: &str, remedies: &str| Some((faults.to_string(), remedies.to_string()));
        assert_eq!(
            distrust(0, 7, 0o100664),
            wanted("group 7 may write it", "chmod go-w '/u/a b.toml'")
        );
        assert_eq!(
            distrust(0, 0, 0o41777),
            wanted("everybody may write it", "chmod go-w '/u/a b.toml'")
        );
        assert_eq!(
            distrust(5, 7, 0o100666),
            wanted(
                "user 5 owns it and group 7 may write it and everybody may write it",
                "chown root:root '/u/a b.toml' && chmod go-w '/u/a b.toml'"
            )
        );
    }

    #[test]
    fn root_refuses_what_others_may_write() {
        if !nix::unistd::geteuid().is_root() {
            // Nobody else can make files that root owns: all that others have is refused.
            let f = folder(&[("a.toml", "[socket.a]\nlisten = 1")]);
            let loaded = load(&Search {
                paths: vec![f.path().to_path_buf()],
                distrust_writable: true,
                ..Search::default()
            });
            assert!(findings(&loaded, &[&f])[0].contains("owns it; run `chown root:root F0`"));
            return;
        }
        let f = folder(&[
            ("all.toml", "[socket.a]\nlisten = 1"),
            ("group.toml", "[socket.b]\nlisten = 1"),
            ("own group.toml", "[socket.c]\nlisten = 1"),
            ("owner.toml", "[socket.d]\nlisten = 1"),
            ("good.toml", "[socket.e]\nlisten = 1"),
            ("good.toml.d/x.toml", "[socket.e]\nlisten = 2"),
            ("link.toml", "-> all.toml"),
        ]);
        let chmod = |name: &str, mode| {
            let path = f.path().join(name);
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
        };
        let chown = |name: &str, uid, gid| {
            std::os::unix::fs::chown(f.path().join(name), uid, gid).expect("chown");
        };
        chmod("all.toml", 0o646);
        chown("group.toml", Some(0), Some(7));
        chmod("group.toml", 0o664);
        chown("own group.toml", Some(0), Some(0));
        chmod("own group.toml", 0o664);
        chown("owner.toml", Some(12), None);
        let load_as_root = || {
            load(&Search {
                paths: vec![f.path().to_path_buf()],
                distrust_writable: true,
                ..Search::default()
            })
        };
        chmod("good.toml.d", 0o777);
        let why = "refused, since as root this file says what is run";
        assert_eq!(
            findings(&load_as_root(), &[&f]),
            [
                format!("F0/all.toml: {why}: everybody may write it; run `chmod go-w F0/all.toml`"),
                "F0/good.toml.d: refused, since as root this folder says what is run: everybody may write it; \
                 run `chmod go-w F0/good.toml.d`"
                    .to_string(),
                format!("F0/group.toml: {why}: group 7 may write it; run `chmod go-w F0/group.toml`"),
                format!("F0/link.toml: {why}: everybody may write it; run `chmod go-w F0/link.toml`"),
                format!("F0/owner.toml: {why}: user 12 owns it; run `chown root:root F0/owner.toml`"),
            ]
        );
        chmod("", 0o1777);
        assert_eq!(
            findings(&load_as_root(), &[&f]),
            [
                "F0: refused, since as root this folder says what is run: everybody may write it; run `chmod go-w F0`"
            ]
        );
        // A file that is named is looked at itself, not the folder around it.
        let loaded = load(&Search {
            paths: vec![f.path().join("own group.toml")],
            distrust_writable: true,
            ..Search::default()
        });
        assert_eq!(findings(&loaded, &[&f]), NONE);
        assert_eq!(sockets(&loaded), ["c Port(1)"]);
    }
}
