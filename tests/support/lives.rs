//! What must outlive a reload, an apply, an upgrade or the manager itself: pids and listeners, compared before and after.

use super::{Manager, is_alive, kill, poll, start_time, words, write_units};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

/// A running worker, told from every other that there has ever been.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worker {
    pub wid: u64,
    pub generation: u64,
    pub pid: i32,
    pub started: u64,
}

/// Everything whose identity counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// By watcher.
    pub workers: BTreeMap<String, Vec<Worker>>,
    /// Inodes of listening sockets, by socket unit.
    pub listeners: BTreeMap<String, Vec<u64>>,
    /// By watcher.
    pub restarts: BTreeMap<String, u64>,
}

impl Snapshot {
    /// The pids of a watcher's workers.
    pub fn pids(&self, watcher: &str) -> Vec<i32> {
        self.workers[watcher]
            .iter()
            .map(|worker| worker.pid)
            .collect()
    }
}

impl Manager {
    /// The pid of the manager itself, which is the child of a keeper if there is one. It is known before it answers.
    pub fn manager_pid(&self) -> i32 {
        poll(|| self.managers().first().copied()).expect("there is a manager")
    }

    fn managers(&self) -> Vec<i32> {
        let keeper = self.pid();
        let path = format!("/proc/{keeper}/task/{keeper}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok());
        children
            .filter(|pid| {
                // A worker is another program, but for the moment before its exec.
                let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                is_alive(*pid)
                    && command
                        == std::fs::read(format!("/proc/{keeper}/cmdline")).unwrap_or_default()
            })
            .collect()
    }

    /// Kills the manager, and waits until another one answers. The answer is its pid.
    pub fn crash(&self) -> i32 {
        let old = self.manager_pid();
        kill(old, libc::SIGKILL);
        self.wait_for_manager_after(old)
    }

    /// Waits until another manager than this one answers.
    pub fn wait_for_manager_after(&self, old: i32) -> i32 {
        let new = poll(|| {
            // The old one may have died with the question in its queue.
            let output = self.cli(&["status", "--json"]);
            let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            let pid = status["manager"]["pid"].as_i64()? as i32;
            (pid != old).then_some(pid)
        });
        new.unwrap_or_else(|| panic!("no manager after {old}\n{}", self.log()))
    }

    /// Writes other units in place of those there are.
    pub fn write(&self, units: &str) {
        write_units(self.dir.path(), units);
    }

    /// Writes other units and applies them, which must succeed; the answer is what it prints.
    pub fn apply(&self, units: &str) -> String {
        self.write(units);
        self.ok(&["apply"])
    }

    /// Writes other units and has them applied.
    pub fn try_apply(&self, units: &str) -> Output {
        self.write(units);
        self.cli(&["apply"])
    }

    /// What lives now.
    pub fn snapshot(&self) -> Snapshot {
        let status = self.status();
        let units = |kind: &str| status[kind].as_array().expect("units").clone();
        let name = |unit: &serde_json::Value| unit["name"].as_str().expect("a name").to_owned();
        let number = |value: &serde_json::Value| value.as_u64().expect("a number");
        Snapshot {
            workers: units("watchers")
                .iter()
                .map(|watcher| {
                    let workers = watcher["workers"].as_array().expect("workers").iter();
                    let workers = workers.map(|worker| {
                        let pid = number(&worker["pid"]) as i32;
                        Worker {
                            wid: number(&worker["wid"]),
                            generation: number(&worker["generation"]),
                            pid,
                            started: start_time(pid),
                        }
                    });
                    (name(watcher), workers.collect())
                })
                .collect(),
            listeners: units("sockets")
                .iter()
                .map(|socket| {
                    (
                        name(socket),
                        listeners(socket["address"].as_str().expect("an address")),
                    )
                })
                .collect(),
            restarts: units("watchers")
                .iter()
                .map(|watcher| (name(watcher), number(&watcher["restarts"])))
                .collect(),
        }
    }
}

/// The inodes of the stream sockets that listen on an address, as the kernel lists them.
pub fn listeners(address: &str) -> Vec<u64> {
    let mut inodes = if Path::new(address).is_absolute() {
        // Names need not be text.
        let text = std::fs::read("/proc/net/unix").expect("a list of sockets");
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines = text.lines().skip(1).filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let listens = words.get(3) == Some(&"00010000") && words.get(7) == Some(&address);
            listens.then(|| words[6].parse().expect("an inode"))
        });
        lines.collect::<Vec<u64>>()
    } else {
        let (_, port) = address.rsplit_once(':').unwrap_or(("", address));
        let port = format!(":{:04X}", port.parse::<u16>().expect("a port"));
        let text = ["tcp", "tcp6"]
            .map(|table| std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default());
        let lines = text
            .iter()
            .flat_map(|text| text.lines().skip(1))
            .filter_map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let listens = words[1].ends_with(&port) && words[3] == "0A";
                listens.then(|| words[9].parse().expect("an inode"))
            });
        lines.collect()
    };
    inodes.sort_unstable();
    inodes
}

/// How many descriptors a process has open.
pub fn open_descriptors(pid: i32) -> usize {
    let list = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a list of descriptors");
    list.count()
}

/// Whether a process runs with these words somewhere on its command line.
pub fn has_word(pid: i32, word: &str) -> bool {
    is_alive(pid) && words(pid).iter().any(|other| other == word)
}
