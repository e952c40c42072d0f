//! The `tentpole` program; everything is in the library.
//!
//! Where the C library gives a program its arguments without the help of the standard library's own `main`, we do
//! without that: it reads /proc/self/maps to tell an overflow of the stack from another fault, which is a tenth of the time
//! from the exec of a manager to its first worker.

#![cfg_attr(all(target_env = "gnu", not(test)), no_main)]

// SAFETY: the C library calls it, once, as it is called here; nothing else of this name is linked.
#[cfg(all(target_env = "gnu", not(test)))]
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    use std::io::Write;

    tentpole::sys::signals::block_all_as_init();
    tentpole::sys::signals::ignore_broken_pipes();
    // Only where there is no /dev and no descriptor left for a pipe.
    if tentpole::sys::output::fill_standard().is_err() {
        return 1;
    }
    let code = tentpole::cli::main();
    let _ = std::io::stdout().flush();
    code.into()
}

#[cfg(not(all(target_env = "gnu", not(test))))]
fn main() -> std::process::ExitCode {
    tentpole::cli::main().into()
}
