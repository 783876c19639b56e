//! Makes arguments from the bytes of the fuzzer. Missing bytes are zeros.

/// The bytes that are left.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes at most `most` bytes.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (front, back) = self.0.split_at(most.min(self.0.len()));
        self.0 = back;
        front
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Takes one of these choices.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    /// Takes a value near the limits of a keepalive option, or any other number.
    pub fn value(&mut self) -> i32 {
        match self.byte() % 14 {
            0 | 1 => -1,
            2 => -2,
            12 => -3,
            13 => 2,
            3 => 0,
            4 => 127,
            5 => 128,
            6 => 32767,
            7 => 32768,
            8 => self.word().cast_signed(),
            9 => i32::from(self.short()),
            _ => i32::from(self.byte()),
        }
    }

    /// Takes a text of at most `most` bytes, up to a zero byte.
    pub fn text(&mut self, most: usize) -> &'a [u8] {
        let end = self.0.iter().take(most).position(|byte| *byte == 0);
        let text = self.bytes(end.unwrap_or(most));
        if end.is_some() {
            self.bytes(1);
        }
        text
    }
}
