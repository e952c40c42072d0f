//! Sockets that the manager itself was given through LISTEN_FDS, as sd_listen_fds(3) describes.

use crate::plan;
use crate::sys::inherit;
use crate::sys::socket::{self, Bound, Listen};
use crate::unit::Inherit;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// Sockets that nobody has taken yet.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(OwnedFd, String)>,
}

impl Inherited {
    /// Takes them from the environment, if they are meant for this process.
    pub fn receive() -> Inherited {
        Inherited {
            sockets: inherit::listen_fds(),
        }
    }

    /// The one that `spec` asks for, if any: by name, else by address. An error if it must have one and there is none,
    /// or if the one of its name is of another kind.
    pub fn take(
        &mut self,
        spec: &plan::Socket,
        listen: &Listen<'_>,
    ) -> Result<Option<Bound>, String> {
        if spec.unit.inherit == Inherit::Never {
            return Ok(None);
        }
        let by_name = self
            .sockets
            .iter()
            .position(|(fd, name)| name == spec.fd_name() && socket::matches(fd.as_fd(), listen));
        let index = by_name.or_else(|| {
            self.sockets
                .iter()
                .position(|(fd, _)| socket::matches(fd.as_fd(), listen))
        });
        match index {
            Some(index) => {
                let (fd, _) = self.sockets.swap_remove(index);
                let adopted = socket::adopt(fd.as_fd(), listen).and_then(|()| socket::describe(fd.as_fd()));
                let description = adopted.map_err(|error| format!("the inherited socket is unfit: {error}"))?;
                Ok(Some(Bound { fd, local: description.local }))
            }
            None if spec.unit.inherit == Inherit::Require => {
                Err("`inherit` is \"require\", and no socket of this name or address came through LISTEN_FDS".into())
            }
            None => Ok(None),
        }
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
            .collect()
    }

    /// Says what nobody wanted, and closes it.
    pub fn close_rest(self) {
        for (_, name) in self.sockets {
            log::warn!(target: "manager", "the inherited socket `{name}` is closed: no socket unit has its name or address");
        }
    }
}
