//! Finds the known word that a misspelt word probably stands for.

/// The likeness, 0 to 1, that a word must exceed to be offered. One letter left out, added, changed
/// or swapped in a word of three letters is enough.
const LEAST: f64 = 0.6;
/// The longest word that is compared, in bytes: a comparison takes time in proportion to the
/// product of both lengths.
const WORD_MAX: usize = 256;

/// The number of bytes from which on the beginning of a known word is likened to it.
const BEGINNING: usize = 3;
/// The least likeness of such a beginning: just enough to be offered.
const ALIKE: f64 = 0.61;

/// Returns the candidate that is most like `word`, if `word` is near enough to be a misspelling or
/// the beginning of it. Case is ignored. Of equally near candidates it is the first. None for a
/// word of more than 256 bytes.
#[must_use]
pub(crate) fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    if word.len() > WORD_MAX {
        return None;
    }
    let word = word.to_lowercase();
    let mut best = None;
    let mut most = LEAST;
    for candidate in candidates {
        if candidate.len() > WORD_MAX {
            continue;
        }
        let candidate_lower = candidate.to_lowercase();
        let mut likeness = strsim::normalized_damerau_levenshtein(&word, &candidate_lower);
        if word.len() >= BEGINNING && candidate_lower.starts_with(&word) {
            likeness = likeness.max(ALIKE);
        }
        if likeness > most {
            (best, most) = (Some(candidate), likeness);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_leads_to_the_nearest_word() {
        let words = ["memory", "loops", "watches", "slots", "log", "ps"];
        let meant = |word| did_you_mean(word, words);
        for (word, expected) in [
            ("memroy", "memory"),
            ("Memory", "memory"),
            ("memmory", "memory"),
            ("lops", "loops"),
            ("loop", "loops"),
            ("lgo", "log"),
            ("wathces", "watches"),
            ("mem", "memory"),
        ] {
            assert_eq!(meant(word), Some(expected), "{word}");
        }
    }

    #[test]
    fn a_word_that_is_like_none_leads_to_none() {
        for word in ["", "x", "me", "colour", "pxyz", &"memory".repeat(100)] {
            assert_eq!(did_you_mean(word, ["memory", "ps"]), None, "{word}");
        }
        assert_eq!(did_you_mean("memory", []), None);
    }

    #[test]
    fn of_equally_near_words_the_first_is_offered() {
        assert_eq!(did_you_mean("bat", ["cat", "hat"]), Some("cat"));
    }
}
