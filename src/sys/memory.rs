//! Files that live in memory: memfd_create(2).

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd};

/// `MFD_NOEXEC_SEAL` of linux/memfd.h: never to be executed. Needed where sysctl `vm.memfd_noexec` is 2.
const NOEXEC_SEAL: libc::c_uint = 8;

/// An empty file for reading and writing that no folder holds; CLOEXEC. It lives as long as a descriptor of it does. `name`
/// is what /proc shows, at most 249 bytes.
pub fn file(name: &CStr) -> io::Result<File> {
    let make = |flags: libc::c_uint| {
        // SAFETY: the name is a C string that outlives the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    };
    match make(NOEXEC_SEAL) {
        // A kernel before 6.3 does not know the flag.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => make(0),
        result => result,
    }
}

/// Gives back the memory of a part of the file, which then reads as zeroes; the file keeps its length.
pub fn free(file: &File, part: Range<u64>) -> io::Result<()> {
    use nix::fcntl::{FallocateFlags, fallocate};
    let number =
        |value: u64| i64::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
    if part.is_empty() {
        return Ok(());
    }
    let (start, length) = (number(part.start)?, number(part.end - part.start)?);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, flags, start, length)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_file_in_memory_is_written_read_and_not_inherited() {
        let file = file(c"tentpole-test").unwrap();
        file.write_all_at(b"hello", 3).unwrap();
        let mut text = [1; 8];
        file.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"\0\0\0hello");
        // SAFETY: F_GETFD takes no pointers.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC);
    }

    #[test]
    fn a_part_that_is_given_back_costs_nothing_and_reads_as_zeroes() {
        let file = file(c"tentpole-test").unwrap();
        let page = 1 << 16;
        file.write_all_at(&vec![7; 4 * page], 0).unwrap();
        let before = file.metadata().unwrap();
        free(&file, 1..3 * page as u64).unwrap();
        let after = file.metadata().unwrap();
        assert_eq!(after.len(), before.len());
        assert!(after.blocks() < before.blocks());
        let mut text = vec![1; 4 * page];
        file.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(text[0], 7);
        assert!(text[1..3 * page].iter().all(|byte| *byte == 0));
        assert!(text[3 * page..].iter().all(|byte| *byte == 7));
        free(&file, 5..5).unwrap();
        assert!(free(&file, 5..u64::MAX).is_err());
    }
}
