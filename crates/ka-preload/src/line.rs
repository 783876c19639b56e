//! A line of text in a fixed buffer.

use ka_core::Text;

/// A line of text. If it is too long, it is truncated, so it always ends with a newline.
pub(crate) struct Line {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl Line {
    const CAPACITY: usize = 512;

    pub(crate) const fn new() -> Self {
        Self { bytes: [0; Self::CAPACITY], len: 0 }
    }

    #[inline(never)]
    pub(crate) fn text(&mut self, text: &[u8]) -> &mut Self {
        for byte in text {
            self.push(*byte);
        }
        self
    }

    /// Adds the first 120 bytes of untrusted text. Bytes that are not printable ASCII become question marks, because a
    /// terminal could interpret them.
    #[inline(never)]
    pub(crate) fn foreign(&mut self, text: &[u8]) -> &mut Self {
        const MOST: usize = 120;
        text.iter()
            .take(MOST)
            .for_each(|byte| self.push(if matches!(byte, b' '..=b'~') { *byte } else { b'?' }));
        if text.len() > MOST { self.text(b"...") } else { self }
    }

    #[inline(never)]
    pub(crate) fn number(&mut self, number: i32) -> &mut Self {
        if number < 0 {
            self.push(b'-');
        }
        self.text(Text::from(number.unsigned_abs()).as_bytes())
    }

    /// Ends the line with a newline, and returns it.
    #[inline(never)]
    pub(crate) fn end(&mut self) -> &[u8] {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = b'\n';
            self.len = self.len.saturating_add(1);
        }
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn push(&mut self, byte: u8) {
        // The last byte is reserved for the newline.
        if self.len < Self::CAPACITY - 1
            && let Some(slot) = self.bytes.get_mut(self.len)
        {
            *slot = byte;
            self.len = self.len.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Line;

    fn line(write: impl FnOnce(&mut Line)) -> Vec<u8> {
        let mut line = Line::new();
        write(&mut line);
        line.end().to_vec()
    }

    #[test]
    fn numbers_and_texts_are_joined_to_one_line() {
        let written = line(|line| {
            line.text(b"fd ").number(0).text(b" ").number(-1).text(b" ").number(9).text(b" ").number(10);
            line.text(b" ").number(i32::MAX).text(b" ").number(i32::MIN);
        });
        assert_eq!(written, b"fd 0 -1 9 10 2147483647 -2147483648\n");
    }

    #[test]
    fn untrusted_text_is_escaped_and_limited() {
        assert_eq!(line(|line| _ = line.foreign(b" ~\x1b[2J\n\x7f\xff")), b" ~?[2J???\n");
        let long = [b'x'; 121];
        assert_eq!(line(|line| _ = line.foreign(&long[..120])), [&long[..120], b"\n"].concat());
        assert_eq!(line(|line| _ = line.foreign(&long)), [&long[..120], b"...\n"].concat());
    }

    #[test]
    fn a_line_that_is_too_long_still_ends_with_a_newline() {
        let written = line(|line| (0..600).for_each(|_| _ = line.text(b"x")));
        assert_eq!(written.len(), Line::CAPACITY);
        assert_eq!(written[Line::CAPACITY - 2..], *b"x\n");
    }
}
