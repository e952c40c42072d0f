//! Commands on unit files, without a manager: check, plan.

use super::{Error, ExitCode, Surroundings, printable, write_json};
use crate::plan::{self, Examined, Host, Plan, PlannedWorker};
use crate::runtime::{System, read_env_file};
use crate::unit::{self, Address, Finding, Search, Severity, Sources};
use serde::Serialize;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where to look for unit files, and as whom.
pub(super) fn search(paths: Vec<PathBuf>, surroundings: &Surroundings) -> Search {
    Search {
        paths,
        folders: surroundings.unit_folders(),
        distrust_writable: surroundings.is_root,
    }
}

fn examine(paths: Vec<PathBuf>, surroundings: &Surroundings, host: &dyn Host) -> Examined {
    plan::examine(unit::load(&search(paths, surroundings)), host)
}

/// Validates unit files. Findings go to stderr and a summary to stdout; with `json` an array of findings to stdout.
pub(super) fn check(
    paths: Vec<PathBuf>,
    strict: bool,
    json: bool,
    surroundings: &Surroundings,
    out: &mut dyn Write,
) -> Result<ExitCode, Error> {
    let examined = examine(paths, surroundings, &System::new());
    if json {
        let findings: Vec<_> = examined
            .findings
            .iter()
            .map(|finding| FindingDocument::of(finding, &examined.sources))
            .collect();
        write_json(&findings, false, out)?;
    } else {
        show(&examined.findings, &examined.sources);
        writeln!(out, "{}", summary(&examined))?;
    }
    Ok(if is_refused(&examined, strict) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn is_refused(examined: &Examined, strict: bool) -> bool {
    examined.errors > 0 || (strict && examined.warnings > 0)
}

/// Prints findings to stderr.
fn show(findings: &[Finding], sources: &Sources) {
    let mut stderr = io::stderr().lock();
    for finding in findings {
        // There is no other place to say that stderr is closed.
        // In one piece: the rendering goes by characters, and stderr has no buffer.
        let _ = stderr.write_all(format!("{}\n", sources.render(finding)).as_bytes());
    }
}

/// Such as `5 units, 1 error, 2 warnings`.
fn summary(examined: &Examined) -> String {
    let counted = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    let mut parts = vec![counted(examined.units, "unit")];
    for (count, what) in [(examined.errors, "error"), (examined.warnings, "warning")] {
        if count > 0 {
            parts.push(counted(count, what));
        }
    }
    if parts.len() == 1 {
        parts.push("no findings".into());
    }
    parts.join(", ")
}

/// A finding as `check --json` prints it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct FindingDocument<'a> {
    severity: &'static str,
    message: &'a str,
    /// Absent where it is about no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// From 1, the column in characters; absent where it is about a whole file.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    /// With file, line, column, the line itself and a caret.
    text: String,
}

impl<'a> FindingDocument<'a> {
    fn of(finding: &'a Finding, sources: &'a Sources) -> Self {
        let position = sources.position(finding.place);
        FindingDocument {
            file: (sources.path(finding.place.file))
                .map(|path| path.to_string_lossy().into_owned()),
            line: position.map(|(line, _)| line),
            column: position.map(|(_, column)| column),
            severity: match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            message: &finding.message,
            text: sources.render(finding).to_string(),
        }
    }
}

/// Shows what each worker would be executed with.
pub(super) fn plan(
    paths: Vec<PathBuf>,
    json: bool,
    surroundings: &Surroundings,
    out: &mut dyn Write,
) -> Result<ExitCode, Error> {
    let host = System::new();
    let examined = examine(paths, surroundings, &host);
    show(&examined.findings, &examined.sources);
    let Some(plan) = examined.plan else {
        return Err(Error::Refused(format!(
            "there is no plan for these units: {}; mend what `tentpole check` finds",
            summary(&examined)
        )));
    };
    let workers = plan.workers(&host, &|path| read_env_file(path));
    let failed = if json {
        write_workers(workers, out)?
    } else {
        write_text(workers, &plan, out)?
    };
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        1 => Err(Error::Refused(
            "1 worker could not be started; the plan says why".into(),
        )),
        many => Err(Error::Refused(format!(
            "{many} workers could not be started; the plan says why"
        ))),
    }
}

/// What would run, or why it would not.
type Planned = Result<PlannedWorker, String>;

fn lossy(text: impl AsRef<OsStr>) -> String {
    text.as_ref().to_string_lossy().into_owned()
}

/// An address as a unit file has it.
fn address(address: &Address) -> String {
    match address {
        Address::Port(port) => port.to_string(),
        Address::Ip(address) => address.to_string(),
        Address::Host(name, port) => format!("{name}:{port}"),
        Address::Path(path) => lossy(path),
        Address::Abstract(name) => format!("@{name}"),
    }
}

/// Writes an array, one worker a line, `{"error": REASON}` for one that could not be executed; the answer is how many
/// those are.
fn write_workers(workers: impl Iterator<Item = Planned>, out: &mut dyn Write) -> io::Result<usize> {
    let mut failed = 0;
    let mut before = "[";
    for worker in workers {
        out.write_all(before.as_bytes())?;
        let json = match worker {
            Ok(worker) => serde_json::to_vec(&worker)?,
            Err(error) => {
                failed += 1;
                serde_json::to_vec(&serde_json::json!({ "error": error }))?
            }
        };
        out.write_all(&json)?;
        before = ",\n ";
    }
    // An empty array has no opening bracket yet.
    if before == "[" {
        out.write_all(b"[")?;
    }
    out.write_all(b"]\n")?;
    Ok(failed)
}

/// Writes a paragraph for each worker; the answer is how many could not be executed.
fn write_text(
    workers: impl Iterator<Item = Planned>,
    plan: &Plan,
    out: &mut dyn Write,
) -> io::Result<usize> {
    let mut failed = 0;
    let mut line_before = "";
    for worker in workers {
        out.write_all(line_before.as_bytes())?;
        line_before = "\n";
        match &worker {
            Ok(worker) => write_worker(worker, plan, out)?,
            Err(reason) => {
                failed += 1;
                writeln!(out, "error: {}", printable(reason))?;
            }
        }
    }
    if line_before.is_empty() {
        writeln!(out, "no workers would run")?;
    }
    Ok(failed)
}

fn write_worker(worker: &PlannedWorker, plan: &Plan, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{} {}", printable(&worker.watcher), worker.wid)?;
    writeln!(out, "  {}", printable(&shell_words::join(&worker.argv)))?;
    if let [program] = worker.executable.as_slice()
        && Path::new(program).file_name() != worker.argv.first().map(OsStr::new)
        && worker.argv.first() != Some(program)
    {
        writeln!(out, "  executes {}", printable(program))?;
    }
    if let Some(folder) = &worker.working_dir {
        writeln!(out, "  in {}", printable(folder))?;
    }
    if let Some(uid) = worker.uid {
        let name = worker.user.as_deref().unwrap_or("-");
        writeln!(out, "  as {} (uid {uid})", printable(name))?;
    }
    let stdio = [&worker.stdin, &worker.stdout, &worker.stderr];
    for (fd, target) in stdio.into_iter().enumerate() {
        if !worker.fds.iter().any(|given| given.fd as usize == fd) {
            writeln!(out, "  {fd} = {}", printable(target))?;
        }
    }
    for given in &worker.fds {
        let socket = plan
            .sockets
            .iter()
            .find(|socket| socket.name() == given.socket);
        let address = socket.map_or_else(String::new, |socket| address(&socket.unit.address.value));
        writeln!(
            out,
            "  {} = {} ({})",
            given.fd,
            printable(&given.socket),
            printable(&address)
        )?;
    }
    for (name, value) in &worker.env {
        writeln!(out, "  {}={}", printable(name), printable(value))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::PlannedFd;
    use crate::unit::Place;

    fn examined(units: usize, errors: usize, warnings: usize) -> Examined {
        Examined {
            units,
            plan: None,
            findings: Vec::new(),
            errors,
            warnings,
            sources: Sources::default(),
        }
    }

    #[test]
    fn the_summary_counts_units_and_findings() {
        for (counts, wanted) in [
            (examined(5, 0, 0), "5 units, no findings"),
            (examined(1, 1, 0), "1 unit, 1 error"),
            (examined(0, 1, 2), "0 units, 1 error, 2 warnings"),
        ] {
            assert_eq!(summary(&counts), wanted);
        }
    }

    #[test]
    fn warnings_refuse_the_units_only_when_strict() {
        for (counts, plain, strict) in [
            (examined(1, 0, 0), false, false),
            (examined(1, 0, 1), false, true),
            (examined(1, 1, 1), true, true),
        ] {
            assert_eq!(
                (is_refused(&counts, false), is_refused(&counts, true)),
                (plain, strict)
            );
        }
    }

    #[test]
    fn a_finding_is_a_document_with_its_text() {
        let sources = Sources::default();
        let warning = Finding::warning(Place::NOWHERE, "`x` is odd");
        let document = serde_json::to_value(FindingDocument::of(&warning, &sources)).unwrap();
        assert_eq!(document["severity"], "warning");
        assert_eq!(document["message"], "`x` is odd");
        assert!(document["text"].as_str().unwrap().contains("`x` is odd"));
        assert_eq!(document.get("file"), None, "it is nowhere");
        assert_eq!(document.get("line"), None);

        let mut sources = Sources::default();
        let file = sources.add(
            Path::new("web.toml"),
            "[socket.a]\n# \u{706b}\n\u{fc} = 1\n".into(),
        );
        let place = |start, end| Place { file, start, end };
        let error = Finding::error(place(20, 21), "unknown");
        let document = serde_json::to_value(FindingDocument::of(&error, &sources)).unwrap();
        assert_eq!(document["file"], "web.toml");
        assert_eq!(
            (&document["line"], &document["column"]),
            (&3.into(), &3.into())
        );
    }

    #[test]
    fn addresses_are_written_as_unit_files_have_them() {
        for (given, want) in [
            (Address::Port(8000), "8000"),
            (Address::Ip("[::1]:80".parse().unwrap()), "[::1]:80"),
            (Address::Host("localhost".into(), 80), "localhost:80"),
            (Address::Path("/run/x.sock".into()), "/run/x.sock"),
            (Address::Abstract("x".into()), "@x"),
        ] {
            assert_eq!(address(&given), want);
        }
    }

    fn workers() -> Vec<Planned> {
        let env = [("A", "1"), ("B", "2\n3")].map(|(name, value)| (name.into(), value.into()));
        let worker = PlannedWorker {
            watcher: "web".into(),
            wid: 1,
            argv: ["chaussette", "--fd", "3", "a b\x1b"]
                .map(str::to_owned)
                .into(),
            executable: vec!["/bin/chaussette".into()],
            fds: vec![PlannedFd {
                fd: 3,
                socket: "web".into(),
                name: Some("web".into()),
            }],
            env: env.into(),
            working_dir: Some("/srv".into()),
            stdin: "null".into(),
            stdout: "inherit".into(),
            stderr: "/var/log/web".into(),
            user: None,
            uid: None,
            gid: None,
            groups: None,
        };
        vec![
            Ok(worker),
            Err("watcher `job`: `env_file` `/x` can't be read".into()),
        ]
    }

    #[test]
    fn a_plan_as_text_has_a_paragraph_for_each_worker() {
        let mut out = Vec::new();
        let plan = Plan::default();
        assert_eq!(
            write_text(workers().into_iter(), &plan, &mut out).unwrap(),
            1
        );
        let want = "\
web 1
  chaussette --fd 3 'a b\\u{1b}'
  in /srv
  0 = null
  1 = inherit
  2 = /var/log/web
  3 = web ()
  A=1
  B=2\\n3

error: watcher `job`: `env_file` `/x` can't be read
";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn a_plan_as_json_is_an_array_with_a_line_for_each_worker() {
        let mut out = Vec::new();
        assert_eq!(write_workers(workers().into_iter(), &mut out).unwrap(), 1);
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 2);
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value[0]["argv"][1], "--fd");
        assert_eq!(value[0]["fds"][0]["socket"], "web");
        assert_eq!(value[0]["env"]["A"], "1");
        assert_eq!(
            value[1]["error"],
            "watcher `job`: `env_file` `/x` can't be read"
        );
        let mut empty = Vec::new();
        assert_eq!(write_workers(std::iter::empty(), &mut empty).unwrap(), 0);
        assert_eq!(empty, b"[]\n");
    }
}
