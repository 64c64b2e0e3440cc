//! Joins pieces of output to lines. Each line has the time and the sequence number of the event with its first byte.

use crate::proto::Stream;

/// The longest line, in bytes; a longer one is split.
const LINE_MAX: usize = 64 * 1024;

/// A line of a process's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// The sequence number of the event with its first byte.
    pub(super) seq: u64,
    /// The time of that event, ns since 1970.
    pub(super) realtime_ns: u64,
    pub(super) stream: Stream,
    /// The line without its newline.
    pub(super) bytes: Vec<u8>,
    /// Whether the line ended with a newline.
    pub(super) whole: bool,
}

/// The incomplete lines: at most one for each stream.
#[derive(Debug, Default)]
pub(super) struct Lines {
    stdout: Option<Line>,
    stderr: Option<Line>,
}

impl Lines {
    /// Takes a piece of a stream, and passes the lines that end in it to `out`.
    pub(super) fn push(
        &mut self,
        (seq, realtime_ns): (u64, u64),
        stream: Stream,
        mut bytes: &[u8],
        mut out: impl FnMut(Line),
    ) {
        let begun = self.begun(stream);
        while !bytes.is_empty() {
            let line = begun.get_or_insert_with(|| Line {
                seq,
                realtime_ns,
                stream,
                bytes: Vec::new(),
                whole: false,
            });
            let room = LINE_MAX - line.bytes.len();
            let end = bytes.iter().take(room).position(|byte| *byte == b'\n');
            let taken = end.unwrap_or_else(|| room.min(bytes.len()));
            line.bytes.extend_from_slice(&bytes[..taken]);
            line.whole = end.is_some();
            bytes = &bytes[taken + usize::from(end.is_some())..];
            if line.whole || line.bytes.len() == LINE_MAX {
                begun.take().into_iter().for_each(&mut out);
            }
        }
    }

    const fn begun(&mut self, stream: Stream) -> &mut Option<Line> {
        match stream {
            Stream::Stderr => &mut self.stderr,
            _ => &mut self.stdout,
        }
    }

    /// Takes the incomplete line of the stream.
    pub(super) const fn take(&mut self, stream: Stream) -> Option<Line> {
        self.begun(stream).take()
    }

    /// Takes the incomplete lines, in the order in which they began.
    pub(super) fn rest(&mut self) -> impl Iterator<Item = Line> + use<> {
        let mut rest = [self.stdout.take(), self.stderr.take()];
        rest.sort_by_key(|line| line.as_ref().map_or(0, |line| line.seq));
        rest.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<(u64, Vec<u8>, bool)> {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for (seq, piece) in (1..).zip(pieces) {
            lines.push((seq, 0), Stream::Stdout, piece, |line| out.push(line));
        }
        out.extend(lines.rest());
        let told = out
            .into_iter()
            .map(|line| (line.seq, line.bytes, line.whole));
        told.collect()
    }

    #[test]
    fn a_line_is_of_the_piece_in_which_it_begins() {
        let line = |seq, text: &str, whole| (seq, text.as_bytes().to_vec(), whole);
        assert_eq!(
            lines(&[b"a\nb", b"c\n", b"\nd"]),
            [
                line(1, "a", true),
                line(1, "bc", true),
                line(3, "", true),
                line(3, "d", false)
            ]
        );
        assert!(lines(&[b""]).is_empty());
    }

    #[test]
    fn streams_do_not_mix() {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        lines.push((1, 0), Stream::Stderr, b"er", |line| out.push(line));
        lines.push((2, 0), Stream::Stdout, b"o", |line| out.push(line));
        lines.push((3, 0), Stream::Stderr, b"r\n", |line| out.push(line));
        out.extend(lines.rest());
        let told: Vec<_> = out
            .iter()
            .map(|line| (line.seq, line.bytes.as_slice()))
            .collect();
        assert_eq!(told, [(1, &b"err"[..]), (2, b"o")]);
    }

    #[test]
    fn a_line_without_an_end_goes_on_in_pieces() {
        let long = vec![b'x'; LINE_MAX * 2 + 5];
        let told = lines(&[&long, b"y\nz"]);
        let sizes: Vec<_> = told
            .iter()
            .map(|(_, bytes, whole)| (bytes.len(), *whole))
            .collect();
        assert_eq!(
            sizes,
            [(LINE_MAX, false), (LINE_MAX, false), (6, true), (1, false)]
        );
    }

    proptest! {
        #[test]
        fn how_the_output_was_cut_does_not_matter(
            text in "[ab\n]{0,60}",
            cuts in prop::collection::vec(0usize..60, 0..8),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let apart = lines(&pieces).into_iter().map(|(_, bytes, whole)| (bytes, whole));
            let whole = lines(&[bytes]).into_iter().map(|(_, bytes, whole)| (bytes, whole));
            prop_assert_eq!(apart.collect::<Vec<_>>(), whole.collect::<Vec<_>>());
        }
    }
}
