//! The user and group databases.
//!
//! /etc/passwd and /etc/group are read here, which needs no C library's help and so works in a static binary and costs
//! nothing. What they do not know is asked of the C library (NSS: LDAP, systemd-userdb and the like), where the binary
//! is a dynamic one: a static one can't load NSS's plugins.

use super::insert_in_order;
use std::fs;

/// An entry of the user database.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    pub shell: String,
}

/// The user of this name.
pub fn user_by_name(name: &str) -> Option<User> {
    users(&read("/etc/passwd"))
        .find(|user| user.name == name)
        .or_else(|| nss::user_by_name(name))
}

/// The user of this id; the first, if several names have it.
pub fn user_by_uid(uid: u32) -> Option<User> {
    users(&read("/etc/passwd"))
        .find(|user| user.uid == uid)
        .or_else(|| nss::user_by_uid(uid))
}

/// The id of the group of this name.
pub fn group_by_name(name: &str) -> Option<u32> {
    groups(&read("/etc/group"))
        .find(|group| group.name == name)
        .map(|group| group.gid)
        .or_else(|| nss::group_by_name(name))
}

/// The names of the users of this machine itself: a directory service may have any number of others.
pub fn user_names() -> Vec<String> {
    users(&read("/etc/passwd")).map(|user| user.name).collect()
}

/// The names of the groups of this machine itself.
pub fn group_names() -> Vec<String> {
    groups(&read("/etc/group"))
        .map(|group| group.name.to_owned())
        .collect()
}

/// The groups that `user` is in, in order of id, `gid` among them.
pub fn groups_of(user: &str, gid: u32) -> Vec<u32> {
    let mut ids = vec![gid];
    let file = read("/etc/group");
    let own = groups(&file).filter(|group| group.members.contains(&user));
    own.for_each(|group| insert_in_order(&mut ids, group.gid));
    if groups_come_from_elsewhere(&read("/etc/nsswitch.conf")) {
        let others = nss::groups_of(user, gid).into_iter();
        others.for_each(|gid| insert_in_order(&mut ids, gid));
    }
    ids
}

/// The user that this process runs as, for access to its own things.
pub fn getuid() -> u32 {
    nix::unistd::getuid().as_raw()
}

/// The user that this process runs as, for its rights.
pub fn geteuid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// The group, likewise.
pub fn getegid() -> u32 {
    nix::unistd::getegid().as_raw()
}

/// A container may well lack the file: then it has no users.
fn read(path: &str) -> String {
    fs::read(path)
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .unwrap_or_default()
}

/// passwd(5): `name:password:UID:GID:comment:home:shell`. Lines that are otherwise are passed over, as libc does.
fn users(passwd: &str) -> impl Iterator<Item = User> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = own_name(fields.next()?)?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        let (home, shell) = (fields.nth(1)?, fields.next().unwrap_or("/bin/sh"));
        Some(User {
            name: name.into(),
            uid,
            gid,
            home: home.into(),
            shell: shell.into(),
        })
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: Vec<&'a str>,
}

/// group(5): `name:password:GID:member,member`.
fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = own_name(fields.next()?)?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or_default().split(',').collect(),
        })
    })
}

/// Not a comment, nor a `+` or `-` line of NIS.
fn own_name(name: &str) -> Option<&str> {
    (!name.is_empty() && !name.starts_with(['#', '+', '-'])).then_some(name)
}

/// Whether nsswitch.conf(5) names another source of group memberships than /etc/group. Asking the C library costs
/// memory for good, since it loads its plugins, so it is not asked where the answer is known.
fn groups_come_from_elsewhere(nsswitch: &str) -> bool {
    let sources = |database: &str| {
        nsswitch.lines().find_map(|line| {
            let (name, sources) = line.split('#').next()?.split_once(':')?;
            (name.trim() == database).then_some(sources)
        })
    };
    let Some(sources) = sources("initgroups").or_else(|| sources("group")) else {
        return false;
    };
    // `[NOTFOUND=return]` and the like are no sources.
    let mut sources = sources
        .split_whitespace()
        .filter(|source| !source.contains(['[', ']', '=']));
    sources.any(|source| !matches!(source, "files" | "compat" | "altfiles"))
}

#[cfg(not(target_feature = "crt-static"))]
mod nss {
    use std::ffi::CString;

    pub fn user_by_name(name: &str) -> Option<super::User> {
        nix::unistd::User::from_name(name)
            .ok()
            .flatten()
            .and_then(convert)
    }

    pub fn user_by_uid(uid: u32) -> Option<super::User> {
        nix::unistd::User::from_uid(uid.into())
            .ok()
            .flatten()
            .and_then(convert)
    }

    pub fn group_by_name(name: &str) -> Option<u32> {
        nix::unistd::Group::from_name(name)
            .ok()
            .flatten()
            .map(|group| group.gid.as_raw())
    }

    pub fn groups_of(user: &str, gid: u32) -> Vec<u32> {
        let Ok(user) = CString::new(user) else {
            return Vec::new();
        };
        let groups = nix::unistd::getgrouplist(&user, gid.into()).unwrap_or_default();
        groups.into_iter().map(|group| group.as_raw()).collect()
    }

    fn convert(user: nix::unistd::User) -> Option<super::User> {
        Some(super::User {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            home: user.dir.into_os_string().into_string().ok()?,
            shell: user.shell.into_os_string().into_string().ok()?,
        })
    }
}

#[cfg(target_feature = "crt-static")]
mod nss {
    pub fn user_by_name(_: &str) -> Option<super::User> {
        None
    }

    pub fn user_by_uid(_: u32) -> Option<super::User> {
        None
    }

    pub fn group_by_name(_: &str) -> Option<u32> {
        None
    }

    pub fn groups_of(_: &str, _: u32) -> Vec<u32> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "# comment:x:1:1::/:/bin/sh\nroot:x:0:0:root:/root:/bin/bash\n\nbroken\n+nis::::::\n\
                          www-data:x:33:33:www:/var/www:/usr/sbin/nologin\nbad:x:-1:33::/:/bin/sh\nshort:x:7:8::/home/short\n\
                          toor:x:0:0::/root:\n";

    #[test]
    fn users_are_read_and_what_is_no_user_is_passed_over() {
        let users: Vec<User> = users(PASSWD).collect();
        let names: Vec<&str> = users.iter().map(|user| user.name.as_str()).collect();
        assert_eq!(names, ["root", "www-data", "short", "toor"]);
        let www = User {
            name: "www-data".into(),
            uid: 33,
            gid: 33,
            home: "/var/www".into(),
            shell: "/usr/sbin/nologin".into(),
        };
        assert_eq!(users[1], www);
        assert_eq!(
            (users[2].home.as_str(), users[2].shell.as_str()),
            ("/home/short", "/bin/sh")
        );
    }

    #[test]
    fn groups_are_read_with_their_members() {
        let text =
            "root:x:0:\nadm:x:4:syslog,ann\n#old:x:5:ann\nstaff:x:50:ann\nbad:x:many:ann\nlone:x:9";
        let of_ann: Vec<u32> = groups(text)
            .filter(|group| group.members.contains(&"ann"))
            .map(|group| group.gid)
            .collect();
        assert_eq!(of_ann, [4, 50]);
        assert_eq!(
            groups(text).map(|group| group.name).collect::<Vec<_>>(),
            ["root", "adm", "staff", "lone"]
        );
    }

    #[test]
    fn the_library_is_asked_for_groups_only_where_they_come_from_elsewhere() {
        assert!(!groups_come_from_elsewhere(""));
        assert!(!groups_come_from_elsewhere(
            "passwd: files ldap\ngroup:\tfiles\n"
        ));
        assert!(groups_come_from_elsewhere(
            "group: files [SUCCESS=merge] sss\n"
        ));
        assert!(!groups_come_from_elsewhere(
            "group: files sss\ninitgroups: files # sss\n"
        ));
        assert!(!groups_come_from_elsewhere(
            "# group: ldap\ngroup: files [NOTFOUND=return]\n"
        ));
    }

    #[test]
    fn this_machines_root_is_found_by_name_and_by_number() {
        let Some(root) = user_by_name("root") else {
            eprintln!("skipped: this machine has no user root");
            return;
        };
        assert_eq!(
            (root.uid, user_by_uid(0).map(|user| user.uid)),
            (0, Some(0))
        );
        assert!(groups_of("root", root.gid).contains(&root.gid));
        assert_eq!(getuid(), nix::unistd::getuid().as_raw());
        assert_eq!(geteuid(), nix::unistd::geteuid().as_raw());
    }

    #[test]
    fn nobody_is_made_up() {
        assert_eq!(user_by_name("no-such-user"), None);
        assert_eq!(user_by_name(""), None);
        assert_eq!(user_by_name("root:x"), None);
        assert_eq!(user_by_uid(3_999_999_999), None);
        assert_eq!(group_by_name("no-such-group"), None);
        assert_eq!(groups_of("no-such-user", 7), [7]);
    }
}
