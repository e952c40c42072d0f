//! The wire: typed calls, replies and errors, the Varlink codec, the status documents.
//!
//! Nothing here does I/O. The runtime feeds what a client sent to a [`wire::Decoder`], answers each [`call::Request`], and
//! sends what [`wire::encode`] appended to a buffer; the command line does the reverse with [`wire::encode_call`] and
//! [`wire::ReplyDecoder`]. Whatever a peer sends, memory stays within [`wire::MAX_MESSAGE`] or [`wire::MAX_REPLY`].
//!
//! The protocol is Varlink: JSON objects, each ended by a NUL byte, answered in order. The interface stands in
//! `io.tentpole.Manager.varlink`, and tests hold the code to it.

#![deny(clippy::disallowed_methods)]

pub mod call;
pub mod document;
pub mod wire;

#[cfg(test)]
mod idl;
