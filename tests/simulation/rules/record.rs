//! A new manager that goes on from the records of another.

use super::*;

impl Rules {
    /// Holds the first effects of a new manager against what it must ask for again. Who waited for answers is there
    /// still, or not.
    pub fn resume(&mut self, now: Time, connected: bool, effects: &[Effect]) -> Result<(), String> {
        self.now = now;
        self.expected.clear();
        self.say(if connected { "upgrade" } else { "crash" });
        if !connected {
            for request in self.pending.keys().copied().collect::<Vec<_>>() {
                self.abandon(request);
            }
        }
        if self.parent {
            self.greet_parent();
        }
        for (index, socket) in &self.sockets {
            let key = Key::Socket(*index);
            let is_needed = !socket.retired && !self.is_stopping();
            let has_begun = !matches!(self.phase, Phase::New);
            if is_needed && has_begun && !socket.bound && socket.bind_at.is_none() {
                self.expected.push(Expected {
                    key,
                    act: Act::Bind,
                    reason: "who was to bind it is gone",
                });
            }
            if let Some(wids) = &socket.watched {
                self.expected.push(Expected {
                    key,
                    act: Act::Watch(wids.clone()),
                    reason: "who watched it is gone",
                });
            }
            for (wid, shard) in &socket.shards {
                if let Shard::Closing { .. } = shard {
                    self.expected.push(Expected {
                        key: Key::Shard(*index, *wid),
                        act: Act::CloseShard,
                        reason: "who was to close it is gone",
                    });
                }
            }
        }
        if matches!(self.phase, Phase::New) {
            self.begin();
        }
        for id in self.ids() {
            for at in self.places(id) {
                self.ask_again(at);
            }
        }
        self.expire();
        self.settle();
        self.compare(effects)
    }

    fn greet_parent(&mut self) {
        let is_applying = self.pending.values().any(|pending| pending.told);
        match &mut self.phase {
            Phase::Running if !is_applying => {
                self.tell_parent(ParentNotice::Ready, "the new manager is there");
            }
            Phase::Stopping { .. } => {
                self.tell_parent(ParentNotice::Stopping, "the new manager goes on with it");
            }
            Phase::Booting {
                unsettled,
                extend_at,
            } if !unsettled.is_empty() => {
                *extend_at = Some(self.now + Duration::from_secs(10));
                self.extend_parent(Duration::from_secs(30), "it is still starting");
            }
            _ => {}
        }
    }

    /// What was asked for and not answered is asked for again.
    fn ask_again(&mut self, at: At) {
        let act = match self.worker(at).life {
            Life::Ordered { cancelled: true } => return self.replace(at),
            Life::Ordered { cancelled: false } => Act::Spawn(self.definition(at)),
            Life::Draining { .. } => Act::Drain(self.leaving(at)),
            Life::Ending {
                kill: Kill::Done, ..
            } => Act::Kill,
            Life::Clearing {
                kill: Kill::Done, ..
            } => Act::KillLeftovers,
            Life::Clearing { .. } => Act::AwaitLeftovers,
            _ => return,
        };
        self.expect_of(at, act, "who was to do it is gone");
    }
}
