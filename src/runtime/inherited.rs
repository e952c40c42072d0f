//! Sockets that the manager itself was given through LISTEN_FDS, as sd_listen_fds(3) describes.

use crate::plan;
use crate::sys::inherit;
use crate::sys::socket::{self, Bound, Listen};
use crate::unit::{Gather, Inherit};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

/// Sockets that nobody has taken yet.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(OwnedFd, String)>,
    /// The names that several of them had.
    shared: BTreeSet<String>,
}

impl Inherited {
    /// Takes them from the environment, if they are meant for this process.
    pub fn receive() -> Inherited {
        let sockets = inherit::listen_fds();
        let mut seen = BTreeSet::new();
        let again = sockets.iter().filter(|(_, name)| !seen.insert(name));
        let shared = again.map(|(_, name)| name.clone()).gather();
        Inherited { sockets, shared }
    }

    /// The one that `spec` asks for, if any: by name, else by address. An error if it must have one and there is none.
    pub fn take(
        &mut self,
        spec: &plan::Socket,
        listen: &Listen<'_>,
    ) -> Result<Option<Bound>, String> {
        if spec.unit.inherit == Inherit::Never {
            return Ok(None);
        }
        let Some(index) = self.find(spec.fd_name(), listen) else {
            return match spec.unit.inherit {
                Inherit::Require => Err("`inherit` is \"require\", and no socket of this name or address came through LISTEN_FDS".into()),
                Inherit::Auto | Inherit::Never => Ok(None),
            };
        };
        let (fd, _) = self.sockets.swap_remove(index);
        let adopted = socket::adopt(fd.as_fd(), listen).and_then(|()| socket::describe(fd.as_fd()));
        let description =
            adopted.map_err(|error| format!("the inherited socket is unfit: {error}"))?;
        let local = description.local;
        log::debug!(target: &format!("socket.{}", spec.name()), "inherited, on {local}");
        Ok(Some(Bound { fd, local }))
    }

    /// All sockets of one unit of systemd have the same name: then the address decides. Where there is only one, the name
    /// does, whatever its address.
    fn find(&self, wanted: &str, listen: &Listen<'_>) -> Option<usize> {
        let position = |fits: &dyn Fn(&OwnedFd, &str) -> bool| {
            self.sockets.iter().position(|(fd, name)| fits(fd, name))
        };
        let is_namesake = |name: &str| name == wanted;
        let both =
            |fd: &OwnedFd, name: &str| is_namesake(name) && socket::matches(fd.as_fd(), listen);
        let by_name =
            |fd: &OwnedFd, name: &str| is_namesake(name) && socket::is_alike(fd.as_fd(), listen);
        let by_address = |fd: &OwnedFd, _: &str| socket::matches(fd.as_fd(), listen);
        let is_only_one = !self.shared.contains(wanted);
        position(&both)
            .or_else(|| position(&by_name).filter(|_| is_only_one))
            .or_else(|| position(&by_address))
    }

    /// Those whose names begin with `mark`, by what follows it.
    pub fn take_marked(&mut self, mark: &str) -> BTreeMap<String, OwnedFd> {
        let (marked, others) = std::mem::take(&mut self.sockets)
            .into_iter()
            .partition(|(_, name)| name.starts_with(mark));
        self.sockets = others;
        let marked: Vec<(OwnedFd, String)> = marked;
        let named = marked.into_iter();
        named
            .map(|(fd, name)| (name[mark.len()..].to_owned(), fd))
            .gather()
    }

    /// Says what nobody wanted, and closes it.
    pub fn close_rest(self) {
        for (_, name) in self.sockets {
            log::warn!(target: "manager", "the inherited socket `{name}` is closed: no socket unit has its name or address");
        }
    }
}
