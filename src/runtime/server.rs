//! The control socket: who may connect, and bytes to commands and back.
//!
//! A connection has one request under way at a time: while it waits, nothing more is read from it, so a peer that floods
//! fills its own queue and nobody else's. A slow command waits in the supervisor, not here.

use super::{Token, node::Node};
use crate::control::call::{self, Call, Failure, Reply, Request};
use crate::control::wire::{self, Decoder};
use crate::supervise::{Command, Event, Refusal, RequestId, WatcherState};
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::sys::socket::Bound;
use crate::sys::{unix, users};
use crate::unit::parse_signal;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// Connections at a time. More wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 128;

/// Bytes taken from one connection in one turn.
const READ_AT_ONCE: usize = 16 * 1024;

/// What a client asks that the server can't answer by itself.
pub enum Asked {
    Event(Event),
    Status { names: Vec<String> },
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
    /// Not accepting, since there are too many connections.
    full: bool,
    /// Connections that were answered, and may have sent their next request already.
    answered: Vec<u64>,
}

struct Listener {
    socket: UnixListener,
    node: Option<Node>,
}

struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
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
}

impl Server {
    /// A server on a bound socket, which also serves the members of the group `gid`.
    pub fn new(bound: Option<(Bound, PathBuf)>, gid: Option<u32>) -> Server {
        Server {
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
            answered: Vec::new(),
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

    /// Takes new connections.
    pub fn accept(&mut self, epoll: &Epoll) {
        let Some(listener) = &self.listener else {
            return;
        };
        while self.connections.len() < MOST_CONNECTIONS {
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
                Err(error) => {
                    log::warn!(target: "manager", "a control connection could not be accepted: {error}");
                    return;
                }
            };
            let mut connection = Connection {
                stream,
                decoder: Decoder::new(),
                out: Vec::new(),
                waiting: None,
                at_end: false,
                closing: false,
                interest: None,
            };
            if !may_connect(&connection.stream, self.gid) {
                wire::encode(&Err(Failure::PermissionDenied), false, &mut connection.out);
                // All that can be done for somebody who may not be here.
                let _ = connection.stream.write(&connection.out);
                continue;
            }
            let number = self.next_connection;
            self.next_connection += 1;
            connection.update_interest(epoll, number);
            self.connections.insert(number, connection);
        }
        self.full = true;
        // Level-triggered: it would wake us for nothing until somebody leaves.
        let _ = epoll.remove(&listener.socket);
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

    /// Takes the next request of a connection, answering at once what can be.
    fn next_request(&mut self, number: u64) -> Option<Asked> {
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
            match asked(request, RequestId(self.next_request)) {
                Ok(asked) => {
                    let request = RequestId(self.next_request);
                    self.next_request += 1;
                    connection.waiting = Some(Waiting { request, oneway });
                    self.by_request.insert(request, number);
                    return Some(asked);
                }
                Err(reply) if !oneway => wire::encode(&reply, false, &mut connection.out),
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
        let connection = self.connections.remove(&number)?;
        let _ = epoll.remove(&connection.stream);
        if std::mem::take(&mut self.full)
            && let Err(error) = self.watch(epoll)
        {
            log::error!(target: "manager", "the control socket can't be watched: {error}");
        }
        let request = connection.waiting?.request;
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
        let reply = match outcome {
            Ok(message) => Ok(Reply::Done { message }),
            Err(refusal) => Err(failure(refusal, nearest)),
        };
        self.answer(epoll, number, &reply);
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

    /// The last thing before the end: whoever waits for an answer gets it, if the socket takes it at once.
    pub fn finish(&mut self) {
        for connection in self.connections.values_mut() {
            connection.write();
        }
    }
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
            }
        }
    }

    fn write(&mut self) {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(0) => return,
                Ok(count) => {
                    self.out.drain(..count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.out.clear();
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

/// Root, the manager's own user, and the members of its `control_group`.
fn may_connect(stream: &UnixStream, gid: Option<u32>) -> bool {
    let Ok(peer) = unix::peer(stream) else {
        return false;
    };
    let member = |gid| {
        peer.gid == gid || unix::peer_groups(stream).is_ok_and(|groups| groups.contains(&gid))
    };
    peer.uid == 0 || peer.uid == users::geteuid() || gid.is_some_and(member)
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
        Call::Scale { name, to, wait } => (
            Command::Scale {
                name,
                to: amount(to),
            },
            wait,
        ),
        Call::Signal {
            name,
            signal,
            wid,
            children,
        } => {
            let signal = parse_signal(&signal).map_err(|reason| {
                let reason = format!("`{signal}` {reason}");
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
    };
    Ok(Asked::Event(Event::Command {
        request: id,
        command,
        no_wait: !wait,
        progress,
    }))
}

fn amount(amount: call::Amount) -> crate::supervise::Amount {
    match amount {
        call::Amount::To(count) => crate::supervise::Amount::To(count),
        call::Amount::By(change) => crate::supervise::Amount::By(change),
    }
}

fn failure(refusal: Refusal, nearest: impl Fn(&str) -> Option<String>) -> Failure {
    match refusal {
        Refusal::NoSuchWatcher { name } => Failure::NoSuchUnit {
            nearest: nearest(&name),
            name,
        },
        Refusal::Refused(reason) => Failure::Refused { reason },
        Refusal::Failed(reason) => Failure::Failed { reason },
        Refusal::ShuttingDown => Failure::ShuttingDown,
        Refusal::Superseded { by, .. } => Failure::Superseded { by: by.to_owned() },
    }
}
