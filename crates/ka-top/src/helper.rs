//! Processes that work for the view: one lists the sockets, one watches for the ends of connections, and each action on
//! a socket has one.
//!
//! Each has its own session, so that neither Ctrl-C nor Ctrl-Z reaches it. When the view has ended, a read or a write
//! fails, and the process ends.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use ka_cli::top::{ViewRequest, WatchMessage};
use ka_reach::fork::start_detached;
use ka_reach::listing::Listing;
use ka_reach::worker::Workers;

use crate::list::SocketId;

/// The process that lists the sockets. It makes one listing for each request.
pub(crate) struct ListingProcess {
    stream: UnixStream,
    /// The bytes of an answer that have arrived so far.
    bytes: Vec<u8>,
    /// True after a request, until its answer.
    pub(crate) is_busy: bool,
}

// The first byte of an answer. The number of the other bytes follows.
const LISTED: u8 = 0;
const FAILED: u8 = 1;
const HEAD: usize = 9;

impl ListingProcess {
    /// Starts the process. This process must have one thread.
    pub(crate) fn start(request: &ViewRequest) -> io::Result<Self> {
        let (stream, other) = UnixStream::pair()?;
        start_detached(&[other.as_raw_fd()], || serve(other.try_clone()?, request))?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, bytes: Vec::new(), is_busy: false })
    }

    /// Requests a listing.
    pub(crate) fn request(&mut self) -> io::Result<()> {
        self.is_busy = true;
        self.stream.write_all(&[0])
    }

    /// Reads the bytes that have arrived. Returns the answer if it is complete: a listing, or the reason why there is
    /// none. Fails if the process has ended.
    pub(crate) fn receive(&mut self) -> io::Result<Option<Result<Listing, String>>> {
        read_available(&mut self.stream, &mut self.bytes)?;
        let Some((head, rest)) = self.bytes.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [kind, length @ ..] = *head;
        let length = usize::try_from(u64::from_ne_bytes(length)).unwrap_or(usize::MAX);
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let answer = match kind {
            LISTED => Listing::from_bytes(body).map_err(|error| error.to_string()),
            _ => Err(String::from_utf8_lossy(body).into_owned()),
        };
        self.bytes = Vec::new();
        self.is_busy = false;
        Ok(Some(answer))
    }
}

impl AsFd for ListingProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Answers requests until the view has ended.
fn serve(mut stream: UnixStream, request: &ViewRequest) -> io::Result<()> {
    let mut workers = Workers::default();
    loop {
        stream.read_exact(&mut [0])?;
        let (kind, bytes) = match request.list(&mut workers) {
            Ok(listing) => (LISTED, listing.to_bytes()),
            Err(error) => (FAILED, error.to_string().into_bytes()),
        };
        stream.write_all(&[&[kind], &(bytes.len() as u64).to_ne_bytes()[..]].concat())?;
        stream.write_all(&bytes)?;
    }
}

/// Reads what has arrived, but at most 4 MiB, so that the view can react to keys. Fails at the end of the stream.
fn read_available(stream: &mut UnixStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 18];
    for _ in 0..16 {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => bytes.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The process that watches connections end.
pub(crate) struct WatchProcess {
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl WatchProcess {
    /// Starts the process. This process must have one thread.
    pub(crate) fn start(request: &ViewRequest) -> io::Result<Self> {
        let (stream, mut other) = UnixStream::pair()?;
        start_detached(&[other.as_raw_fd()], || request.watch(&mut other))?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, bytes: Vec::new() })
    }

    /// Reads what has arrived. Fails if the process has ended and everything is read.
    pub(crate) fn receive(&mut self) -> io::Result<Vec<WatchMessage>> {
        let end = read_available(&mut self.stream, &mut self.bytes);
        let length = self.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let lines: Vec<u8> = self.bytes.drain(..length).collect();
        let messages: Vec<_> =
            String::from_utf8_lossy(&lines).lines().filter_map(WatchMessage::read).collect();
        if messages.is_empty() { end.map(|()| messages) } else { Ok(messages) }
    }
}

impl AsFd for WatchProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A process that does one thing, and writes its result as a text.
pub(crate) struct SocketAction {
    stream: UnixStream,
    text: Vec<u8>,
    /// The socket that it probes. `None` if it does something else.
    pub(crate) probed: Option<SocketId>,
}

impl SocketAction {
    /// Starts the process. This process must have one thread.
    pub(crate) fn start(probed: Option<SocketId>, work: impl FnOnce() -> String) -> io::Result<Self> {
        let (stream, mut other) = UnixStream::pair()?;
        start_detached(&[other.as_raw_fd()], || other.write_all(work().as_bytes()))?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, text: Vec::new(), probed })
    }

    /// Reads the bytes that have arrived. Returns the text if the process has ended.
    pub(crate) fn receive(&mut self) -> Option<String> {
        read_available(&mut self.stream, &mut self.text).err()?;
        Some(String::from_utf8_lossy(&self.text).into_owned())
    }
}

impl AsFd for SocketAction {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
