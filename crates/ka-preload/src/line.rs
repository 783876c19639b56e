//! A line of text, put together in place.

/// A line that is cut off where it is too long, so that its end is always a newline.
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

    /// Text from outside: what a terminal could take for more than a letter becomes a question mark.
    #[inline(never)]
    pub(crate) fn foreign(&mut self, text: &[u8]) -> &mut Self {
        const MOST: usize = 120;
        text.iter()
            .take(MOST)
            .for_each(|byte| self.push(if matches!(byte, b' '..=b'~') { *byte } else { b'?' }));
        if text.len() > MOST { self.text(b"...") } else { self }
    }

    #[inline(never)]
    pub(crate) fn number(&mut self, number: i64) -> &mut Self {
        if number < 0 {
            self.push(b'-');
        }
        self.digits(number.unsigned_abs());
        self
    }

    /// The line, ended.
    pub(crate) fn end(&mut self) -> &[u8] {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = b'\n';
            self.len = self.len.saturating_add(1);
        }
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn digits(&mut self, number: u64) {
        if number >= 10 {
            self.digits(number / 10);
        }
        self.push(b'0'.wrapping_add((number % 10) as u8));
    }

    fn push(&mut self, byte: u8) {
        // The last place is for the newline.
        if self.len < Self::CAPACITY - 1
            && let Some(slot) = self.bytes.get_mut(self.len)
        {
            *slot = byte;
            self.len = self.len.saturating_add(1);
        }
    }
}
