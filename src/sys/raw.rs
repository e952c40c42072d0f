//! System calls that leave errno alone.
//!
//! A child that shares the manager's memory shares its thread-local errno as well. While the parent stands still that
//! does no harm; where both run at once, neither may touch it.

/// Whether [`system_call`] leaves errno alone on this architecture.
pub(super) const LEAVES_ERRNO_ALONE: bool = cfg!(any(
    all(target_arch = "x86_64", target_pointer_width = "64"),
    target_arch = "aarch64",
    target_arch = "riscv64"
));

/// Makes a system call; its result, or errno.
///
/// # Safety
///
/// That of the call: pointers among the arguments must lead to memory as the call reads or writes it.
#[inline]
pub(super) unsafe fn system_call<const N: usize>(
    number: libc::c_long,
    arguments: [usize; N],
) -> Result<usize, i32> {
    const { assert!(N <= 6) };
    let mut all = [0; 6];
    for (slot, argument) in all.iter_mut().zip(arguments) {
        *slot = argument;
    }
    // SAFETY: the caller's promise.
    let result = unsafe { enter(number, all) };
    // The kernel's errors are the last 4095 values (MAX_ERRNO).
    if (-4095..0).contains(&result) {
        Err(-result as i32)
    } else {
        Ok(result as usize)
    }
}

/// # Safety
///
/// That of the call.
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
unsafe fn enter(number: libc::c_long, [a, b, c, d, e, f]: [usize; 6]) -> isize {
    let result;
    // SAFETY: the kernel's calling convention, syscall(2): the result is in rax, rcx and r11 are lost.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// # Safety
///
/// That of the call.
#[cfg(target_arch = "aarch64")]
unsafe fn enter(number: libc::c_long, [a, b, c, d, e, f]: [usize; 6]) -> isize {
    let result;
    // SAFETY: the kernel's calling convention, syscall(2): the result is in x0, nothing else is lost.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack),
        );
    }
    result
}

/// # Safety
///
/// That of the call.
#[cfg(target_arch = "riscv64")]
unsafe fn enter(number: libc::c_long, [a, b, c, d, e, f]: [usize; 6]) -> isize {
    let result;
    // SAFETY: the kernel's calling convention, syscall(2): the result is in a0, nothing else is lost.
    unsafe {
        std::arch::asm!(
            "ecall",
            in("a7") number,
            inlateout("a0") a as isize => result,
            in("a1") b, in("a2") c, in("a3") d, in("a4") e, in("a5") f,
            options(nostack),
        );
    }
    result
}

/// # Safety
///
/// That of the call.
#[cfg(not(any(
    all(target_arch = "x86_64", target_pointer_width = "64"),
    target_arch = "aarch64",
    target_arch = "riscv64"
)))]
unsafe fn enter(number: libc::c_long, [a, b, c, d, e, f]: [usize; 6]) -> isize {
    // SAFETY: the caller's promise; errno is that of the calling thread.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => -(unsafe { *libc::__errno_location() } as isize),
        result => result as isize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_gives_its_result_or_its_error() {
        // SAFETY: takes no pointers.
        let pid = unsafe { system_call(libc::SYS_getpid, []) };
        assert_eq!(pid, Ok(std::process::id() as usize));
        // SAFETY: takes no pointers; the descriptor does not exist.
        let closed = unsafe { system_call(libc::SYS_close, [usize::MAX]) };
        assert_eq!(closed, Err(libc::EBADF));
    }

    #[test]
    fn all_six_arguments_arrive() {
        let length = 4096;
        let (protection, flags) = (
            libc::PROT_READ as usize,
            (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize,
        );
        // SAFETY: a new mapping, which is taken away again.
        unsafe {
            let call = libc::SYS_mmap;
            assert_eq!(
                system_call(call, [0, length, protection, flags, usize::MAX, 1]),
                Err(libc::EINVAL)
            );
            let place = system_call(call, [0, length, protection, flags, usize::MAX, 0]).unwrap();
            assert_eq!(system_call(libc::SYS_munmap, [place, length]), Ok(0));
        }
    }
}
