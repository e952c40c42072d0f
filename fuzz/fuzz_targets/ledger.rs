//! A ledger that was cut off, written over or made up. What is read was once committed whole, or nothing is read.

#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use tentpole::runtime::ledger::{Ledger, State};
use tentpole::sys::memory;

fuzz_target!(|input: &[u8]| {
    let Some((how, input)) = input.split_first() else {
        return;
    };
    let mut any = Unstructured::new(input);
    match how % 4 {
        0 => go_on(file(input)),
        1 => go_on(file(&made_up(input))),
        _ => drop(damaged(&mut any, how & 0x10 != 0)),
    }
});

fn file(bytes: &[u8]) -> OwnedFd {
    let file = memory::file(c"fuzz").expect("memory");
    file.write_all_at(bytes, 0).expect("memory");
    file.into()
}

/// If it can be read, it can be written on.
fn go_on(fd: OwnedFd) {
    let seen = Ledger::look(&fd);
    let Ok((mut ledger, mut state)) = Ledger::open(fd) else {
        assert!(seen.is_err());
        return;
    };
    assert_eq!(seen.ok(), Some(state.clone()));
    ledger.put("new", b"value".to_vec());
    ledger.commit().expect("memory");
    state.insert("new".into(), b"value".to_vec());
    assert_eq!(Ledger::look(ledger.fd()).ok(), Some(state));
}

/// A ledger whose checksums are right, whatever else it says: zero bytes in the input end a transaction, of which the first
/// byte is the kind and the second what is added to the sequence.
fn made_up(input: &[u8]) -> Vec<u8> {
    let mut bytes = b"tentpole\x01\0\0\0\0\0\0\0\x40\0\0\0\0\0\0\0".to_vec();
    bytes.resize(64, 0);
    let mut sequence = 0_u64;
    for transaction in input.split(|byte| *byte == 0xff) {
        let [kind, step, records @ ..] = transaction else {
            continue;
        };
        sequence = sequence.wrapping_add(u64::from(*step));
        let mut body = sequence.to_le_bytes().to_vec();
        body.extend((records.len() as u32).to_le_bytes());
        body.extend(u32::from(*kind).to_le_bytes());
        body.extend(records);
        bytes.extend(checksum(&body).to_le_bytes());
        bytes.extend(body);
    }
    bytes
}

/// As the ledger does it.
fn checksum(bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    bytes
        .chunks(8)
        .fold(bytes.len() as u64 ^ ODD, |sum, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            (sum ^ u64::from_le_bytes(word))
                .wrapping_mul(ODD)
                .rotate_left(29)
        })
}

/// A ledger in use, which then loses its end or has some bytes written over.
fn damaged(any: &mut Unstructured, cut: bool) -> Result<()> {
    let mut ledger = Ledger::create().expect("memory");
    let mut state = State::new();
    let mut committed = vec![State::new()];
    for _ in 0..any.int_in_range(1..=40)? {
        let key = format!("k{}", any.int_in_range(0..=5)?);
        match any.int_in_range(0..=7)? {
            0 => {
                ledger.delete(&key);
                state.remove(&key);
            }
            1 => {
                ledger.commit().expect("memory");
                committed.push(state.clone());
            }
            2 => {
                ledger.commit().expect("memory");
                committed.push(state.clone());
                let fd = ledger.fd().try_clone_to_owned().expect("a descriptor");
                let (again, read) = Ledger::open(fd).expect("nothing has happened to it");
                assert_eq!(read, state);
                ledger = again;
            }
            _ => {
                let value = vec![any.arbitrary()?; usize::from(any.arbitrary::<u16>()?)];
                ledger.put(&key, value.clone());
                state.insert(key, value);
            }
        }
    }
    let file = File::from(
        ledger
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .expect("a descriptor"),
    );
    let length = file.metadata().expect("memory").len();
    if cut {
        file.set_len(any.int_in_range(0..=length)?).expect("memory");
    } else {
        for _ in 0..any.int_in_range(1..=4)? {
            let at = any.int_in_range(0..=length - 1)?;
            file.write_all_at(&[any.arbitrary()?], at).expect("memory");
        }
    }
    match Ledger::look(&file) {
        Ok(read) => assert!(committed.contains(&read)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    Ok(())
}
