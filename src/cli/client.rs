//! The connection to a manager.

use crate::control::call::{Call, Failure, Reply};
use crate::control::wire::{Answer, Malformed, ReplyDecoder, encode_call};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a manager that works may take to accept a connection, and to answer what it can answer at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A connection, and what has come on it so far.
#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    decoder: ReplyDecoder,
    path: PathBuf,
}

impl Client {
    /// Connects to the control socket at `path`. A manager that is stuck and accepts nothing is given up after
    /// `patience`, and so is one that takes nothing of what is sent.
    pub fn connect(path: &Path, patience: Duration) -> Result<Client, Trouble> {
        let trouble = |error: io::Error| Trouble::connecting(path, &error);
        let address = SockAddr::unix(path).map_err(trouble)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(trouble)?;
        // connect(2) waits while the listener's queue is full; this is its limit too, see unix(7) and socket(7).
        socket.set_write_timeout(Some(patience)).map_err(trouble)?;
        while let Err(error) = socket.connect(&address) {
            if error.kind() != ErrorKind::Interrupted {
                return Err(trouble(error));
            }
        }
        Ok(Client {
            stream: UnixStream::from(OwnedFd::from(socket)),
            decoder: ReplyDecoder::new(),
            path: path.to_path_buf(),
        })
    }

    /// Sends `call` and waits for its last reply, for ever if `patience` is `None`. With `progress`, the manager is asked
    /// to say meanwhile how far it is.
    pub fn call(
        &mut self,
        call: &Call,
        patience: Option<Duration>,
        mut progress: Option<&mut dyn FnMut(&str)>,
    ) -> Result<Reply, Trouble> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut message = Vec::new();
        encode_call(call, progress.is_some(), false, &mut message);
        match self.stream.write_all(&message) {
            Ok(()) => {}
            // It may have said why before it closed: what it said is still to be read.
            Err(error) if is_end(&error) => {}
            Err(error) => return Err(self.trouble(&error)),
        }
        loop {
            let Answer { reply, continues } = self.next(deadline)?;
            match reply.map_err(Trouble::Failure)? {
                Reply::Progress { text, .. } if continues => {
                    if let Some(progress) = &mut progress {
                        progress(&text);
                    }
                }
                _ if continues => {}
                last => return Ok(last),
            }
        }
    }

    /// Waits until the manager closes the connection, at most for `patience`.
    pub fn wait_for_end(&mut self, patience: Duration) {
        let deadline = Some(Instant::now() + patience);
        while self.next(deadline).is_ok() {}
    }

    fn next(&mut self, deadline: Option<Instant>) -> Result<Answer, Trouble> {
        let mut buffer = [0; 16 * 1024];
        loop {
            if let Some(answer) = self.decoder.next() {
                return answer
                    .map_err(|malformed| Trouble::NotAManager(self.path.clone(), malformed));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Trouble::Silent(self.path.clone()));
            }
            let received = self
                .stream
                .set_read_timeout(left)
                .and_then(|()| self.stream.read(&mut buffer));
            match received {
                Ok(0) => return Err(Trouble::Gone),
                Ok(length) => self.decoder.feed(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_end(&error) => return Err(Trouble::Gone),
                Err(error) => return Err(self.trouble(&error)),
            }
        }
    }

    fn trouble(&self, error: &io::Error) -> Trouble {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Trouble::Silent(self.path.clone()),
            _ => Trouble::Broken(self.path.clone(), error.to_string()),
        }
    }
}

/// Whether this is what a closed connection looks like.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

/// Why a manager did not do what it was asked for. As text it is a sentence, after lines of details where it has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nobody listens at this path.
    NotListening(PathBuf),
    /// We may not connect to this path.
    Denied(PathBuf),
    /// This can't be the path of a socket: it is too long.
    PathTooLong(PathBuf),
    /// It does not accept, or does not answer in time.
    Silent(PathBuf),
    /// The connection broke.
    Broken(PathBuf, String),
    /// It ended before it answered.
    Gone,
    /// Who answers does not speak our language.
    NotAManager(PathBuf, Malformed),
    /// It answered something that is no answer to what it was asked.
    WrongReply(PathBuf),
    /// It said no.
    Failure(Failure),
}

impl Trouble {
    fn connecting(path: &Path, error: &io::Error) -> Self {
        let path = path.to_path_buf();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
                Trouble::NotListening(path)
            }
            ErrorKind::PermissionDenied => Trouble::Denied(path),
            ErrorKind::InvalidInput => Trouble::PathTooLong(path),
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Trouble::Silent(path),
            _ => Trouble::Broken(path, error.to_string()),
        }
    }

    /// What the program exits with.
    pub fn code(&self) -> i32 {
        match self {
            Trouble::NotListening(_) => 3,
            Trouble::Failure(Failure::NoSuchUnit { .. } | Failure::IsSocket { .. }) => 4,
            Trouble::Denied(_)
            | Trouble::PathTooLong(_)
            | Trouble::Silent(_)
            | Trouble::Broken(..)
            | Trouble::Gone
            | Trouble::NotAManager(..)
            | Trouble::WrongReply(_)
            | Trouble::Failure(_) => 1,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::NotListening(path) => write!(
                f,
                "no manager is listening at `{}`; start one with `tentpole run`, or say where it listens with `--control`",
                path.display()
            ),
            Trouble::Denied(path) => write!(
                f,
                "you may not use the control socket `{}`; run this as root, as the manager's user, or as a member of its \
                 `control_group`",
                path.display()
            ),
            Trouble::PathTooLong(path) => write!(
                f,
                "`{}` can't be a control socket: such a path has at most 107 bytes",
                path.display()
            ),
            Trouble::Silent(path) => write!(
                f,
                "the manager at `{}` does not answer; see what it logs, and whether it is stopped",
                path.display()
            ),
            Trouble::Broken(path, error) => {
                write!(f, "the control socket `{}` failed: {error}", path.display())
            }
            Trouble::Gone => f.write_str("the manager ended before it answered; its log says why"),
            Trouble::NotAManager(path, malformed) => write!(
                f,
                "who listens at `{}` is no manager: {malformed}; say where the manager is with `--control`",
                path.display()
            ),
            Trouble::WrongReply(path) => write!(
                f,
                "the manager at `{}` answered something else than what it was asked; is it of another version?",
                path.display()
            ),
            Trouble::Failure(Failure::InvalidUnits { findings }) => {
                for finding in findings {
                    writeln!(f, "{}", finding.trim_end())?;
                }
                Failure::InvalidUnits {
                    findings: Vec::new(),
                }
                .fmt(f)
            }
            Trouble::Failure(failure) => failure.fmt(f),
        }
    }
}

/// A stand-in for a manager, on a socket in a folder of its own.
#[cfg(test)]
pub(super) mod fake {
    use crate::control::call::{Failure, Reply, Request};
    use crate::control::wire::{Decoder, encode};
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::{Path, PathBuf};
    use std::thread::{self, JoinHandle};

    /// One message of an answer, and whether more follow.
    pub type Said = (Result<Reply, Failure>, bool);

    pub struct Manager {
        folder: tempfile::TempDir,
        thread: Option<JoinHandle<Vec<Request>>>,
    }

    impl Manager {
        /// Serves one connection by `serve`, which returns the requests that it saw.
        pub fn serving(serve: impl FnOnce(UnixStream) -> Vec<Request> + Send + 'static) -> Manager {
            let folder = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(folder.path().join("control.sock")).unwrap();
            let thread = thread::spawn(move || serve(listener.accept().unwrap().0));
            Manager {
                folder,
                thread: Some(thread),
            }
        }

        /// Answers each request by what `answer` says, until the client hangs up.
        pub fn answering(
            mut answer: impl FnMut(&Request) -> Vec<Said> + Send + 'static,
        ) -> Manager {
            Manager::serving(move |mut stream| {
                let mut decoder = Decoder::new();
                let mut seen = Vec::new();
                let mut buffer = [0; 1024];
                loop {
                    match stream.read(&mut buffer) {
                        Ok(0) | Err(_) => return seen,
                        Ok(length) => decoder.feed(&buffer[..length]),
                    }
                    while let Some(request) = decoder.next() {
                        let request = request.unwrap();
                        let mut out = Vec::new();
                        for (reply, continues) in answer(&request) {
                            encode(&reply, continues, &mut out);
                        }
                        seen.push(request);
                        // The client may have what it wanted.
                        let _ = stream.write_all(&out);
                    }
                }
            })
        }

        pub fn path(&self) -> PathBuf {
            self.folder.path().join("control.sock")
        }

        /// What it was asked for, once the client has hung up.
        pub fn seen(mut self) -> Vec<Request> {
            self.thread.take().unwrap().join().unwrap()
        }
    }

    /// A path in a folder that lives as long as the first of the two.
    pub fn nowhere() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Path::new(folder.path()).join("control.sock");
        (folder, path)
    }
}

#[cfg(test)]
mod tests {
    use super::fake::{Manager, nowhere};
    use super::*;
    use crate::control::call::Request;
    use crate::control::wire::encode;
    use std::os::unix::net::UnixListener;

    const MOMENT: Duration = Duration::from_millis(20);

    fn ask(path: &Path, patience: Duration) -> Result<Reply, Trouble> {
        Client::connect(path, patience)?.call(&Call::GetInfo, Some(patience), None)
    }

    fn done(message: &str) -> Reply {
        Reply::Done {
            message: Some(message.into()),
        }
    }

    #[test]
    fn a_reply_is_what_the_manager_said() {
        let manager = Manager::answering(|_| vec![(Ok(Reply::info()), false)]);
        assert_eq!(ask(&manager.path(), PATIENCE), Ok(Reply::info()));
        let request = Request {
            call: Ok(Call::GetInfo),
            more: false,
            oneway: false,
        };
        assert_eq!(manager.seen(), [request]);
    }

    #[test]
    fn progress_is_passed_on_and_the_last_reply_returned() {
        let step = |done| Reply::Progress {
            text: format!("{done} of 2"),
            unit: "web".into(),
            done,
            wanted: 2,
        };
        let manager = Manager::answering(move |_| {
            vec![
                (Ok(step(1)), true),
                (Ok(step(2)), true),
                (Ok(done("all is well")), false),
            ]
        });
        let mut texts = Vec::new();
        let mut note = |text: &str| texts.push(text.to_owned());
        let mut client = Client::connect(&manager.path(), PATIENCE).unwrap();
        let reply = client.call(&Call::GetInfo, Some(PATIENCE), Some(&mut note));
        assert_eq!(reply, Ok(done("all is well")));
        assert_eq!(texts, ["1 of 2", "2 of 2"]);
        drop(client);
        assert!(manager.seen()[0].more);
    }

    #[test]
    fn an_error_is_a_failure_with_its_exit_code() {
        let no_unit = Failure::NoSuchUnit {
            name: "wev".into(),
            nearest: Some("web".into()),
        };
        for (failure, code) in [(no_unit, 4), (Failure::ShuttingDown, 1)] {
            let said = failure.clone();
            let manager = Manager::answering(move |_| vec![(Err(said.clone()), false)]);
            let trouble = ask(&manager.path(), PATIENCE).unwrap_err();
            assert_eq!(trouble.code(), code);
            assert_eq!(trouble, Trouble::Failure(failure));
        }
    }

    #[test]
    fn nobody_listening_says_where() {
        let (_folder, path) = nowhere();
        let trouble = ask(&path, PATIENCE).unwrap_err();
        assert_eq!(
            (trouble.code(), &trouble),
            (3, &Trouble::NotListening(path.clone()))
        );
        assert!(
            trouble
                .to_string()
                .contains(&format!("`{}`", path.display()))
        );
        // What a manager that was killed leaves behind.
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(
            ask(&path, PATIENCE),
            Err(Trouble::NotListening(path.clone()))
        );
        // Below a file.
        let below = path.join("control.sock");
        assert_eq!(ask(&below, PATIENCE), Err(Trouble::NotListening(below)));
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_as_such() {
        let path = PathBuf::from(format!("/{}", "x".repeat(200)));
        let trouble = ask(&path, PATIENCE).unwrap_err();
        assert_eq!((trouble.code(), &trouble), (1, &Trouble::PathTooLong(path)));
    }

    #[test]
    fn a_socket_that_may_not_be_used_is_not_taken_for_none() {
        let error = io::Error::from(ErrorKind::PermissionDenied);
        let trouble = Trouble::connecting(Path::new("/x"), &error);
        assert_eq!(
            (trouble.code(), &trouble),
            (1, &Trouble::Denied("/x".into()))
        );
    }

    #[test]
    fn a_refusal_is_read_though_the_manager_hung_up_before_it_was_asked() {
        let manager = Manager::serving(|mut stream| {
            let mut out = Vec::new();
            encode(&Err(Failure::PermissionDenied), false, &mut out);
            stream.write_all(&out).unwrap();
            Vec::new()
        });
        let mut client = Client::connect(&manager.path(), PATIENCE).unwrap();
        // It has ended, so its end of the connection is closed.
        manager.seen();
        let trouble = client.call(&Call::GetInfo, Some(PATIENCE), None);
        assert_eq!(trouble, Err(Trouble::Failure(Failure::PermissionDenied)));
    }

    #[test]
    fn a_manager_that_ends_before_it_answers_is_gone() {
        let manager = Manager::serving(|mut stream| {
            let _ = stream.read(&mut [0; 1024]);
            Vec::new()
        });
        assert_eq!(ask(&manager.path(), PATIENCE), Err(Trouble::Gone));
    }

    #[test]
    fn a_manager_that_accepts_nothing_is_given_up() {
        let (_folder, path) = nowhere();
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        socket.listen(0).unwrap();
        // The queue takes one more than it was told, see unix_recvq_full() in the kernel: this one waits for an answer.
        assert_eq!(ask(&path, MOMENT), Err(Trouble::Silent(path.clone())));
        // It has hung up and is in the queue all the same, so this one waits to be let in.
        assert_eq!(
            Client::connect(&path, MOMENT).unwrap_err(),
            Trouble::Silent(path)
        );
    }

    #[test]
    fn a_manager_that_talks_on_without_an_answer_is_given_up() {
        let manager = Manager::serving(|mut stream| {
            while stream.write_all(b" ").is_ok() {}
            Vec::new()
        });
        let path = manager.path();
        let trouble = ask(&path, MOMENT).unwrap_err();
        // However fast it is: either the time or the limit of a message ends it.
        assert!(
            matches!(trouble, Trouble::Silent(_) | Trouble::NotAManager(..)),
            "{trouble:?}"
        );
    }

    #[test]
    fn who_speaks_another_language_is_no_manager() {
        let manager = Manager::serving(|mut stream| {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\0").unwrap();
            let _ = stream.read(&mut [0; 1024]);
            Vec::new()
        });
        let trouble = ask(&manager.path(), PATIENCE).unwrap_err();
        assert!(matches!(trouble, Trouble::NotAManager(..)), "{trouble:?}");
        assert_eq!(trouble.code(), 1);
    }
}
