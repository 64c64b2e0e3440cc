//! Ignore patterns, as in a `.gitignore` file.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use glob::{MatchOptions, Pattern};

use super::limits::Limits;
use super::refused::Refused;

/// Patterns relative to the root; the last one that matches decides.
///
/// - Without a slash in front or within, a pattern is for names at any depth: `*.o`, `node_modules`.
/// - With one, it is for the path from the root: `/target`, `build/*.log`.
/// - A slash at the end: directories only. `**` stands for any number of directories.
/// - `!` in front: what matches is not ignored after all, unless a directory above it is.
/// - `*`, `?`, `[a-z]`, `[!a-z]` within a name; `\` takes the next character as it is.
/// - Bytes of a name that are not UTF-8 are matched as U+FFFD.
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    parts: Vec<Part>,
    anchored: bool,
    directories: bool,
    negated: bool,
}

/// Names are matched one by one: a pattern of many stars then costs little on any path.
#[derive(Debug, Clone)]
enum Part {
    AnyDepth,
    Name(Pattern),
}

const NAMES: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: false,
    require_literal_leading_dot: false,
};

impl Ignore {
    /// Reads patterns. Empty lines and lines that begin with `#` are comments.
    ///
    /// # Errors
    /// `Pattern` with the index of the first that cannot be read or is too long, `TooManyPatterns`.
    pub fn new(patterns: &[String], limits: &Limits) -> Result<Self, Refused> {
        if patterns.len() > limits.patterns {
            return Err(Refused::TooManyPatterns {
                given: patterns.len(),
                limit: limits.patterns,
            });
        }
        let mut rules = Vec::with_capacity(patterns.len());
        for (index, pattern) in patterns.iter().enumerate() {
            if pattern.is_empty() || pattern.starts_with('#') {
                continue;
            }
            let rule = if pattern.len() > limits.pattern_bytes {
                Err(format!("longer than {} bytes", limits.pattern_bytes))
            } else {
                Rule::new(pattern)
            };
            rules.push(rule.map_err(|fault| Refused::Pattern {
                index,
                pattern: pattern.chars().take(80).collect(),
                fault,
            })?);
        }
        Ok(Self { rules })
    }

    /// Whether `path` (relative to the root, not empty) is ignored. That none of the directories above
    /// it is, the caller has made sure of.
    #[must_use]
    pub fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        if self.rules.is_empty() || path.is_empty() {
            return false;
        }
        let names: Vec<Cow<'_, str>> = path
            .split(|byte| *byte == b'/')
            .map(|name| OsStr::from_bytes(name).to_string_lossy())
            .collect();
        let hit = self
            .rules
            .iter()
            .rev()
            .find(|rule| rule.matches(&names, is_dir));
        hit.is_some_and(|rule| !rule.negated)
    }

    /// Whether a directory may be ignored at one place and not at another, by more than its name.
    pub(super) fn depends_on_place(&self) -> bool {
        self.rules.iter().any(|rule| rule.anchored)
    }
}

impl Rule {
    fn new(pattern: &str) -> Result<Self, String> {
        let (negated, body) = match pattern.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, pattern),
        };
        let (directories, body) = match body.strip_suffix('/') {
            Some(rest) => (true, rest),
            None => (false, body),
        };
        let anchored = body.contains('/');
        let body = body.strip_prefix('/').unwrap_or(body);
        let parts = body.split('/').map(Part::new).collect::<Result<_, _>>()?;
        Ok(Self {
            parts,
            anchored,
            directories,
            negated,
        })
    }

    fn matches(&self, names: &[Cow<'_, str>], is_dir: bool) -> bool {
        let names = if self.anchored {
            names
        } else {
            names.split_at(names.len() - 1).1
        };
        (is_dir || !self.directories) && matches(&self.parts, names)
    }
}

impl Part {
    fn new(text: &str) -> Result<Self, String> {
        if text.is_empty() || text == "." || text == ".." {
            return Err(format!("`{text}` is no name"));
        }
        if text == "**" {
            return Ok(Self::AnyDepth);
        }
        let mut plain = String::with_capacity(text.len());
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => {
                    let next = characters.next().ok_or("ends with `\\`")?;
                    plain.push_str(&Pattern::escape(next.encode_utf8(&mut [0; 4])));
                }
                // Within a name two stars are no more than one.
                '*' if plain.ends_with('*') => {}
                other => plain.push(other),
            }
        }
        Pattern::new(&plain)
            .map(Self::Name)
            .map_err(|error| error.to_string())
    }
}

/// Matches parts against names, with the last `**` as the only place to go back to.
fn matches(parts: &[Part], names: &[Cow<'_, str>]) -> bool {
    let (mut part, mut name) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while name < names.len() {
        match parts.get(part) {
            Some(Part::AnyDepth) => {
                part += 1;
                back = Some((part, name));
                continue;
            }
            Some(Part::Name(pattern)) if pattern.matches_with(&names[name], NAMES) => {
                part += 1;
                name += 1;
                continue;
            }
            _ => {}
        }
        let Some((after, from)) = back else {
            return false;
        };
        back = Some((after, from + 1));
        (part, name) = (after, from + 1);
    }
    // `a/**` is for what is in `a`, not for `a`: a `**` that is left over does not match.
    part == parts.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignore(patterns: &[&str]) -> Ignore {
        let patterns: Vec<_> = patterns
            .iter()
            .map(|pattern| (*pattern).to_owned())
            .collect();
        Ignore::new(&patterns, &Limits::default()).unwrap()
    }

    /// The expected answers are those of `git check-ignore`.
    #[test]
    fn patterns_mean_what_they_mean_to_git() {
        let yes = [
            ("*.o", "a/b/x.o"),
            ("node_modules", "a/node_modules"),
            ("/target", "target"),
            ("build/*.log", "build/x.log"),
            ("a/**", "a/b/c"),
            ("**/foo", "foo"),
            ("**/foo", "a/b/foo"),
            ("a/**/b", "a/b"),
            ("a/**/b", "a/x/y/b"),
            ("[a-c]?", "bz"),
            ("\\*x", "*x"),
            ("\\!x", "!x"),
            ("a**b", "axyb"),
            (".*", ".git"),
        ];
        for (pattern, path) in yes {
            assert!(
                ignore(&[pattern]).matches(path.as_bytes(), false),
                "{pattern} {path}"
            );
        }
        let no = [
            ("/target", "a/target"),
            ("build/*.log", "build/a/x.log"),
            ("a/**", "a"),
            ("\\*x", "yx"),
            ("foo/", "foo"),
            ("[!a]", "a"),
            ("#x", "#x"),
        ];
        for (pattern, path) in no {
            assert!(
                !ignore(&[pattern]).matches(path.as_bytes(), false),
                "{pattern} {path}"
            );
        }
        assert!(ignore(&["foo/"]).matches(b"a/foo", true));
    }

    #[test]
    fn the_last_pattern_that_matches_decides() {
        let ignore = ignore(&["*.log", "!keep.log", "/x/keep.log"]);
        assert!(ignore.matches(b"a.log", false));
        assert!(!ignore.matches(b"keep.log", false));
        assert!(ignore.matches(b"x/keep.log", false));
    }

    #[test]
    fn many_stars_do_not_take_long() {
        let ignore = ignore(&[&format!(
            "{}b/**/{}b/x",
            "*a".repeat(50),
            "**/a/".repeat(50)
        )]);
        let path = vec!["a".repeat(255); 100].join("/");
        assert!(!ignore.matches(path.as_bytes(), false));
    }
}
