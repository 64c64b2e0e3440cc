//! What a word that is not known may have meant.

/// How alike two words have to be, 0 to 1, for one to be offered in place of the other: about one letter in three
/// may differ.
const ALIKE: f64 = 0.6;

/// The candidate most like `word`, if one is alike enough.
pub(crate) fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let likeness = |candidate: &'a str| {
        let likeness = strsim::normalized_damerau_levenshtein(word, candidate);
        // Much longer than what was typed, but it begins with that.
        let begins = word.len() > 2 && candidate.starts_with(word);
        (
            if begins {
                likeness.max(ALIKE)
            } else {
                likeness
            },
            candidate,
        )
    };
    let alike = candidates.into_iter().map(likeness);
    let best = alike.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.and_then(|(likeness, candidate)| (likeness >= ALIKE).then_some(candidate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_word_and_another_word_finds_nothing() {
        let names = ["build", "test", "web-frontend", "memory"];
        for (typed, meant) in [
            ("biuld", Some("build")),
            ("buid", Some("build")),
            ("builds", Some("build")),
            ("web", Some("web-frontend")),
            ("memroy", Some("memory")),
            ("deploy", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(typed, names), meant, "{typed}");
        }
        assert_eq!(did_you_mean("a", []), None);
    }
}
