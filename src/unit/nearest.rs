//! The known word that was probably meant.

/// The word of `known`, which are ASCII, that is nearest to `word`, if any is near enough that a slip of the hand explains it: wrong
/// case or `-` for `_`, or about one edit (insert, delete, replace, swap two neighbours) for each three characters.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // Nobody slips into a word this long; and the comparison costs the product of the lengths.
    if word.len() > 64 {
        return None;
    }
    let word = folded(word);
    let allowed = (word.len() / 3).max(1);
    known
        .into_iter()
        // Each edit changes the length by one at most; this spares most of the comparisons.
        .filter(|candidate| candidate.len().abs_diff(word.len()) <= allowed)
        .map(|candidate| (distance(&word, &folded(candidate)), candidate))
        .filter(|(edits, candidate)| *edits <= allowed && *edits < candidate.len())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

fn folded(word: &str) -> Vec<char> {
    word.chars()
        .map(|c| {
            if c == '-' {
                '_'
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect()
}

/// Optimal string alignment distance.
fn distance(a: &[char], b: &[char]) -> usize {
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
}
