//! The wire: typed calls, replies and errors, the Varlink codec, the status documents.
