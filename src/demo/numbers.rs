//! The child of act 1, which numbers its lines so that a missing or repeated line is noticed.

use super::{Failure, require};

/// The number of lines that the child writes.
pub(super) const LINES: u64 = 10_000;

/// The line at which the clients are killed.
pub(super) const FATAL_LINE: u64 = 3_000;

/// The child's exit code, unlike any default.
pub(super) const EXIT_CODE: i32 = 7;

/// Returns the child's shell command: about two seconds of work, in bursts of 500 lines.
pub(super) fn command_line() -> String {
    format!(
        "n=0; while [ $n -lt {LINES} ]; do n=$((n+1)); echo $n; \
         [ $((n % 500)) -ne 0 ] || sleep 0.1; done; exit {EXIT_CODE}"
    )
}

/// A reader of the child's output that checks that every line comes once and in order.
#[derive(Debug, Default, Clone)]
pub(super) struct Numbers {
    lines: u64,
    bytes: u64,
    unfinished: Vec<u8>,
}

impl Numbers {
    /// Returns the number of complete lines read.
    pub(super) const fn lines(&self) -> u64 {
        self.lines
    }

    /// Returns the bytes of these lines.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes bytes that begin at `offset` of the output, up to the end of line `last`. Bytes
    /// that were taken before are skipped. Returns the new lines.
    pub(super) fn take(
        &mut self,
        offset: u64,
        data: &[u8],
        last: u64,
    ) -> Result<std::ops::Range<u64>, Failure> {
        let first = self.lines + 1;
        let unfinished = u64::try_from(self.unfinished.len()).unwrap_or(u64::MAX);
        let have = self.bytes + unfinished;
        let known = have.checked_sub(offset).ok_or_else(|| {
            Failure::Missing(format!("the output goes on at {offset} instead of {have}"))
        })?;
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        for &byte in data.get(known..).unwrap_or_default() {
            if self.lines == last {
                break;
            }
            self.unfinished.push(byte);
            if byte == b'\n' {
                self.line()?;
            }
        }
        Ok(first..self.lines + 1)
    }

    fn line(&mut self) -> Result<(), Failure> {
        let expected = format!("{}\n", self.lines + 1);
        require(self.unfinished == expected.as_bytes(), || {
            let line = String::from_utf8_lossy(&self.unfinished);
            format!("after line {} comes {line:?}", self.lines)
        })?;
        self.lines += 1;
        self.bytes += u64::try_from(expected.len()).unwrap_or_default();
        self.unfinished.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_each_line_once_wherever_the_output_is_cut() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.take(0, b"1\n2\n3", 10).unwrap(), 1..3);
        assert_eq!(numbers.take(2, b"2\n3\n4\n5\n", 4).unwrap(), 3..5);
        assert_eq!((numbers.lines(), numbers.bytes()), (4, 8));
        assert_eq!(numbers.take(8, b"5\n", 10).unwrap(), 5..6);
        assert_eq!(numbers.take(0, b"1\n2\n", 10).unwrap(), 6..6);
    }

    #[test]
    fn a_hole_and_a_line_out_of_order_are_found() {
        assert!(Numbers::default().take(2, b"2\n", 10).is_err());
        assert!(Numbers::default().take(0, b"1\n3\n", 10).is_err());
        assert!(Numbers::default().take(0, b"1\n1\n", 10).is_err());
    }
}
