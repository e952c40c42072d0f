//! The `tentpole` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    tentpole::cli::main()
}
