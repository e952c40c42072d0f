//! Users and groups, looked up.

use super::{Host, Identity, User};
use crate::unit::{self, At, Doubt, Finding, Findings, Principal, Socket, Watcher};

/// A mistake that is already among the findings.
pub(super) struct Reported;

/// What the workers of `watcher` run as; `None` where it asks for nothing.
pub(super) fn of_watcher(
    watcher: &Watcher,
    doubt: Option<&Doubt>,
    host: &dyn Host,
    findings: &mut Findings,
) -> Result<Option<Identity>, Reported> {
    if watcher.user.is_none() && watcher.group.is_none() && watcher.supplementary_groups.is_none() {
        return Ok(None);
    }
    let owner = format!("watcher `{}`", watcher.name.value);
    let user = watcher
        .user
        .as_ref()
        .map(|user| find_user(user, &owner, host, findings));
    let group = watcher
        .group
        .as_ref()
        .map(|group| find_group("group", group, &owner, host, findings));
    let supplementary = watcher.supplementary_groups.as_ref().map(|groups| {
        let mut ids = Vec::with_capacity(groups.len());
        let mut wrong = false;
        for group in groups {
            match find_group("supplementary_groups", group, &owner, host, findings) {
                Ok(id) if ids.contains(&id) => {}
                Ok(id) => ids.push(id),
                Err(Reported) => wrong = true,
            }
        }
        if wrong { Err(Reported) } else { Ok(ids) }
    });
    let (user, group, supplementary) = (
        user.transpose()?,
        group.transpose()?,
        supplementary.transpose()?,
    );
    let (uid, user) = match user {
        None => (None, None),
        Some(Found { uid, user }) => (Some(uid), user),
    };
    let gid = group.or(user.as_ref().map(|user| user.gid));
    if gid.is_none() && doubt.is_some_and(|doubt| doubt.is_about(&["group"])) {
        return Err(Reported);
    }
    if let (Some(uid), None, Some(at)) = (uid, gid, &watcher.user) {
        // To stay in the manager's group would leave a worker that was meant to be harmless in root's.
        findings.push(Finding::error(
            at.place,
            format!(
                "{owner}: user {uid} is not in the user database, so its group is not known; add `group`"
            ),
        ));
        return Err(Reported);
    }
    if !host.is_root() {
        warn_of_root(watcher, (uid, gid), host.own_ids(), findings);
    }
    let groups = match (supplementary, uid, gid) {
        (Some(groups), _, _) => Some(groups),
        // setgroups(2) is root's alone; without it the only user to become is one's own, whose groups are there already.
        (None, Some(_), Some(gid)) if host.is_root() => Some(match &user {
            Some(user) => host.groups_of(&user.name, gid),
            None => vec![gid],
        }),
        (None, _, _) => None,
    };
    Ok(Some(Identity {
        user,
        uid,
        gid,
        groups,
    }))
}

/// Owner and group of a unix socket's file. A user alone brings its own group, as in systemd.socket(5).
pub(super) fn of_socket(
    socket: &Socket,
    host: &dyn Host,
    findings: &mut Findings,
) -> (Option<u32>, Option<u32>) {
    if socket.user.is_none() && socket.group.is_none() {
        return (None, None);
    }
    let owner = format!("socket `{}`", socket.name.value);
    let user = socket
        .user
        .as_ref()
        .and_then(|user| find_user(user, &owner, host, findings).ok());
    let group = socket
        .group
        .as_ref()
        .and_then(|group| find_group("group", group, &owner, host, findings).ok());
    let own_group = user
        .as_ref()
        .and_then(|found| found.user.as_ref())
        .map(|user| user.gid);
    let (uid, gid) = (user.map(|found| found.uid), group.or(own_group));
    let own = host.own_ids();
    let at = socket.user.as_ref().or(socket.group.as_ref());
    if let Some(at) = at.filter(|_| !host.is_root() && !is_own((uid, gid), own)) {
        findings.push(Finding::warning(
            at.place,
            format!(
                "{owner}: to give its file to another user or group needs root, which the manager is not"
            ),
        ));
    }
    (uid, gid)
}

/// Whether these are what the manager is already, as far as they are asked for.
fn is_own((uid, gid): (Option<u32>, Option<u32>), own: (u32, u32)) -> bool {
    uid.is_none_or(|uid| uid == own.0) && gid.is_none_or(|gid| gid == own.1)
}

/// The id of a group by name or number.
pub(super) fn find_group(
    key: &str,
    group: &At<Principal>,
    owner: &str,
    host: &dyn Host,
    findings: &mut Findings,
) -> Result<u32, Reported> {
    match &group.value {
        Principal::Id(gid) => usable(*gid, key, group, owner, findings),
        Principal::Name(name) => host.group_by_name(name).ok_or_else(|| {
            let is_one_of_few = findings.errors() < FEW;
            findings.error_with(group.place, || {
                let hint = hint(name, is_one_of_few, &|| host.group_names());
                format!("{owner}: unknown group `{name}` in `{key}`{hint}")
            });
            Reported
        }),
    }
}

/// A user: by name always with its entry, by number perhaps without.
struct Found {
    uid: u32,
    user: Option<User>,
}

fn find_user(
    user: &At<Principal>,
    owner: &str,
    host: &dyn Host,
    findings: &mut Findings,
) -> Result<Found, Reported> {
    match &user.value {
        Principal::Id(uid) => {
            let uid = usable(*uid, "user", user, owner, findings)?;
            Ok(Found {
                uid,
                user: host.user_by_id(uid),
            })
        }
        Principal::Name(name) => match host.user_by_name(name) {
            Some(user) => Ok(Found {
                uid: user.uid,
                user: Some(user),
            }),
            None => {
                let is_one_of_few = findings.errors() < FEW;
                findings.error_with(user.place, || {
                    let hint = hint(name, is_one_of_few, &|| host.user_names());
                    format!("{owner}: unknown user `{name}`{hint}")
                });
                Err(Reported)
            }
        },
    }
}

/// Of more errors than these, no name is looked for any more: each look-up reads the database.
const FEW: usize = 1000;

fn hint(name: &str, is_one_of_few: bool, known: &dyn Fn() -> Vec<String>) -> String {
    let known = if is_one_of_few { known() } else { Vec::new() };
    unit::nearest(name, known.iter().map(String::as_str))
        .map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

/// An id that setresuid(2) and chown(2) do not take for "leave it as it is".
fn usable(
    id: u32,
    key: &str,
    at: &At<Principal>,
    owner: &str,
    findings: &mut Findings,
) -> Result<u32, Reported> {
    if id != u32::MAX {
        return Ok(id);
    }
    findings.push(Finding::error(
        at.place,
        format!(
            "{owner}: {id} in `{key}` is no id; ids end at {}",
            u32::MAX - 1
        ),
    ));
    Err(Reported)
}

fn warn_of_root(
    watcher: &Watcher,
    asked: (Option<u32>, Option<u32>),
    own: (u32, u32),
    findings: &mut Findings,
) {
    let groups = watcher.supplementary_groups.as_ref();
    let (uid, gid) = asked;
    // A user alone brings its group.
    let with_user = gid.filter(|_| watcher.group.is_none());
    let asked = [
        (
            "user",
            watcher.user.as_deref(),
            is_own((uid, with_user), own),
        ),
        ("group", watcher.group.as_deref(), is_own((None, gid), own)),
        (
            "supplementary_groups",
            groups.and_then(|groups| groups.first()),
            false,
        ),
    ];
    for (key, at, is_own) in asked {
        if let Some(at) = at.filter(|_| !is_own) {
            findings.push(Finding::warning(
                at.place,
                format!(
                    "watcher `{}`: `{key}` needs root, which the manager is not; its workers start only if this is what \
                     the manager runs as already",
                    watcher.name.value
                ),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{Identity, plan};
    use super::*;
    use crate::unit::{self, Severity};

    fn named(name: &str) -> At<Principal> {
        At::nowhere(Principal::Name(name.into()))
    }

    fn numbered(id: u32) -> At<Principal> {
        At::nowhere(Principal::Id(id))
    }

    fn identity(change: impl FnOnce(&mut unit::Watcher)) -> Option<Identity> {
        let mut made = watcher("web", "true");
        change(&mut made);
        planned(units([], [made])).watchers[0].identity.clone()
    }

    fn refusals(change: impl FnOnce(&mut unit::Watcher)) -> Vec<String> {
        let mut made = watcher("web", "true");
        change(&mut made);
        errors(units([], [made]))
    }

    #[test]
    fn who_asks_for_nothing_stays_what_the_manager_is() {
        assert_eq!(identity(|_| ()), None);
    }

    #[test]
    fn a_user_brings_its_group_and_its_supplementary_groups() {
        for user in [named("deploy"), numbered(1000)] {
            let found = identity(|w| w.user = Some(user.into())).expect("an identity");
            assert_eq!(found.user.expect("an entry").home, "/home/deploy");
            assert_eq!((found.uid, found.gid), (Some(1000), Some(1000)));
            assert_eq!(found.groups, Some(vec![1000, 998]));
        }
    }

    #[test]
    fn groups_that_are_written_win() {
        let found = identity(|w| {
            w.user = Some(named("deploy").into());
            w.group = Some(named("www").into());
            w.supplementary_groups = Some(vec![numbered(7), named("docker"), numbered(998)]);
        })
        .expect("an identity");
        assert_eq!(found.gid, Some(33));
        assert_eq!(found.groups, Some(vec![7, 998]));
    }

    #[test]
    fn a_group_alone_leaves_user_and_supplementary_groups() {
        let found = identity(|w| w.group = Some(numbered(4711).into())).expect("an identity");
        assert_eq!(
            found,
            Identity {
                user: None,
                uid: None,
                gid: Some(4711),
                groups: None
            }
        );
    }

    #[test]
    fn a_number_without_an_entry_needs_a_group_and_drops_roots_groups() {
        assert_eq!(
            refusals(|w| w.user = Some(numbered(4711).into())),
            [
                "watcher `web`: user 4711 is not in the user database, so its group is not known; add `group`"
            ]
        );
        let found = identity(|w| {
            w.user = Some(numbered(4711).into());
            w.group = Some(numbered(4712).into());
        })
        .expect("an identity");
        assert_eq!((found.uid, found.gid), (Some(4711), Some(4712)));
        assert_eq!(found.groups, Some(vec![4712]));
    }

    #[test]
    fn unknown_names_are_all_reported() {
        let found = refusals(|w| {
            w.user = Some(named("depoly").into());
            w.group = Some(named("wwww").into());
            w.supplementary_groups = Some(vec![named("x"), numbered(u32::MAX), named("docker")]);
        });
        assert_eq!(
            found,
            [
                "watcher `web`: unknown user `depoly`; did you mean `deploy`?",
                "watcher `web`: unknown group `wwww` in `group`; did you mean `www`?",
                "watcher `web`: unknown group `x` in `supplementary_groups`",
                "watcher `web`: 4294967295 in `supplementary_groups` is no id; ids end at 4294967294",
            ]
        );
    }

    #[test]
    fn a_socket_of_a_user_is_of_its_group_too() {
        let mut owned = socket("a");
        owned.user = Some(named("deploy"));
        let mut both = socket("b");
        both.user = Some(numbered(4711));
        both.group = Some(named("www"));
        let plan = planned(units([owned, both], [watcher("w", "true")]));
        let owners: Vec<_> = plan.sockets.iter().map(|s| (s.uid, s.gid)).collect();
        assert_eq!(owners, [(Some(1000), Some(1000)), (Some(4711), Some(33))]);
    }

    #[test]
    fn unknown_owners_and_control_groups_are_errors() {
        let mut owned = socket("a");
        owned.user = Some(named("nobody-here"));
        owned.group = Some(named("nor-here"));
        let mut all = units([owned], [watcher("w", "true")]);
        all.manager.control_group = Some(named("wheel"));
        let mut found = errors(all);
        found.sort();
        assert_eq!(
            found,
            [
                "`[manager]`: unknown group `wheel` in `control_group`",
                "socket `a`: unknown group `nor-here` in `group`",
                "socket `a`: unknown user `nobody-here`",
            ]
        );
    }

    #[test]
    fn without_root_another_user_is_a_warning_and_groups_stay() {
        let mut made = watcher("web", "true");
        made.user = Some(named("root").into());
        let mut host = Machine::new();
        host.root = false;
        let (plan, findings) = plan(units([], [made]), &host);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].severity, Severity::Warning);
        assert!(findings[0].message.contains("`user` needs root"));
        let identity = plan.expect("a plan").watchers[0].identity.clone();
        assert_eq!(identity.expect("an identity").groups, None);
    }

    #[test]
    fn without_root_to_ask_for_what_the_manager_is_is_no_warning() {
        let mut host = Machine::new();
        host.root = false;
        for (user, group, count) in [
            (Some("deploy"), None, 0),
            (Some("deploy"), Some("deploy"), 0),
            (None, Some("deploy"), 0),
            (Some("deploy"), Some("www"), 2),
            (None, Some("www"), 2),
            (Some("root"), Some("deploy"), 2),
        ] {
            let mut made = watcher("web", "true");
            let mut owned = socket("s");
            made.use_sockets = true;
            let [user, group] = [user, group].map(|it| it.map(named));
            (made.user, made.group) = (user.clone().map(Box::new), group.clone().map(Box::new));
            (owned.user, owned.group) = (user.clone(), group.clone());
            let (_, findings) = plan(units([owned], [made]), &host);
            // The socket's one, and the keys of the watcher that need root.
            assert_eq!(findings.len(), count, "{user:?} {group:?}: {findings:#?}");
        }
    }
}
