//! The control socket: who may connect, and bytes to commands and back.
//!
//! A connection has one request under way at a time: while it waits, nothing more is read from it, so a peer that floods
//! fills its own queue and nobody else's. A slow command waits in the supervisor, not here.

use super::{Token, node::Node};
use crate::control::call::{Call, Failure, Reply, Request, on_one_line};
use crate::control::document::ChangeDocument;
use crate::control::wire::{self, Decoder};
use crate::plan::Change;
use crate::supervise::{Command, Event, Refusal, RequestId, Time, WatcherState};
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::sys::socket::{self, Address, BindError, Bound, Kind, Listen};
use crate::sys::{output, unix, users};
use crate::unit::parse_signal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Connections at a time. One more takes the place of the oldest that has no request under way: clients that forget to
/// hang up must not keep out who wants to see why.
const MOST_CONNECTIONS: usize = 512;

/// So many of them may wait for the end of a command. The rest is for those that only look, or that do not wait: a slow
/// command never keeps out who wants to see why it is slow, or to stop it.
const MOST_WAITING: usize = 448;

/// So many may be of one user.
const MOST_WAITING_OF_ONE: usize = 384;

/// Descriptors that are kept for connections, for when workers have taken all others.
const SPARES: usize = 4;

/// After this, accepting is tried again where it has failed and nobody can be sent away.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Bytes taken from one connection in one turn.
const READ_AT_ONCE: usize = 16 * 1024;

/// What a client asks that the server can't answer by itself.
pub enum Asked {
    Event(Event),
    Status {
        names: Vec<String>,
    },
    /// What an apply would change.
    Plan,
    Apply {
        request: RequestId,
        no_wait: bool,
        progress: bool,
    },
    Upgrade {
        request: RequestId,
        no_wait: bool,
    },
}

impl Asked {
    /// Whether the answer may be a long time in coming.
    fn takes_time(&self) -> bool {
        match self {
            Asked::Status { .. } | Asked::Plan => false,
            Asked::Apply { no_wait, .. } | Asked::Upgrade { no_wait, .. } => !no_wait,
            Asked::Event(Event::Command {
                command, no_wait, ..
            }) => match command {
                Command::Signal { .. } => false,
                Command::Start(_)
                | Command::Stop(_)
                | Command::Restart(_)
                | Command::Reload(_)
                | Command::Scale { .. }
                | Command::Shutdown => !no_wait,
            },
            // Nobody asks for anything else.
            Asked::Event(_) => false,
        }
    }
}

/// The control socket and its connections.
pub struct Server {
    /// Without one nobody can connect, and the manager does its work all the same.
    listener: Option<Listener>,
    /// Group that may connect.
    gid: Option<u32>,
    connections: BTreeMap<u64, Connection>,
    by_request: BTreeMap<RequestId, u64>,
    next_connection: u64,
    next_request: u64,
    /// Not accepting: all connections have a request under way, or the kernel has nothing to make one of.
    full: bool,
    /// When accepting is tried again whether or not a connection has been closed.
    retry: Option<Time>,
    /// They are closed where accepting needs a descriptor.
    spares: Vec<OwnedFd>,
    /// Connections that were answered, and may have sent their next request already.
    answered: Vec<u64>,
}

struct Listener {
    socket: UnixListener,
    node: Option<Node>,
}

struct Connection {
    stream: UnixStream,
    /// The user at the other end.
    uid: u32,
    decoder: Decoder,
    out: Vec<u8>,
    /// How much of `out` the client has.
    sent: usize,
    /// The request that is under way.
    waiting: Option<Waiting>,
    /// Nothing more will be read.
    at_end: bool,
    /// To be closed as soon as everything is written.
    closing: bool,
    interest: Option<Interest>,
}

struct Waiting {
    request: RequestId,
    oneway: bool,
    /// What goes with the answer of an apply.
    changes: Option<Vec<ChangeDocument>>,
}

/// Binds the control socket at a path, for its owner and the group `gid` as `mode` says, in place of one that nobody listens on.
pub fn listen(path: &Path, mode: u32, gid: Option<u32>) -> Result<Bound, BindError> {
    socket::listen(&Listen {
        address: &Address::Path(path.to_path_buf()),
        kind: Kind::Stream,
        backlog: 128,
        interface: None,
        reuseport: false,
        blocking: false,
        umask: None,
        mode: Some(mode),
        uid: None,
        gid,
        directory_mode: 0o755,
        replace: true,
        own: &[],
        found: &[],
    })
}

impl Server {
    /// A server on a bound socket, which also serves the members of the group `gid`.
    pub fn new(bound: Option<(Bound, PathBuf)>, gid: Option<u32>) -> Server {
        let mut server = Server {
            listener: bound.map(|(bound, path)| Listener {
                socket: bound.fd.into(),
                node: Node::made_at(&path),
            }),
            gid,
            connections: BTreeMap::new(),
            by_request: BTreeMap::new(),
            next_connection: 0,
            next_request: 0,
            full: false,
            retry: None,
            spares: Vec::new(),
            answered: Vec::new(),
        };
        server.refill();
        server
    }

    fn refill(&mut self) {
        while self.spares.len() < SPARES {
            // A copy is cheaper, and counts as much.
            let spare = match self.spares.first() {
                Some(first) => first.try_clone(),
                None => output::null(),
            };
            let Ok(spare) = spare else { return };
            self.spares.push(spare);
        }
    }

    /// Begins to accept.
    pub fn watch(&self, epoll: &Epoll) -> io::Result<()> {
        match &self.listener {
            Some(listener) => {
                epoll.add(&listener.socket, Token::Control.pack(), Interest::Readable)
            }
            None => Ok(()),
        }
    }

    /// Goes on with another socket, whose file is `node`. Who waits in the one before can be reached no more.
    pub fn listen_on(&mut self, epoll: &Epoll, socket: OwnedFd, node: Option<Node>) {
        if let Some(before) = &self.listener {
            // Others may keep it, so it would be reported for ever.
            let _ = epoll.remove(&before.socket);
        }
        let socket = socket.into();
        self.listener = Some(Listener { socket, node });
        self.full = true;
        self.go_on_accepting(epoll);
    }

    /// Takes new connections.
    pub fn accept(&mut self, epoll: &Epoll, now: Time) {
        self.accept_waiting(epoll, now);
        // One may have been given up for somebody who had left.
        self.refill();
    }

    fn accept_waiting(&mut self, epoll: &Epoll, now: Time) {
        loop {
            let is_full = self.connections.len() >= MOST_CONNECTIONS;
            let idle = is_full.then(|| self.oldest_idle()).flatten();
            if is_full && idle.is_none() {
                let waits = |connection: &Connection| connection.waiting.is_some();
                if self.connections.values().all(waits) {
                    self.pause(epoll, None);
                }
                // Else there are some that will have been heard by the next turn.
                return;
            }
            let Some(listener) = &self.listener else {
                return;
            };
            let accepted = listener.socket.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    return;
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    // The kernel says so too where nobody is waiting.
                    if !output::readable_now(&listener.socket) {
                        return;
                    }
                    if self.spares.pop().is_some() {
                        continue;
                    }
                    if let Some(idle) = self.oldest_idle() {
                        self.make_room(epoll, idle);
                        continue;
                    }
                    return self.pause(epoll, Some(now + RETRY_AFTER));
                }
                Err(error) => {
                    log::warn!(target: "manager", "a control connection could not be accepted: {error}");
                    return self.pause(epoll, Some(now + RETRY_AFTER));
                }
            };
            let Some(uid) = who_may_connect(&stream, self.gid) else {
                let mut out = Vec::new();
                wire::encode(&Err(Failure::PermissionDenied), false, &mut out);
                // All that can be done for somebody who may not be here.
                let _ = (&stream).write(&out);
                drop(stream);
                self.refill();
                continue;
            };
            let mut connection = Connection {
                stream,
                uid,
                decoder: Decoder::new(),
                out: Vec::new(),
                sent: 0,
                waiting: None,
                at_end: false,
                closing: false,
                interest: None,
            };
            let number = self.next_connection;
            self.next_connection += 1;
            if let Some(idle) = idle {
                self.make_room(epoll, idle);
            }
            connection.update_interest(epoll, number);
            self.connections.insert(number, connection);
            if is_full {
                // The others come in the next turn, when this one has been heard.
                return;
            }
        }
    }

    /// The oldest connection that has no request under way, nor one that is still to be heard.
    fn oldest_idle(&self) -> Option<u64> {
        let is_idle = |connection: &Connection| {
            let is_deaf = !connection.out.is_empty();
            connection.waiting.is_none() && (is_deaf || !output::readable_now(&connection.stream))
        };
        let mut all = self.connections.iter();
        all.find(|(_, connection)| is_idle(connection))
            .map(|(number, _)| *number)
    }

    fn make_room(&mut self, epoll: &Epoll, number: u64) {
        log::debug!(target: "manager", "an idle control connection is closed to make room for another");
        // It has no request that could be abandoned.
        self.close(epoll, number);
    }

    /// Accepts nothing until a connection is closed, or until `retry`: level-triggered, the listener would wake us for
    /// nothing.
    fn pause(&mut self, epoll: &Epoll, retry: Option<Time>) {
        self.full = true;
        self.retry = retry;
        if let Some(listener) = &self.listener {
            let _ = epoll.remove(&listener.socket);
        }
    }

    /// When [`Server::resume`] is due.
    pub fn next_retry(&self) -> Option<Time> {
        self.retry
    }

    /// Accepts again, if it is time.
    pub fn resume(&mut self, epoll: &Epoll, now: Time) {
        if self.retry.is_some_and(|at| at <= now) {
            self.go_on_accepting(epoll);
        }
    }

    fn go_on_accepting(&mut self, epoll: &Epoll) {
        self.retry = None;
        if std::mem::take(&mut self.full)
            && let Err(error) = self.watch(epoll)
        {
            log::error!(target: "manager", "the control socket can't be watched: {error}");
        }
    }

    /// Reads from and writes to a connection. The answer is what it asks for.
    pub fn serve(&mut self, epoll: &Epoll, number: u64, ready: Ready) -> Vec<Asked> {
        let Some(connection) = self.connections.get_mut(&number) else {
            return Vec::new();
        };
        if ready.writable {
            connection.write();
        }
        if ready.readable && connection.waiting.is_none() {
            connection.read();
        }
        if ready.hangup && !ready.readable {
            return self.close(epoll, number).into_iter().collect();
        }
        self.go_on(epoll, number)
    }

    /// Connections to [`Server::go_on`] with, since they have been answered.
    pub fn take_answered(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.answered)
    }

    /// Whether there are any.
    pub fn has_answered(&self) -> bool {
        !self.answered.is_empty()
    }

    /// Looks at what a connection has sent already.
    pub fn go_on(&mut self, epoll: &Epoll, number: u64) -> Vec<Asked> {
        let asked = self.next_request(number);
        asked
            .into_iter()
            .chain(self.settle(epoll, number))
            .collect()
    }

    /// Why one more command of this user can't be waited for.
    fn refuse_to_wait(&self, uid: u32) -> Result<(), Failure> {
        let waiting = self.connections.values().filter(|it| it.waiting.is_some());
        let (all, own) = waiting.fold((0, 0), |(all, own), it| {
            (all + 1, own + usize::from(it.uid == uid))
        });
        let whose = match (all >= MOST_WAITING, own >= MOST_WAITING_OF_ONE) {
            (false, false) => return Ok(()),
            (true, _) => format!("{all} commands are"),
            (false, true) => format!("{own} commands of user {uid} are"),
        };
        Err(Failure::Refused {
            reason: format!(
                "{whose} waiting for their end already; give this one without waiting (`--no-wait`), or try again later"
            ),
        })
    }

    /// Takes the next request of a connection, answering at once what can be.
    fn next_request(&mut self, number: u64) -> Option<Asked> {
        let uid = self.connections.get(&number)?.uid;
        let room = self.refuse_to_wait(uid);
        let connection = self.connections.get_mut(&number)?;
        while connection.waiting.is_none() && !connection.closing && connection.out.is_empty() {
            let request = match connection.decoder.next() {
                Some(Ok(request)) => request,
                Some(Err(malformed)) => {
                    log::debug!(target: "manager", "a control connection is closed: {malformed}");
                    wire::encode(&Err(Failure::from(malformed)), false, &mut connection.out);
                    connection.closing = true;
                    return None;
                }
                None => {
                    connection.closing |= connection.at_end;
                    return None;
                }
            };
            let oneway = request.oneway;
            let id = RequestId(self.next_request);
            let asked = asked(request, id).and_then(|asked| match &room {
                Err(failure) if asked.takes_time() => Err(Err(failure.clone())),
                Ok(()) | Err(_) => Ok(asked),
            });
            match asked {
                Ok(asked) => {
                    let request = id;
                    self.next_request += 1;
                    connection.waiting = Some(Waiting {
                        request,
                        oneway,
                        changes: None,
                    });
                    self.by_request.insert(request, number);
                    return Some(asked);
                }
                Err(reply) if !oneway => {
                    wire::encode(&reply, false, &mut connection.out);
                    // The next one may be here already, and nothing else would bring us back to it. What the client does
                    // not take ends the loop.
                    connection.write();
                }
                Err(_) => {}
            }
        }
        None
    }

    /// Writes what can be written, and closes what is done.
    fn settle(&mut self, epoll: &Epoll, number: u64) -> Option<Asked> {
        let connection = self.connections.get_mut(&number)?;
        connection.write();
        if connection.closing && connection.out.is_empty() && connection.waiting.is_none() {
            return self.close(epoll, number);
        }
        connection.update_interest(epoll, number);
        None
    }

    fn close(&mut self, epoll: &Epoll, number: u64) -> Option<Asked> {
        let mut connection = self.connections.remove(&number)?;
        let _ = epoll.remove(&connection.stream);
        let waiting = connection.waiting.take();
        drop(connection);
        self.refill();
        self.go_on_accepting(epoll);
        let request = waiting?.request;
        self.by_request.remove(&request);
        Some(Asked::Event(Event::Abandoned { request }))
    }

    /// Answers a command.
    pub fn reply(
        &mut self,
        epoll: &Epoll,
        request: RequestId,
        outcome: Result<Option<String>, Refusal>,
        nearest: impl Fn(&str) -> Option<String>,
    ) {
        let Some(number) = self.by_request.get(&request).copied() else {
            return;
        };
        let waiting = (self.connections.get_mut(&number)).and_then(|it| it.waiting.as_mut());
        let changes = waiting.and_then(|waiting| waiting.changes.take());
        let reply = match (outcome, changes) {
            (Ok(message), Some(changes)) => Ok(Reply::Changes { changes, message }),
            (Ok(message), None) => Ok(Reply::Done { message }),
            (Err(refusal), _) => Err(failure(refusal, nearest)),
        };
        self.answer(epoll, number, &reply);
    }

    /// A number for a request that comes from no connection.
    pub fn new_request(&mut self) -> RequestId {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        request
    }

    /// Tells these with the answer to `request`.
    pub fn keep_changes(&mut self, request: RequestId, changes: Vec<ChangeDocument>) {
        let number = self.by_request.get(&request);
        let connection = number.and_then(|number| self.connections.get_mut(number));
        if let Some(waiting) = connection.and_then(|connection| connection.waiting.as_mut()) {
            waiting.changes = Some(changes);
        }
    }

    /// Changes who may connect.
    pub fn restrict(&mut self, mode: u32, gid: Option<u32>) {
        self.gid = gid;
        if let Some(node) = self.listener.as_ref().and_then(|it| it.node.as_ref())
            && let Err(error) = node.restrict(mode, gid)
        {
            log::warn!(target: "manager", "the control socket's mode could not be changed: {error}");
        }
    }

    /// Answers a request that the supervisor knows nothing of.
    pub fn answer_request(
        &mut self,
        epoll: &Epoll,
        request: RequestId,
        reply: &Result<Reply, Failure>,
    ) {
        if let Some(number) = self.by_request.get(&request).copied() {
            self.answer(epoll, number, reply);
        }
    }

    /// Answers the request that a connection has under way.
    pub fn answer(&mut self, epoll: &Epoll, number: u64, reply: &Result<Reply, Failure>) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let Some(waiting) = connection.waiting.take() else {
            return;
        };
        self.by_request.remove(&waiting.request);
        if !waiting.oneway {
            wire::encode(reply, false, &mut connection.out);
        }
        connection.write();
        connection.update_interest(epoll, number);
        self.answered.push(number);
    }

    /// Tells how a command goes on: of a watcher that is stopping `count` are left, of any other so many are ready.
    pub fn progress(
        &mut self,
        epoll: &Epoll,
        request: RequestId,
        unit: String,
        state: WatcherState,
        count: u32,
        wanted: u32,
    ) {
        let (done, text) = match state {
            WatcherState::Stopping => (
                wanted.saturating_sub(count),
                format!("{unit}: {state}, {count} left"),
            ),
            _ => (count, format!("{unit}: {state}, {count} of {wanted} ready")),
        };
        let Some(number) = self.by_request.get(&request).copied() else {
            return;
        };
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        // A client that does not read its progress can do without.
        if connection.out.is_empty() {
            wire::encode(
                &Ok(Reply::Progress {
                    text,
                    unit,
                    done,
                    wanted,
                }),
                true,
                &mut connection.out,
            );
            connection.write();
            connection.update_interest(epoll, number);
        }
    }

    /// The socket on which it listens.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        Some(self.listener.as_ref()?.socket.as_fd())
    }

    /// The file of that socket.
    pub fn node(&self) -> Option<&Node> {
        self.listener.as_ref()?.node.as_ref()
    }

    /// What an upgrade needs to know of it.
    pub fn record(&self) -> ServerRecord {
        let connections = self.connections.iter().map(|(number, connection)| {
            let waiting = connection.waiting.as_ref();
            ConnectionRecord {
                number: *number,
                unread: connection.decoder.unread().to_vec(),
                unsent: connection.out[connection.sent..].to_vec(),
                waiting: waiting.map(|waiting| {
                    let changes = waiting.changes.clone();
                    (waiting.request, waiting.oneway, changes)
                }),
                at_end: connection.at_end,
                closing: connection.closing,
            }
        });
        ServerRecord {
            connections: connections.collect(),
            next_connection: self.next_connection,
            next_request: self.next_request,
        }
    }

    /// The connections, each with the name that it is handed on by.
    pub fn descriptors(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let all = self.connections.iter();
        all.map(|(number, connection)| (name_of(*number), connection.stream.as_fd()))
            .collect()
    }

    /// A server on the socket of another manager; after an upgrade with its connections too.
    pub fn adopt(
        epoll: &Epoll,
        listener: Option<(OwnedFd, Option<Node>)>,
        gid: Option<u32>,
        record: ServerRecord,
        fds: &mut BTreeMap<String, OwnedFd>,
    ) -> Server {
        let mut server = Server::new(None, gid);
        server.listener = listener.map(|(fd, node)| Listener {
            socket: fd.into(),
            node,
        });
        server.next_connection = record.next_connection;
        server.next_request = record.next_request;
        for record in record.connections {
            let Some(fd) = fds.remove(&name_of(record.number)) else {
                continue;
            };
            let mut decoder = Decoder::new();
            decoder.feed(&record.unread);
            let stream = UnixStream::from(fd);
            let mut connection = Connection {
                // It was let in; nobody is the user whose number is -1.
                uid: unix::peer(&stream).map_or(u32::MAX, |peer| peer.uid),
                stream,
                decoder,
                out: record.unsent,
                sent: 0,
                waiting: record.waiting.map(|(request, oneway, changes)| Waiting {
                    request,
                    oneway,
                    changes,
                }),
                at_end: record.at_end,
                closing: record.closing,
                interest: None,
            };
            connection.update_interest(epoll, record.number);
            match &connection.waiting {
                Some(waiting) => {
                    server.by_request.insert(waiting.request, record.number);
                }
                // It may have sent its next request already.
                None => server.answered.push(record.number),
            }
            server.connections.insert(record.number, connection);
        }
        server
    }

    /// The last thing before the end: whoever waits for an answer gets it, if the socket takes it at once.
    pub fn finish(&mut self) {
        for connection in self.connections.values_mut() {
            connection.write();
        }
    }
}

/// What an upgrade needs to know of the control socket.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ServerRecord {
    connections: Vec<ConnectionRecord>,
    next_connection: u64,
    next_request: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct ConnectionRecord {
    number: u64,
    /// What has come of a request that is not complete.
    unread: Vec<u8>,
    /// What is left of an answer.
    unsent: Vec<u8>,
    waiting: Option<(RequestId, bool, Option<Vec<ChangeDocument>>)>,
    at_end: bool,
    closing: bool,
}

/// What a connection is handed on by.
fn name_of(connection: u64) -> String {
    format!("c{connection}")
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(node) = self
            .listener
            .as_ref()
            .and_then(|listener| listener.node.as_ref())
        {
            node.remove();
        }
    }
}

impl Connection {
    fn read(&mut self) {
        let mut buffer = [0; READ_AT_ONCE];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.at_end = true,
            Ok(count) => self.decoder.feed(&buffer[..count]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => {
                self.at_end = true;
                self.closing = true;
                self.out.clear();
                self.sent = 0;
            }
        }
    }

    fn write(&mut self) {
        while !self.out.is_empty() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return,
                Ok(count) => {
                    self.sent += count;
                    if self.sent == self.out.len() {
                        self.out.clear();
                        self.sent = 0;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.out.clear();
                    self.sent = 0;
                    self.closing = true;
                    return;
                }
            }
        }
        self.out.shrink_to(READ_AT_ONCE);
    }

    fn update_interest(&mut self, epoll: &Epoll, number: u64) {
        let read = self.waiting.is_none() && !self.at_end && !self.closing && self.out.is_empty();
        let interest = match (read, !self.out.is_empty()) {
            (true, _) => Interest::Readable,
            (false, true) => Interest::Writable,
            (false, false) => Interest::Hangup,
        };
        if self.interest == Some(interest) {
            return;
        }
        let token = Token::Connection(number).pack();
        let changed = match self.interest {
            None => epoll.add(&self.stream, token, interest),
            Some(_) => epoll.modify(&self.stream, token, interest),
        };
        if let Err(error) = changed {
            log::warn!(target: "manager", "a control connection can't be watched: {error}");
        }
        self.interest = Some(interest);
    }
}

/// The user at the other end, if that is root, the manager's own, or a member of its `control_group`.
fn who_may_connect(stream: &UnixStream, gid: Option<u32>) -> Option<u32> {
    let peer = unix::peer(stream).ok()?;
    let member = |gid| {
        peer.gid == gid || unix::peer_groups(stream).is_ok_and(|groups| groups.contains(&gid))
    };
    let may = peer.uid == 0 || peer.uid == users::geteuid() || gid.is_some_and(member);
    may.then_some(peer.uid)
}

/// What a request asks for, or its answer.
fn asked(request: Request, id: RequestId) -> Result<Asked, Result<Reply, Failure>> {
    let progress = request.more;
    let (command, wait) = match request.call.map_err(Err)? {
        Call::Status { names } => return Ok(Asked::Status { names }),
        Call::GetInfo => return Err(Ok(Reply::info())),
        Call::GetInterfaceDescription { interface } => return Err(Reply::description(&interface)),
        Call::Start { names, wait, .. } => (Command::Start(names), wait),
        Call::Stop { names, wait, .. } => (Command::Stop(names), wait),
        Call::Restart { names, wait, .. } => (Command::Restart(names), wait),
        Call::Scale { name, to, wait } => (Command::Scale { name, to }, wait),
        Call::Signal {
            name,
            signal,
            wid,
            children,
        } => {
            let signal = parse_signal(&signal).map_err(|reason| {
                let reason = format!("`{}` {reason}", on_one_line(&signal));
                Err(Failure::Refused { reason })
            })?;
            (
                Command::Signal {
                    name,
                    signal,
                    wid,
                    children,
                },
                true,
            )
        }
        Call::Shutdown { wait } => (Command::Shutdown, wait),
        Call::Reload { names, wait, .. } => (Command::Reload(names), wait),
        Call::Plan | Call::Apply { dry_run: true, .. } => return Ok(Asked::Plan),
        Call::Apply { wait, .. } => {
            return Ok(Asked::Apply {
                request: id,
                no_wait: !wait,
                progress,
            });
        }
        Call::Upgrade { wait } => {
            return Ok(Asked::Upgrade {
                request: id,
                no_wait: !wait,
            });
        }
    };
    Ok(Asked::Event(Event::Command {
        request: id,
        command,
        no_wait: !wait,
        progress,
    }))
}

impl From<Change> for ChangeDocument {
    fn from(change: Change) -> Self {
        ChangeDocument {
            unit: change.unit.to_string(),
            action: change.action,
            keys: change.keys,
        }
    }
}

pub fn failure(refusal: Refusal, nearest: impl Fn(&str) -> Option<String>) -> Failure {
    match refusal {
        Refusal::NoSuchWatcher { name } => Failure::NoSuchUnit {
            nearest: nearest(&name),
            name,
        },
        Refusal::IsSocket { name, watchers } => Failure::IsSocket { name, watchers },
        Refusal::Refused(reason) => Failure::Refused { reason },
        Refusal::Failed(reason) => Failure::Failed { reason },
        Refusal::ShuttingDown => Failure::ShuttingDown,
        Refusal::Superseded { by, .. } => Failure::Superseded { by: by.to_owned() },
    }
}
