//! The frames in the pipe from a worker to its parent.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::sync::{Mutex, PoisonError};

// The values in place of a socket's index, for frames that are not about a socket.
/// The worker has done all its work.
pub(super) const FINISHED: u64 = u64::MAX;
/// The worker has failed. The bytes are the text of the error.
pub(super) const FAILED: u64 = u64::MAX - 1;
/// The bytes are output of the worker.
const DATA: u64 = u64::MAX - 2;

/// Writes a frame: a socket's index or one of the values above, a length, and the bytes. The kernel writes frames of up
/// to `PIPE_BUF` bytes atomically.
pub(super) fn write_frame(pipe: &mut impl Write, about: u64, bytes: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(16 + bytes.len());
    frame.extend_from_slice(&about.to_ne_bytes());
    frame.extend_from_slice(&(bytes.len() as u64).to_ne_bytes());
    frame.extend_from_slice(bytes);
    pipe.write_all(&frame)
}

/// Writes a frame to a pipe that several threads use. Without the lock, frames longer than `PIPE_BUF` could mix.
pub(super) fn write_shared_frame(pipe: &Mutex<File>, about: u64, bytes: &[u8]) {
    let pipe = pipe.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = write_frame(&mut &*pipe, about, bytes);
}

/// Removes the first frame from `bytes`, if it is complete. Returns its socket index and its bytes.
fn take_frame<'a>(bytes: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let about = u64::from_ne_bytes(*bytes.first_chunk()?);
    let length = usize::try_from(u64::from_ne_bytes(*bytes.get(8..)?.first_chunk()?)).ok()?;
    let end = length.checked_add(16)?;
    let payload = bytes.get(16..end)?;
    *bytes = bytes.get(end..)?;
    Some((about, payload))
}

/// Splits the bytes from a pipe into frames.
#[derive(Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// Reads the available bytes and passes each complete frame to `receive`. Returns false at the end of the pipe.
    pub(super) fn read(&mut self, pipe: &mut File, mut receive: impl FnMut(u64, &[u8])) -> bool {
        let before = self.bytes.len();
        self.bytes.resize(before + (1 << 16), 0);
        let read = pipe.read(self.bytes.get_mut(before..).unwrap_or_default());
        self.bytes.truncate(before + read.as_ref().map_or(0, |size| *size));
        match read {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::Interrupted,
        }
        let mut rest = self.bytes.as_slice();
        while let Some((about, bytes)) = take_frame(&mut rest) {
            receive(about, bytes);
        }
        let taken = self.bytes.len() - rest.len();
        self.bytes.drain(..taken);
        true
    }
}

/// The worker's end of the pipe. Each write is sent at once, as a frame.
pub struct PipeWriter<'a> {
    pub(super) pipe: &'a mut File,
}

impl PipeWriter<'_> {
    /// Tells the parent that the output is complete, before the worker exits.
    pub(crate) fn finish(&mut self) {
        let _ = write_frame(self.pipe, FINISHED, &[]); // If the parent has ended, the message is not needed.
    }
}

impl Write for PipeWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_frame(self.pipe, DATA, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{take_frame, write_frame};

    #[test]
    fn only_complete_frames_are_taken() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, 7, b"text").unwrap();
        write_frame(&mut bytes, 8, b"").unwrap();
        let mut rest = bytes.as_slice();
        assert_eq!(take_frame(&mut rest), Some((7, &b"text"[..])));
        assert_eq!(take_frame(&mut rest), Some((8, &b""[..])));
        assert_eq!(take_frame(&mut rest), None);
        let mut cut = bytes.get(..19).unwrap();
        assert_eq!(take_frame(&mut cut), None);
        assert_eq!(cut.len(), 19);
    }
}
