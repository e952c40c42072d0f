//! The end of every stack, for a program that never unwinds one.
//!
//! A panic says its message and its place, and the program aborts. The frames below it would be addresses without names
//! once the program is stripped. But the code that would name them, a reader of DWARF and all, is a tenth of the program,
//! and the unwinder, as a shared library, a tenth of the time from the exec of a manager to its first worker. So where a panic
//! aborts and no debugging is asked for, each stack is said to end at once, and the optimizer sees that nobody needs the rest.
//! `build.rs` leaves out the tables that an unwinder would read.
//!
//! Not where the C library is a part of the program: it brings the unwinder along.

use std::ffi::{c_int, c_void};

/// `_URC_END_OF_STACK` (Itanium C++ ABI: Exception Handling, 1.2.1).
const END_OF_STACK: c_int = 5;

/// Keeps a symbol to the program. A library that the C library loads, to look up users, say, unwinds with the real one.
macro_rules! hide {
    ($name:ident) => {
        // SAFETY: a directive of the assembler, which makes no code.
        std::arch::global_asm!(concat!(".hidden ", stringify!($name)));
    };
}

hide!(_Unwind_Backtrace);

// SAFETY: the signature of the unwinder's interface; a context is for a step alone, and there is none.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(
    _step: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
    _argument: *mut c_void,
) -> c_int {
    END_OF_STACK
}

/// What the standard library was compiled to call while a stack is unwound.
macro_rules! never_called {
    ($($name:ident)*) => {$(
        hide!($name);

        // SAFETY: only an unwinder would call it, or have it called, and there is none.
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> ! {
            std::process::abort()
        }
    )*};
}

never_called! {
    _Unwind_GetDataRelBase
    _Unwind_GetIP
    _Unwind_GetIPInfo
    _Unwind_GetLanguageSpecificData
    _Unwind_GetRegionStart
    _Unwind_GetTextRelBase
    _Unwind_Resume
    _Unwind_SetGR
    _Unwind_SetIP
}
