//! What this machine says of users, groups and the environment.

use super::read_env_file;
use crate::plan::{Host, User};
use crate::sys::users;
use std::cell::RefCell;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// The machine we run on. What its user databases have answered is remembered, also that they know nothing: so one is made
/// for each reading of the units.
#[derive(Debug, Default)]
pub struct System {
    /// In order of question.
    answers: RefCell<Vec<(Question, Answer)>>,
}

/// What is asked of the user databases.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    UserByName(String),
    UserById(u32),
    GroupByName(String),
    /// Of a user whose own group has this id.
    GroupsOf(String, u32),
    UserNames,
    GroupNames,
}

/// What they say: of all this, what was asked for.
#[derive(Clone, Debug, Default)]
struct Answer {
    user: Option<User>,
    groups: Vec<u32>,
    names: Vec<String>,
}

impl System {
    /// The machine we run on.
    pub fn new() -> System {
        System::default()
    }

    /// The answer to `question`, which is looked up if it was not asked before.
    fn ask(&self, question: Question) -> Answer {
        self.remember(question, look_up)
    }

    fn remember(&self, question: Question, look_up: fn(&Question) -> Answer) -> Answer {
        let mut answers = self.answers.borrow_mut();
        let place = answers.partition_point(|(asked, _)| *asked < question);
        if answers
            .get(place)
            .is_none_or(|(asked, _)| *asked != question)
        {
            let answer = look_up(&question);
            answers.insert(place, (question, answer));
        }
        answers[place].1.clone()
    }
}

fn look_up(question: &Question) -> Answer {
    let mut answer = Answer::default();
    match question {
        Question::UserByName(name) => answer.user = users::user_by_name(name).map(user),
        Question::UserById(uid) => answer.user = users::user_by_uid(*uid).map(user),
        Question::GroupByName(name) => answer.groups.extend(users::group_by_name(name)),
        Question::GroupsOf(user, gid) => answer.groups = users::groups_of(user, *gid),
        Question::UserNames => answer.names = users::user_names(),
        Question::GroupNames => answer.names = users::group_names(),
    }
    answer
}

impl Host for System {
    fn user_by_name(&self, name: &str) -> Option<User> {
        self.ask(Question::UserByName(name.into())).user
    }

    fn user_by_id(&self, uid: u32) -> Option<User> {
        self.ask(Question::UserById(uid)).user
    }

    fn group_by_name(&self, name: &str) -> Option<u32> {
        let found = self.ask(Question::GroupByName(name.into()));
        found.groups.first().copied()
    }

    fn groups_of(&self, user: &str, gid: u32) -> Vec<u32> {
        self.ask(Question::GroupsOf(user.into(), gid)).groups
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        std::env::vars_os().collect()
    }

    fn user_names(&self) -> Vec<String> {
        self.ask(Question::UserNames).names
    }

    fn group_names(&self) -> Vec<String> {
        self.ask(Question::GroupNames).names
    }

    fn is_root(&self) -> bool {
        users::geteuid() == 0
    }

    fn own_ids(&self) -> (u32, u32) {
        (users::geteuid(), users::getegid())
    }

    fn resolve(&self, path: &Path) -> PathBuf {
        let mut known = path.ancestors().filter_map(|ancestor| {
            let real = std::fs::canonicalize(ancestor).ok()?;
            Some(real.join(path.strip_prefix(ancestor).ok()?))
        });
        known.next().unwrap_or_else(|| path.to_path_buf())
    }

    fn has_folder(&self, path: &Path) -> bool {
        match std::fs::metadata(path) {
            Ok(found) => found.is_dir(),
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
        }
    }

    fn env_file(&self, path: &Path) -> io::Result<String> {
        read_env_file(path)
    }
}

fn user(user: users::User) -> User {
    User {
        name: user.name,
        uid: user.uid,
        gid: user.gid,
        home: user.home,
        shell: user.shell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_looked_up_once_and_an_unknown_one_too() {
        let system = System::new();
        let known = |_: &Question| Answer {
            groups: vec![33],
            ..Answer::default()
        };
        let unknown = |_: &Question| Answer::default();
        let again = |question: &Question| unreachable!("{question:?} is asked twice");
        let www = || Question::GroupByName("www".into());
        let nobody = || Question::UserByName("nobody".into());
        assert_eq!(system.remember(www(), known).groups, [33]);
        assert_eq!(system.remember(nobody(), unknown).user, None);
        for _ in 0..2 {
            assert_eq!(system.remember(www(), again).groups, [33]);
            assert_eq!(system.remember(nobody(), again).user, None);
        }
        assert_eq!(system.group_by_name("www"), Some(33));
        assert_eq!(system.user_by_name("nobody"), None);
        // Others are others.
        let uid = users::geteuid();
        let own = users::user_by_uid(uid).map(|user| user.name);
        assert_eq!(system.user_by_id(uid).map(|user| user.name), own);
    }
}
