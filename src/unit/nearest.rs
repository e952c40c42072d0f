//! The known word that was probably meant.

/// The word of `known`, which are ASCII mostly, that is nearest to `word`, if any is near enough that a slip of the hand
/// explains it: wrong case or `-` for `_`, or about one edit (insert, delete, replace, swap two neighbours) for each three
/// characters. Else the one that `word` shortens, or has a part of, if there is but one.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    find(word, &mut known.into_iter())
}

fn find<'k>(word: &str, known: &mut dyn Iterator<Item = &'k str>) -> Option<&'k str> {
    // Nobody slips into a word this long; and the comparison costs the product of the lengths.
    if word.len() > 64 {
        return None;
    }
    let word = folded(word);
    let allowed = (word.len() / 3).max(1);
    let mut near: Option<(usize, &str)> = None;
    // Whether there is no other of the same kinship.
    let mut kin: Option<(Kinship, &str, bool)> = None;
    for candidate in known {
        let folded = folded(candidate);
        // Each edit changes the length by one at most; this spares most of the comparisons.
        if folded.len().abs_diff(word.len()) <= allowed {
            let edits = distance(&word, &folded);
            let is_near = edits <= allowed && edits < folded.len();
            if is_near && near.is_none_or(|(least, _)| edits < least) {
                near = Some((edits, candidate));
            }
        }
        let Some(kinship) = kinship(&word, &folded) else {
            continue;
        };
        match &mut kin {
            Some((known, ..)) if *known < kinship => {}
            Some((known, other, _)) if *known == kinship && candidate.starts_with(*other) => {}
            Some((known, other, is_alone)) if *known == kinship => {
                *is_alone &= other.starts_with(candidate);
                *other = candidate;
            }
            _ => kin = Some((kinship, candidate, true)),
        }
    }
    let kin = kin.filter(|(.., is_alone)| *is_alone);
    near.map(|(_, near)| near).or(kin.map(|(_, kin, _)| kin))
}

/// What two words have in common, the closest first.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Kinship {
    /// The known one begins with the other: `stop_sig`.
    Shortened,
    /// One is a part of the other, or begins it: `sock_type`, `environ`.
    Part,
    /// The known one has the other in it: `reuse`.
    Within,
}

fn kinship(word: &[u8], known: &[u8]) -> Option<Kinship> {
    let (long, short) = match word.len() < known.len() {
        true => (known, word),
        false => (word, known),
    };
    let mut parts = long.split(|byte| b"_.".contains(byte));
    match short.len() {
        0..3 => None,
        _ if known.starts_with(word) => Some(Kinship::Shortened),
        _ if long.starts_with(short) || parts.any(|part| part == short) => Some(Kinship::Part),
        3 => None,
        length => (known.windows(length).any(|part| part == word)).then_some(Kinship::Within),
    }
}

fn folded(word: &str) -> Vec<u8> {
    let mut folded = word.to_ascii_lowercase().into_bytes();
    for byte in &mut folded {
        if *byte == b'-' {
            *byte = b'_';
        }
    }
    folded
}

/// Optimal string alignment distance.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, &ca) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, &cb) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(ca != cb))
                .min(above[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && ca == b[j - 1] && a[i - 1] == cb {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_are_recognized_and_strangers_are_not() {
        let known = ["backlog", "blocking", "listen", "type", "user", "uid"];
        for (word, meant) in [
            ("backlag", Some("backlog")),
            ("Backlog", Some("backlog")),
            ("lisetn", Some("listen")),
            ("listn", Some("listen")),
            ("usr", Some("user")),
            ("typ", Some("type")),
            ("timeout", None),
            ("x", None),
            ("", None),
            ("\u{1f600}", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
        assert_eq!(nearest(&"listen".repeat(10_000), known), None);
    }

    #[test]
    fn a_word_that_was_shortened_is_recognized_where_it_can_be_but_one() {
        let known = [
            "numprocesses",
            "sockets",
            "use_sockets",
            "stdin_socket",
            "stop_signal",
            "stop_children",
            "graceful_timeout",
            "type",
            "so_reuseport",
            "env",
            "env_file",
            "max_age",
            "max_age_variance",
            "max_retry",
            "rlimits.nofile",
        ];
        for (word, meant) in [
            ("numproc", Some("numprocesses")),
            ("proc", Some("numprocesses")),
            ("sock", Some("sockets")),
            ("stop_sig", Some("stop_signal")),
            ("graceful", Some("graceful_timeout")),
            ("sock_type", Some("type")),
            ("reuse", Some("so_reuseport")),
            ("environ", Some("env")),
            ("nofile", Some("rlimits.nofile")),
            ("max_a", Some("max_age")),
            ("max", None),
            ("stop", None),
            ("nu", None),
            ("out", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
    }
}
