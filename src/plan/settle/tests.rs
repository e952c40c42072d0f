//! What is settled of a watcher, and what is refused.

use super::super::testing::*;
use super::super::{Plan, Watcher, plan};
use super::*;
use crate::unit::{Address, NotifyAccess, Output, Severity, SocketKind, Stdin, WatcherKind, Words};
use proptest::prelude::*;
use std::time::Duration;

fn web() -> [unit::Socket; 3] {
    [socket("admin"), socket("Metrics"), socket("web")]
}

/// The plan of one watcher with the sockets admin, Metrics and web.
fn settled(cmd: &str, change: impl FnOnce(&mut unit::Watcher)) -> Watcher {
    let mut made = watcher("w", cmd);
    change(&mut made);
    let plan = planned(units(web(), [made]));
    Watcher::clone(&plan.watchers[0])
}

fn passed(cmd: &str, change: impl FnOnce(&mut unit::Watcher)) -> Vec<String> {
    let watcher = settled(cmd, change);
    watcher.sockets.into_iter().map(|s| s.name).collect()
}

/// The errors of one watcher with the sockets admin, Metrics and web.
fn refused(cmd: &str, change: impl FnOnce(&mut unit::Watcher)) -> Vec<String> {
    let mut made = watcher("w", cmd);
    change(&mut made);
    let found = errors(units(web(), [made]));
    let strip = |message: &String| message.replacen("watcher `w`: ", "", 1);
    found.iter().map(strip).collect()
}

/// The warnings about one watcher with the socket web.
fn warned(cmd: &str, change: impl FnOnce(&mut unit::Watcher)) -> Vec<String> {
    let mut made = watcher("w", cmd);
    change(&mut made);
    warnings(units([socket("web")], [made]))
}

fn list(names: &[&str]) -> Option<Vec<At<String>>> {
    Some(names.iter().map(|name| at(name)).collect())
}

fn words(words: &[&str]) -> At<Words> {
    At::nowhere(Words::List(words.iter().map(|w| at(w)).collect()))
}

fn text(text: &str) -> At<Words> {
    At::nowhere(Words::Text(text.into()))
}

#[test]
fn listed_sockets_are_passed_in_their_order() {
    let listed = passed("x $(circus.socket.admin)", |w| {
        w.sockets = list(&["web", "admin"]);
    });
    assert_eq!(listed, ["web", "admin"]);
    assert_eq!(passed("x", |w| w.sockets = list(&[])), [""; 0]);
}

#[test]
fn use_sockets_passes_all_in_order_of_name() {
    assert_eq!(
        passed("x", |w| w.use_sockets = true),
        ["Metrics", "admin", "web"]
    );
}

#[test]
fn without_either_key_the_sockets_that_are_referred_to_are_passed_in_order_of_first_reference() {
    let found = passed(
        "x $(circus.sockets.METRICS) ((circus.socket.metrics))",
        |w| {
            w.args = Some(words(&["-a", "$(circus.socket.web)"]).into());
            w.env = env(&[("A", "$(circus.socket.admin)")]);
        },
    );
    assert_eq!(found, ["Metrics", "web", "admin"]);
    let by_env = passed("x", |w| w.env = env(&[("NGINX", "$(circus.socket.web);")]));
    assert_eq!(by_env, ["web"]);
    let by_executable = passed("x $(circus.socket.web)", |w| {
        w.executable = Some(at("/bin/x$(circus.socket.admin)").into());
        w.env = env(&[("A", "$(circus.socket.metrics)")]);
    });
    assert_eq!(by_executable, ["web", "admin", "Metrics"]);
    assert_eq!(passed("x", |_| ()), [""; 0]);
}

#[test]
fn a_stdin_socket_is_listened_on_and_passed_only_if_listed() {
    let alone = settled("x $(circus.socket.web)", |w| {
        w.stdin_socket = Some(at("web").into())
    });
    assert_eq!(alone.sockets, []);
    assert_eq!(alone.listens, ["web"]);
    let listed = settled("x", |w| {
        w.stdin_socket = Some(at("web").into());
        w.sockets = list(&["admin", "web"]);
    });
    assert_eq!(listed.sockets.len(), 2);
    assert_eq!(listed.listens, ["admin", "web"]);
}

#[test]
fn wrong_sockets_are_refused() {
    let found = refused("x", |w| {
        w.sockets = list(&["wbe", "web", "web", "metrics"]);
        w.stdin_socket = Some(at("nothing").into());
    });
    assert_eq!(
        found,
        [
            "unknown socket `nothing` in `stdin_socket`",
            "unknown socket `wbe` in `sockets`; did you mean `web`?",
            "socket `web` is in `sockets` twice",
            "unknown socket `metrics` in `sockets`; did you mean `Metrics`?",
        ]
    );
    assert_eq!(
        refused("x $(circus.socket.admin)", |w| w.sockets = list(&["web"])),
        [
            "socket `admin` is not passed to the worker, so `$(circus.socket.admin)` has no fd to name; add it to \
             `sockets` (in `cmd`)"
        ]
    );
    assert_eq!(
        refused("x $(circus.socket.wbe)", |_| ()),
        ["unknown socket `wbe` in `$(circus.socket.wbe)`; did you mean `web`? (in `cmd`)"]
    );
    assert_eq!(
        refused("x", |w| w.working_dir =
            Some(at("/srv/$(circus.socket.web)").into()))
        .len(),
        1,
        "a folder's name passes no socket"
    );
}

#[test]
fn contradictions_are_refused_all_at_once() {
    let found = refused("x", |w| {
        w.sockets = list(&["web"]);
        w.use_sockets = true;
        w.stdin_socket = Some(at("web").into());
        w.stdin = Stdin::File(at("in"));
        w.kind = WatcherKind::Notify;
        w.watchdog = Some(Duration::from_secs(1));
        w.notify_access = NotifyAccess::None;
        w.singleton = true;
        w.numprocesses = At::nowhere(2);
        w.env = env(&[
            ("", "x"),
            ("A=B", "x"),
            ("LISTEN_FDS", "1"),
            ("TENTPOLE_WID", "1"),
        ]);
    });
    assert_eq!(found.len(), 9, "{found:#?}");
    let on_demand = refused("x", |w| w.on_demand = At::nowhere(true));
    assert_eq!(
        on_demand,
        ["`on_demand` waits for traffic, but the watcher has no socket; name one in `sockets`"]
    );
}

#[test]
fn on_demand_takes_any_of_its_sockets() {
    let wait = |w: &mut unit::Watcher| w.on_demand = At::nowhere(true);
    settled("x $(circus.socket.web)", wait);
    settled("x", |w| {
        wait(w);
        w.stdin_socket = Some(at("web").into());
    });
}

#[test]
fn unknown_substitutions_name_the_nearest() {
    for (cmd, wanted) in [
        (
            "x $(circus.numproceses)",
            "unknown substitution `$(circus.numproceses)`; did you mean `numprocesses`? (in `cmd`)",
        ),
        (
            "x ((circus.WIDD))",
            "unknown substitution `((circus.WIDD))`; did you mean `wid`? (in `cmd`)",
        ),
        (
            "x $(circus.sokcet.web)",
            "unknown substitution `$(circus.sokcet.web)`; did you mean `socket`? (in `cmd`)",
        ),
        (
            "x $(circus.web)",
            "unknown substitution `$(circus.web)`; did you mean `$(circus.socket.web)`? (in `cmd`)",
        ),
        (
            "x $(circus.home)",
            "unknown substitution `$(circus.home)`; did you mean `$(circus.env.home)`? (in `cmd`)",
        ),
        (
            "x $(circus.numproc)",
            "unknown substitution `$(circus.numproc)`; did you mean `numprocesses`? (in `cmd`)",
        ),
        (
            "x $(circus.working)",
            "unknown substitution `$(circus.working)`; did you mean `working_dir`? (in `cmd`)",
        ),
        (
            "x $(circus.environ.HOME)",
            "unknown substitution `$(circus.environ.HOME)`; did you mean `env`? (in `cmd`)",
        ),
        (
            "x $(circus.)",
            "unknown substitution `$(circus.)` (in `cmd`)",
        ),
        (
            "x $(circus.cmd)",
            "`$(circus.cmd)` is not a single value, and can't be filled in (in `cmd`)",
        ),
        (
            "x $(circus.socket)",
            "`$(circus.socket)` lacks a name: `$(circus.socket.NAME)` (in `cmd`)",
        ),
        (
            "x $(circus.nice)",
            "`$(circus.nice)`: the watcher sets no `nice` (in `cmd`)",
        ),
        (
            "x $(circus.env.PAHT)",
            "`$(circus.env.PAHT)` is not in the worker's environment; did you mean `PATH`? (in `cmd`)",
        ),
        (
            "x $(circus.env.LISTEN_PID)",
            "`$(circus.env.LISTEN_PID)` is known to the worker alone, when it runs (in `cmd`)",
        ),
        (
            "x $(circus.wid",
            "`$(circus.wid` has no `)`; a name with blanks needs quotes around its word (in `cmd`)",
        ),
        (
            "x $(circus.socket.my web)",
            "`$(circus.socket.my` has no `)`; a name with blanks needs quotes around its word (in `cmd`)",
        ),
    ] {
        assert_eq!(refused(cmd, |_| ()), [wanted]);
    }
}

#[test]
fn all_mistakes_of_all_texts_are_found() {
    let found = refused("x $(circus.a) $(circus.b)", |w| {
        w.args = Some(text("$(circus.c").into());
        w.env = env(&[("A", "$(circus.d)"), ("B", "\0")]);
        w.working_dir = Some(at("$(circus.e)").into());
        w.stdout = Output::File(at("$(circus.f)"));
        w.stderr = Output::File(at(""));
    });
    let keys = [
        "cmd",
        "cmd",
        "args",
        "env.A",
        "env.B",
        "working_dir",
        "stdout",
        "stderr",
    ];
    assert_eq!(found.len(), keys.len(), "{found:#?}");
    for (message, key) in found.iter().zip(keys) {
        assert!(message.contains(&format!("`{key}`")), "{message}");
    }
}

#[test]
fn a_command_must_have_a_first_word() {
    for cmd in ["", "  ", "# nothing"] {
        assert_eq!(
            refused(cmd, |_| ()),
            ["`cmd` is empty: there is nothing to run"]
        );
    }
    assert_eq!(refused("  ", |w| w.shell = true).len(), 1);
    assert_eq!(refused("", |w| w.cmd = words(&[])).len(), 1);
    assert_eq!(
        refused("'' x", |_| ()),
        ["the first word of `cmd` is empty"]
    );
    assert_eq!(
        refused("'x", |w| w.args = Some(text("\"y").into())),
        [
            "`cmd` has a quote that is never closed",
            "`args` has a quote that is never closed"
        ]
    );
}

#[test]
fn variables_are_known_from_where_they_are_seen() {
    settled(
        "x $(circus.env.path) $(circus.env.A) $(circus.env.TENTPOLE_WID)",
        |w| {
            w.env = env(&[("A", "1"), ("B", "$(circus.env.a)")]);
        },
    );
    let forward = refused("x", |w| {
        w.env = env(&[
            ("A", "$(circus.env.A)"),
            ("B", "$(circus.env.C)"),
            ("C", "1"),
        ]);
    });
    assert_eq!(forward.len(), 2, "{forward:?}");
    assert!(forward[0].contains("is not in the worker's environment"));
    let order = "`$(circus.env.C)` is not known yet: `env` is filled in in order of name, and `C` comes later";
    assert!(forward[1].starts_with(order), "{forward:?}");
    let bare = refused("x $(circus.env.PATH) $(circus.env.LANG)", |w| {
        w.copy_env = false
    });
    assert_eq!(bare.len(), 1);
    let user = |w: &mut unit::Watcher| {
        w.copy_env = false;
        w.user = Some(At::nowhere(unit::Principal::Name("deploy".into())).into());
    };
    settled("x $(circus.env.HOME)/bin", user);
    settled("x $(circus.env.ANYTHING)", |w| {
        w.env_file = Some(at("/e").into())
    });
    settled("x $(circus.env.LISTEN_FDS)", |w| w.sockets = list(&["web"]));
    assert_eq!(refused("x $(circus.env.LISTEN_FDS)", |_| ()).len(), 1);
}

#[test]
fn options_that_refer_to_themselves_are_refused() {
    let found = refused("x $(circus.working_dir)", |w| {
        w.working_dir = Some(at("$(circus.executable)/x").into());
        w.executable = Some(at("$(circus.working_dir)/x").into());
    });
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("refers to itself"));
    let one = refused("x", |w| w.stdout = Output::File(at("$(circus.stdout)")));
    assert_eq!(one.len(), 1);
}

#[test]
fn options_that_refer_to_each_other_too_often_are_refused() {
    let found = refused("x", |w| {
        w.executable = Some(at(&"$(circus.working_dir)".repeat(200)).into());
        w.working_dir = Some(at(&"$(circus.virtualenv)".repeat(200)).into());
        w.virtualenv = Some(at(&"$(circus.name)$(circus.wid)".repeat(200)).into());
    });
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("10000 places"));
}

#[test]
fn an_env_file_is_named_by_the_managers_variables_only() {
    let made = settled("x", |w| {
        w.env = env(&[("A", "b")]);
        w.env_file = Some(at("-$(circus.env.home)/$(circus.wid).env").into());
    });
    assert_eq!(made.env_file(3), Some(("/root/3.env".into(), true)));
    let found = refused("x", |w| {
        w.env = env(&[("A", "b")]);
        w.env_file = Some(at("$(circus.env.A)").into());
    });
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("before the file is read"), "{found:?}");
    assert_eq!(refused("x", |w| w.env_file = Some(at("-").into())).len(), 1);
}

#[test]
fn the_environment_of_the_manager_is_filled_in_once() {
    let mut all = units([], [watcher("w", "true")]);
    all.manager.env = env(&[("A", "$(circus.env.home)/a"), ("B", "$(circus.env.A)/b")]);
    let plan = planned(all.clone());
    assert_eq!(
        plan.manager.env,
        env(&[("A", "/root/a"), ("B", "/root/a/b")])
    );
    all.manager.env = env(&[
        ("A", "$(circus.wid)"),
        ("B", "$(circus.env.NOPE)"),
        ("C", "$(circus.env.X"),
        ("D", "\0"),
        ("WATCHDOG_PID", "1"),
    ]);
    assert_eq!(errors(all).len(), 5);
}

#[test]
fn a_shell_that_keeps_the_sockets_to_itself_is_warned_of() {
    let shell = |w: &mut unit::Watcher| w.shell = true;
    let found = warned("x $(circus.socket.web)", shell);
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("`exec`"), "{found:?}");
    assert_eq!(warned("exec x $(circus.socket.web)", shell), [""; 0]);
    assert_eq!(warned("executor $(circus.socket.web)", shell).len(), 1);
    let silent = warned("x $(circus.socket.web)", |w| {
        w.shell = true;
        w.listen_fds = false;
    });
    assert_eq!(silent, [""; 0]);
}

#[test]
fn sockets_that_nobody_hears_of_are_warned_of() {
    let unheard = warned("x", |w| {
        w.sockets = list(&["web"]);
        w.listen_fds = false;
    });
    assert!(
        unheard[0].contains("nothing tells the worker"),
        "{unheard:?}"
    );
    let unused = warned("x", |_| ());
    assert_eq!(
        unused,
        ["socket `web` is bound, but no watcher uses it: its clients would wait for ever"]
    );
}

#[test]
fn two_sockets_of_one_fd_name_are_warned_of_and_a_colon_is_refused() {
    let mut named = web();
    named[0].fd_name = Some("web".into());
    let mut made = watcher("w", "x");
    made.use_sockets = true;
    assert_eq!(
        warnings(units(named.clone(), [made.clone()])),
        ["watcher `w`: sockets `admin` and `web` are both called `web` in LISTEN_FDNAMES"]
    );
    named[0].fd_name = Some("a:b".into());
    let found = errors(units(named, [made]));
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("`a:b` can't stand in LISTEN_FDNAMES"));
}

#[test]
fn what_fails_in_the_worker_alone_is_warned_of() {
    let with = |folder: &str| {
        warned("x $(circus.socket.web)", |w| {
            w.virtualenv = Some(at(folder).into())
        })
    };
    assert_eq!(with("there"), [""; 0]);
    assert_eq!(
        with("$(circus.wid)/missing"),
        [""; 0],
        "it is another for each"
    );
    let [told] = &*with("missing") else {
        panic!("one warning");
    };
    assert!(told.contains("`virtualenv`: there is no folder"), "{told}");
    let with = |soft: u64| {
        warned("x $(circus.socket.web)", |w| {
            let (soft, hard) = (Some(soft), None);
            w.rlimits = vec![(unit::Resource::Nofile, unit::Limit { soft, hard })];
        })
    };
    assert_eq!(with(5), [""; 0]);
    assert_eq!(with(4).len(), 1);
}

#[test]
fn an_env_file_that_could_not_be_read_now_is_warned_of_and_not_refused() {
    let of = |file: &str| {
        found(&format!(
            "[watcher.w]\ncmd = \"x\"\nenv_file = \"{file}\"\n"
        ))
    };
    for good in ["/there", "-/missing", "/secret", "/$(circus.wid)/missing"] {
        assert_eq!(of(good), [""; 0], "{good}");
    }
    let told = |file: &str, fault: &str| {
        let wanted = format!("3:12: warning: watcher `w`: `env_file` {fault}");
        assert_eq!(of(file), [wanted]);
    };
    told(
        "/missing",
        "/missing is not there now, and without it no worker can be started; a `-` before the path allows it to be missing",
    );
    told(
        "-/bad",
        "/bad can't be read, line 2: `B` is not KEY=VALUE; a comment starts with `#`",
    );
    told("/folder", "/folder can't be read: not a regular file");
}

#[test]
fn useless_options_are_warned_of() {
    let found = warned("x $(circus.socket.web)", |w| {
        w.restart_delay = Duration::from_secs(60);
        w.ready_delay = Duration::from_secs(90);
    });
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn a_finding_stands_where_the_mistake_is() {
    let text = r#"[watcher.w]
cmd = "prog $(circus.nme) \"$(circus.nme)\" $(circus.nme)"
args = [
  "--a",
  "$(circus.wid)$(circus.wdi)",
]
env = { A = "\u00e4$(circus.nme)" }
env_file = "-$(circus.env.NONE_SUCH)"
stdin = "./$(circus.foo)"
stdout = { file = '$(circus.nme).log' }
stderr.file = "$(circus.socket.q).log"
[watcher.v]
cmd = """
prog \
  $(circus.nme)
  $(circus.wdi"""
[watcher.s]
shell = true
cmd = ["true",
  "it's$(circus.nme)"]
shell_args = '''
$(circus.nme)'''
[watcher.u]
cmd = "prog"
stdout = { file = "$(circus.stdout)" }
working_dir = "/x/$(circus.virtualenv)"
virtualenv = "$(circus.working_dir)"
executable = "$(circus.stdout)"
[manager]
env = { A = "\u00e4$(circus.env.PATH)$(circus.env.NONE_SUCH)" }
"#;
    let found = found(text);
    let places: Vec<_> = (found.iter())
        .map(|it| it.split(": ").next().unwrap_or_default())
        .collect();
    let wanted = [
        "2:13", "2:29", "2:45", "5:17", "7:20", "8:14", "9:12", "10:20", "11:16", "15:3", "16:3",
        "20:8", "22:1", "25:19", "26:15", "30:38",
    ];
    assert_eq!(places, wanted, "{found:#?}");
}

#[test]
fn very_many_mistakes_in_one_value_are_found_in_time() {
    let words = " \\t$(circus.nme)".repeat(100_000);
    let found = found(&format!("[watcher.w]\ncmd = \"x{words}\"\n"));
    assert_eq!(found.len(), 101);
    assert!(found[99].starts_with("2:1596: "), "{}", found[99]);
    assert!(found[100].contains("and 99900 more errors"));
}

#[test]
fn one_mistake_is_told_once() {
    assert_eq!(
        found("[watcher.w]\ncmd = \"x\"\nshell_args = \"a\"\n"),
        ["3:1: warning: `shell_args` of `watcher.w` has no effect without `shell = true`"]
    );
}

#[test]
fn arguments_behind_a_shell_text_that_can_not_be_followed_are_refused() {
    for cmd in ["echo 'a", "cat <<x\nx", "echo a # b", "echo `date`"] {
        let found = refused(cmd, |w| {
            w.shell = true;
            w.args = Some(text("b").into());
        });
        assert_eq!(found.len(), 1, "{cmd}");
    }
}

#[test]
fn ten_thousand_of_each_are_planned_with_and_without_mistakes() {
    let sockets: Vec<unit::Socket> = (0..10_000)
        .map(|n| {
            let mut made = socket(&format!("s{n}"));
            made.address = At::nowhere(Address::Port(1 + n));
            made.kind = SocketKind::Dgram;
            made
        })
        .collect();
    let watchers = |cmd: &dyn Fn(u32) -> String| -> Vec<unit::Watcher> {
        (0..10_000)
            .map(|n| watcher(&format!("w{n}"), &cmd(n)))
            .collect()
    };
    let right = watchers(&|n| format!("x $(circus.socket.s{n})"));
    let plan: Plan = planned(units(sockets.clone(), right));
    assert_eq!(plan.watchers.len(), 10_000);
    let wrong = watchers(&|n| format!("x $(circus.socket.wrong{n})"));
    let (_, findings) = super::super::plan(units(sockets, wrong), &Machine::new());
    let refused = findings.iter().filter(|f| f.severity == Severity::Error);
    assert_eq!(refused.count(), 10_000);
}

proptest! {
    #[test]
    fn any_text_anywhere_gets_a_plan_or_findings(
        texts in prop::collection::vec(
            "([$(]{1,2}circus[.](wid|name|env.(A|HOME)|socket.(web|x)|stdout|working_dir|nice|)[)]{0,2}|['\" \\\\#\n$`\0/-]|\\PC){0,8}",
            10,
        ),
        shell: bool,
        as_list: bool,
    ) {
        let mut made = watcher("w", &texts[0]);
        let command = |n: usize| if as_list { words(&[&texts[n], &texts[0]]) } else { text(&texts[n]) };
        made.shell = shell;
        made.cmd = command(0);
        made.args = Some(command(1).into());
        made.shell_args = Some(command(2).into());
        made.executable = Some(at(&texts[3]).into());
        made.env = env(&[("A", &texts[4]), ("B", &texts[5])]);
        made.working_dir = Some(at(&texts[6]).into());
        made.stdout = Output::File(at(&texts[7]));
        made.virtualenv = Some(at(&texts[8]).into());
        made.env_file = Some(at(&texts[9]).into());
        let machine = Machine::new();
        let (plan, findings) = plan(units(web(), [made]), &machine);
        let refused = findings.iter().any(|f| f.severity == Severity::Error);
        prop_assert_eq!(plan.is_none(), refused);
        for worker in plan.iter().flat_map(|plan| plan.workers(&machine, &|_| Ok("A=1".into()))) {
            // What can still go wrong is a sentence too.
            if let Err(why) = worker {
                prop_assert!(why.starts_with("watcher `w`: "));
            }
        }
    }
}
