//! A worker to try things with: answers whoever comes to a socket that it was given, in HTTP where that makes sense.

use super::{Error, ExitCode};
use crate::runtime::{end_between_clients, given_socket, wait_until_readable, was_asked_to_end};
use socket2::{Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::Duration;

/// A client that sends nothing must not hold up the others for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request that is longer is answered unread.
const MOST: usize = 16 * 1024;

/// Serves on descriptor `fd` until it is ended, and then the client that it has.
pub(super) fn hello(fd: i32) -> Result<ExitCode, Error> {
    let Some(socket) = given_socket(fd) else {
        return Err(anyhow::anyhow!(
            "descriptor {fd} is no socket that came by LISTEN_FDS; `hello` is meant as the `cmd` of a watcher: \
             cmd = \"tentpole hello $(circus.socket.web)\""
        )
        .into());
    };
    let socket = Socket::from(socket);
    let wid = std::env::var("TENTPOLE_WID").unwrap_or_else(|_| "?".into());
    let text = format!("hello from worker {wid}, pid {}\n", std::process::id());
    let kind = socket.r#type();
    let one = match kind {
        Ok(Type::STREAM | Type::SEQPACKET) if socket.is_listener().unwrap_or(false) => answer_next,
        Ok(Type::DGRAM) => echo_next,
        Ok(_) | Err(_) => {
            return Err(anyhow::anyhow!(
                "descriptor {fd} is nothing that `hello` can answer on: it takes listening sockets of type stream or \
                 seqpacket, and those of type dgram"
            )
            .into());
        }
    };
    end_between_clients(socket.as_fd()).map_err(|error| failed("sigaction", error))?;
    loop {
        match one(&socket, &text) {
            Err(_) if was_asked_to_end() => return Ok(ExitCode::SUCCESS),
            Ok(()) => {}
            // The socket has `blocking = false`, or another worker was faster.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait_until_readable(&socket).map_err(|error| failed("poll", error))?;
            }
            // The client has left, or a signal came.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted
                ) => {}
            Err(error) => {
                return Err(match kind {
                    Ok(Type::DGRAM) => failed("recvfrom", error),
                    _ => failed("accept", error),
                });
            }
        }
    }
}

fn failed(call: &'static str, error: io::Error) -> Error {
    anyhow::Error::from(error).context(call).into()
}

/// Takes one client and answers it.
fn answer_next(listener: &Socket, text: &str) -> io::Result<()> {
    let (client, _) = listener.accept()?;
    // What one client does is its own business.
    drop(answer(client, text));
    Ok(())
}

fn answer(mut client: Socket, text: &str) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    // A message is whole.
    let one_read = client.r#type()? == Type::SEQPACKET;
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MOST {
        match client.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => request.extend_from_slice(&buffer[..count]),
            // It is asked to end, and has this one to answer.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if one_read {
            break;
        }
    }
    // At once, so that it is one message too.
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    client.write_all(answer.as_bytes())
}

/// Takes one datagram and sends its sender the text, where it has an address and room for it.
fn echo_next(socket: &Socket, text: &str) -> io::Result<()> {
    let (_, sender) = socket.recv_from(&mut [MaybeUninit::uninit(); 1])?;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    drop(socket.send_to_with_flags(text.as_bytes(), &sender, flags));
    Ok(())
}
