//! Units and hosts made by hand, for the tests of this module.

use super::{Host, Plan, User, examine, plan};
use crate::unit::{self, *};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

/// A value that stands in no file.
pub(super) fn at(text: &str) -> At<String> {
    At::nowhere(text.into())
}

/// A socket with every default, on a path of its own.
pub(super) fn socket(name: &str) -> unit::Socket {
    unit::Socket::new(
        at(name),
        At::nowhere(Address::Path(format!("/run/{name}.sock").into())),
    )
}

/// A watcher with every default, in the folder `/etc/units`.
pub(super) fn watcher(name: &str, cmd: &str) -> unit::Watcher {
    unit::Watcher::new(
        at(name),
        "/etc/units".into(),
        At::nowhere(Words::Text(cmd.into())),
    )
}

/// `[env]` of a unit.
pub(super) fn env(pairs: &[(&str, &str)]) -> Vec<(String, At<String>)> {
    pairs
        .iter()
        .map(|(name, value)| (name.to_string(), at(value)))
        .collect()
}

/// A machine with the users root and deploy (1000, groups deploy and docker) and the group www (33).
pub(super) struct Machine {
    /// Answers [`Host::environment`].
    pub(super) environment: Vec<(OsString, OsString)>,
    /// Answers [`Host::is_root`]; who is not root is deploy.
    pub(super) root: bool,
}

impl Machine {
    /// Root's, with PATH, HOME and LANG.
    pub(super) fn new() -> Self {
        Machine {
            environment: [
                ("LANG", "C.UTF-8"),
                ("PATH", "/usr/bin:/bin"),
                ("HOME", "/root"),
            ]
            .map(|(name, value)| (name.into(), value.into()))
            .into(),
            root: true,
        }
    }
}

impl Host for Machine {
    fn user_by_name(&self, name: &str) -> Option<User> {
        let user = |uid, home: &str, shell: &str| User {
            name: name.into(),
            uid,
            gid: uid,
            home: home.into(),
            shell: shell.into(),
        };
        match name {
            "root" => Some(user(0, "/root", "/bin/bash")),
            "deploy" => Some(user(1000, "/home/deploy", "/bin/sh")),
            _ => None,
        }
    }

    fn user_by_id(&self, uid: u32) -> Option<User> {
        match uid {
            0 => self.user_by_name("root"),
            1000 => self.user_by_name("deploy"),
            _ => None,
        }
    }

    fn group_by_name(&self, name: &str) -> Option<u32> {
        match name {
            "root" => Some(0),
            "www" => Some(33),
            "deploy" => Some(1000),
            "docker" => Some(998),
            _ => None,
        }
    }

    fn user_names(&self) -> Vec<String> {
        ["root", "deploy"].map(String::from).into()
    }

    fn group_names(&self) -> Vec<String> {
        ["root", "www", "deploy", "docker"].map(String::from).into()
    }

    fn groups_of(&self, user: &str, gid: u32) -> Vec<u32> {
        match user {
            "deploy" => vec![gid, 998],
            _ => vec![gid],
        }
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        self.environment.clone()
    }

    fn is_root(&self) -> bool {
        self.root
    }

    fn own_ids(&self) -> (u32, u32) {
        match self.root {
            true => (0, 0),
            false => (1000, 1000),
        }
    }

    fn has_folder(&self, path: &Path) -> bool {
        !path.ends_with("missing")
    }

    fn env_file(&self, path: &Path) -> io::Result<String> {
        match path.file_name().and_then(OsStr::to_str) {
            Some("missing") => Err(io::ErrorKind::NotFound.into()),
            Some("secret") => Err(io::ErrorKind::PermissionDenied.into()),
            Some("folder") => Err(io::Error::other("not a regular file")),
            Some("bad") => Ok("A=1\nB\n".into()),
            _ => Ok("A=1\n".into()),
        }
    }
}

/// As [`Units`] has them.
pub(super) fn boxed<T>(units: impl Into<Vec<T>>) -> Vec<Box<T>> {
    units.into().into_iter().map(Box::new).collect()
}

/// Units of these sockets and watchers.
pub(super) fn units(
    sockets: impl Into<Vec<unit::Socket>>,
    watchers: impl Into<Vec<unit::Watcher>>,
) -> Units {
    Units {
        manager: Manager::default(),
        sockets: boxed(sockets),
        watchers: boxed(watchers),
    }
}

/// The plan of units that are right, whatever the warnings.
pub(super) fn planned(units: Units) -> Plan {
    let (plan, findings) = plan(units, &Machine::new());
    plan.unwrap_or_else(|| panic!("no plan: {findings:?}"))
}

/// The errors for `units`.
pub(super) fn errors(units: Units) -> Vec<String> {
    let (plan, findings) = plan(units, &Machine::new());
    let errors = messages(&findings, Severity::Error);
    assert_eq!(plan.is_none(), !errors.is_empty());
    errors
}

/// The warnings for `units`, which have no error.
pub(super) fn warnings(units: Units) -> Vec<String> {
    let (_, findings) = plan(units, &Machine::new());
    assert_eq!(messages(&findings, Severity::Error), Vec::<String>::new());
    messages(&findings, Severity::Warning)
}

/// What is found in the text of a unit file, as `LINE:COLUMN: message`.
pub(super) fn found(text: &str) -> Vec<String> {
    let examined = examine(unit::read_text(Path::new("/u/t"), text), &Machine::new());
    let first_line = |finding: &Finding| {
        let rendered = examined.sources.render(finding).to_string();
        let line = rendered.lines().next().unwrap_or_default();
        line.strip_prefix("/u/t:").unwrap_or(line).to_string()
    };
    examined.findings.iter().map(first_line).collect()
}

fn messages(findings: &[Finding], severity: Severity) -> Vec<String> {
    findings
        .iter()
        .filter(|finding| finding.severity == severity)
        .map(|finding| finding.message.clone())
        .collect()
}
