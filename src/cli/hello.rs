//! A worker to try things with: answers every HTTP request on a socket that it was given.

use super::{Error, ExitCode};
use crate::runtime::given_listener;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A client that sends nothing must not hold up the others for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves on descriptor `fd` until it is ended.
pub(super) fn hello(fd: i32) -> Result<ExitCode, Error> {
    let Some(listener) = given_listener(fd) else {
        return Err(anyhow::anyhow!(
            "descriptor {fd} is no socket that came by LISTEN_FDS; `hello` is meant as the `cmd` of a watcher: \
             cmd = \"tentpole hello $(circus.socket.web)\""
        )
        .into());
    };
    let wid = std::env::var("TENTPOLE_WID").unwrap_or_else(|_| "?".into());
    let text = format!("hello from worker {wid}, pid {}\n", std::process::id());
    loop {
        match listener.accept() {
            // What one client does is its own business.
            Ok((stream, _)) => drop(answer(stream, &text)),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(anyhow::Error::from(error).context("accept").into()),
        }
    }
}

fn answer(mut stream: TcpStream, text: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 16 * 1024 {
        match stream.read(&mut buffer)? {
            0 => break,
            count => request.extend_from_slice(&buffer[..count]),
        }
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
}
