//! Socket data as 64-bit words. Workers pass it to their parent in this form, through shared memory and pipes.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use ka_core::{Settings, Status};
use netlink_packet_sock_diag::inet::Timer;

use crate::diag::{DiagSocket, State};
use crate::listing::{ListedSocket, Listing, SocketOwner};
use crate::{Error, Result};

/// Writes values to a record, one after the other, without allocation. Words that were not written are 0.
pub(crate) struct Writer<const N: usize> {
    words: [u64; N],
    used: usize,
}

impl<const N: usize> Writer<N> {
    pub(crate) const fn new() -> Self {
        Self { words: [0; N], used: 0 }
    }

    pub(crate) const fn finish(self) -> [u64; N] {
        self.words
    }

    pub(crate) fn word(mut self, word: u64) -> Self {
        debug_assert!(self.used < N, "the record is full");
        if let Some(slot) = self.words.get_mut(self.used) {
            *slot = word;
            self.used += 1;
        }
        self
    }

    pub(crate) fn pair(self, low: u32, high: u32) -> Self {
        self.word(u64::from(low) | u64::from(high) << 32)
    }

    /// Writes three words.
    pub(crate) fn address(self, address: Option<SocketAddr>) -> Self {
        let (kind, scope, bits) = match address {
            None => (0, 0, 0),
            Some(SocketAddr::V4(v4)) => (1, 0, v4.ip().to_bits().into()),
            Some(SocketAddr::V6(v6)) => (2, v6.scope_id(), v6.ip().to_bits()),
        };
        let port = address.map_or(0, |address| address.port());
        let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or(0);
        self.pair(kind | u32::from(port) << 8, scope).word(half(bits >> 64)).word(half(bits))
    }

    /// Writes three words.
    pub(crate) fn settings(self, settings: Option<Settings>) -> Self {
        let Some(Settings { enabled, idle, intvl, cnt, user_timeout, rto_max }) = settings else {
            return self.word(0).word(0).word(0);
        };
        let flags = 1
            | u32::from(enabled) << 1
            | u32::from(user_timeout.is_some()) << 2
            | u32::from(rto_max.is_some()) << 3;
        self.pair(flags, rto_max.unwrap_or(0).cast_unsigned())
            .pair(idle.cast_unsigned(), intvl.cast_unsigned())
            .pair(cnt.cast_unsigned(), user_timeout.unwrap_or(0).cast_unsigned())
    }

    /// Writes four words.
    pub(crate) fn status(self, status: &Status) -> Self {
        let Status { state, probes, retransmits, unacked, last_ack_ms, last_recv_ms, last_send_ms, rtt_us } =
            *status;
        self.pair(state, probes)
            .pair(retransmits, unacked)
            .pair(last_ack_ms, last_recv_ms)
            .pair(last_send_ms, rtt_us)
    }
}

/// Reads the values of a record, in the order in which they were written. Words beyond the end are 0.
pub(crate) struct Reader<'a>(slice::Iter<'a, u64>);

impl<'a> Reader<'a> {
    pub(crate) fn new(record: &'a [u64]) -> Self {
        Self(record.iter())
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0.next().copied().unwrap_or(0)
    }

    pub(crate) fn pair(&mut self) -> (u32, u32) {
        let word = self.word();
        ((word & 0xffff_ffff) as u32, (word >> 32) as u32)
    }

    pub(crate) fn address(&mut self) -> Option<SocketAddr> {
        let ((kind, scope), high, low) = (self.pair(), self.word(), self.word());
        let bits = u128::from(high) << 64 | u128::from(low);
        let port = (kind >> 8 & 0xffff) as u16;
        match kind & 0xff {
            1 => Some((Ipv4Addr::from_bits((low & 0xffff_ffff) as u32), port).into()),
            2 => Some(SocketAddrV6::new(Ipv6Addr::from_bits(bits), port, 0, scope).into()),
            _ => None,
        }
    }

    pub(crate) fn settings(&mut self) -> Option<Settings> {
        let [(flags, rto_max), (idle, intvl), (cnt, user_timeout)] = [self.pair(), self.pair(), self.pair()];
        (flags & 1 != 0).then(|| Settings {
            enabled: flags & 2 != 0,
            idle: idle.cast_signed(),
            intvl: intvl.cast_signed(),
            cnt: cnt.cast_signed(),
            user_timeout: (flags & 4 != 0).then_some(user_timeout.cast_signed()),
            rto_max: (flags & 8 != 0).then_some(rto_max.cast_signed()),
        })
    }

    pub(crate) fn status(&mut self) -> Status {
        let [(state, probes), (retransmits, unacked), (last_ack_ms, last_recv_ms), (last_send_ms, rtt_us)] =
            [self.pair(), self.pair(), self.pair(), self.pair()];
        Status { state, probes, retransmits, unacked, last_ack_ms, last_recv_ms, last_send_ms, rtt_us }
    }
}

/// The number of words for one entry of the kernel's socket list.
const ENTRY: usize = 14;
/// The number of words for the settings of a socket.
const SETTINGS: usize = 3;

/// Appends an entry of the kernel's socket list to `bytes`.
pub(crate) fn put_entry(entry: &DiagSocket, bytes: &mut Vec<u8>) {
    let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    let (kind, tries, expires) = match entry.timer {
        None => (0, 0, 0),
        Some(Timer::Retransmit(expires, tries)) => (1, tries, milliseconds(expires)),
        Some(Timer::KeepAlive(expires)) => (2, 0, milliseconds(expires)),
        Some(Timer::TimeWait) => (3, 0, 0),
        Some(Timer::Probe(expires)) => (4, 0, milliseconds(expires)),
    };
    let flags = u32::from(entry.state as u8)
        | kind << 8
        | u32::from(tries) << 16
        | u32::from(entry.status.is_some()) << 24;
    let mut record = Writer::<ENTRY>::new()
        .pair(flags, expires)
        .word(entry.cookie)
        .word(entry.inode.into())
        .word(entry.cgroup)
        .address(Some(entry.local))
        .address(entry.peer);
    if let Some(status) = &entry.status {
        record = record.status(status);
    }
    for word in record.finish() {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
}

/// Iterates over the entries that [`put_entry`] has appended.
pub(crate) fn entries(bytes: &[u8]) -> impl Iterator<Item = DiagSocket> {
    bytes.chunks_exact(8 * ENTRY).filter_map(|chunk| {
        let mut words = [0; ENTRY];
        for (slot, chunk) in words.iter_mut().zip(chunk.chunks_exact(8)) {
            *slot = u64::from_ne_bytes(*chunk.first_chunk()?);
        }
        let mut record = Reader::new(&words);
        let (flags, expires) = record.pair();
        let expires = Duration::from_millis(expires.into());
        // The fields are read in the order in which they were written.
        Some(DiagSocket {
            cookie: record.word(),
            inode: record.pair().0,
            cgroup: record.word(),
            local: record.address()?,
            peer: record.address(),
            state: State::numbered((flags & 0xff) as u8)?,
            timer: match flags >> 8 & 0xff {
                1 => Some(Timer::Retransmit(expires, (flags >> 16 & 0xff) as u8)),
                2 => Some(Timer::KeepAlive(expires)),
                3 => Some(Timer::TimeWait),
                4 => Some(Timer::Probe(expires)),
                _ => None,
            },
            status: (flags >> 24 & 1 != 0).then(|| record.status()),
        })
    })
}

/// Appends a listing to `bytes`. Errors become texts.
pub(crate) fn put_listing(listing: &Listing, bytes: &mut Vec<u8>) {
    let Listing { sockets, incomplete } = listing;
    put_numbers(&[sockets.len(), incomplete.len()], bytes);
    for socket in sockets {
        let ListedSocket { entry, owner, others, netns, settings, error } = socket;
        put_entry(entry, bytes);
        let (pid, fd) = owner.as_ref().map_or((0, 0), |owner| (owner.pid, owner.fd));
        let settings: [u64; SETTINGS] = Writer::new().settings(*settings).finish();
        bytes.extend(settings.into_iter().flat_map(u64::to_ne_bytes));
        for number in [pid, fd] {
            bytes.extend_from_slice(&number.to_ne_bytes());
        }
        put_numbers(&[others.len()], bytes);
        bytes.extend(others.iter().flat_map(|pid| pid.to_ne_bytes()));
        put_text(owner.as_ref().and_then(|owner| owner.comm.as_deref()), bytes);
        put_text(netns.as_deref().map(str::as_bytes), bytes);
        put_text(error.as_ref().map(|error| error.to_string().into_bytes()).as_deref(), bytes);
    }
    for error in incomplete {
        put_text(Some(error.to_string().as_bytes()), bytes);
    }
}

/// Appends numbers below 2^32.
fn put_numbers(numbers: &[usize], bytes: &mut Vec<u8>) {
    for number in numbers {
        bytes.extend_from_slice(&u32::try_from(*number).unwrap_or(u32::MAX).to_ne_bytes());
    }
}

/// Appends the length of a text plus one, and the text. If there is none, appends 0.
fn put_text(text: Option<&[u8]>, bytes: &mut Vec<u8>) {
    put_numbers(&[text.map_or(0, |text| text.len() + 1)], bytes);
    bytes.extend_from_slice(text.unwrap_or_default());
}

/// Reads a listing that [`put_listing`] has appended.
///
/// # Errors
///
/// [`Error::WorkerDied`]: the bytes are incomplete.
pub(crate) fn listing(mut bytes: &[u8]) -> Result<Listing> {
    let rest = &mut bytes;
    let [sockets, incomplete] = [take_number(rest)?, take_number(rest)?];
    let to_error = |text: &[u8]| Error::Worker(String::from_utf8_lossy(text).into_owned());
    // The names of namespaces repeat, so the sockets share them.
    let mut last: Option<Arc<str>> = None;
    let sockets = (0..sockets).map(|_| {
        let entry = entries(take(rest, 8 * ENTRY)?).next().ok_or(Error::WorkerDied)?;
        let mut settings = [0; SETTINGS];
        for (word, bytes) in settings.iter_mut().zip(take(rest, 8 * SETTINGS)?.chunks_exact(8)) {
            *word = bytes.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        }
        let [pid, fd] = [take_number(rest)?.cast_signed(), take_number(rest)?.cast_signed()];
        let others = (0..take_number(rest)?).map(|_| take_number(rest).map(u32::cast_signed));
        let others = others.collect::<Result<_>>()?;
        let comm = take_text(rest)?.map(Arc::from);
        let netns = take_text(rest)?.and_then(|name| std::str::from_utf8(name).ok());
        if last.as_deref() != netns {
            last = netns.map(Arc::from);
        }
        Ok(ListedSocket {
            entry,
            owner: (pid != 0).then_some(SocketOwner { pid, fd, comm }),
            others,
            netns: last.clone(),
            settings: Reader::new(&settings).settings(),
            error: take_text(rest)?.map(to_error).map(Arc::new),
        })
    });
    let sockets = sockets.collect::<Result<_>>()?;
    let incomplete = (0..incomplete).map(|_| Ok(to_error(take_text(rest)?.unwrap_or_default())));
    Ok(Listing { sockets, incomplete: incomplete.collect::<Result<_>>()? })
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    bytes.split_off(..length).ok_or(Error::WorkerDied)
}

fn take_number(bytes: &mut &[u8]) -> Result<u32> {
    let number = take(bytes, 4)?.first_chunk().ok_or(Error::WorkerDied)?;
    Ok(u32::from_ne_bytes(*number))
}

fn take_text<'a>(bytes: &mut &'a [u8]) -> Result<Option<&'a [u8]>> {
    let length = take_number(bytes)?.checked_sub(1);
    length.map(|length| take(bytes, length as usize)).transpose()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use ka_core::{Settings, Status};
    use netlink_packet_sock_diag::inet::Timer;

    use super::{Reader, Writer, entries, listing, put_entry, put_listing};
    use crate::Error;
    use crate::diag::{DiagSocket, State};
    use crate::listing::{ListedSocket, Listing, SocketOwner};

    #[test]
    fn addresses_are_read_as_written() {
        let texts = ["0.0.0.0:0", "192.0.2.1:65535", "[::]:1", "[fe80::1%7]:443", "[2001:db8::ffff]:8080"];
        for text in texts {
            let parsed: SocketAddr = text.parse().unwrap();
            let record: [u64; 6] = Writer::new().address(Some(parsed)).address(None).finish();
            let mut record = Reader::new(&record);
            assert_eq!(record.address(), Some(parsed), "{text}");
            assert_eq!(record.address(), None, "{text}");
        }
    }

    #[test]
    fn settings_are_read_as_written() {
        for user_timeout in [None, Some(0), Some(i32::MAX)] {
            let rto_max = user_timeout.map(|_| 120_000);
            let settings = Settings { enabled: true, idle: -1, intvl: 86400, cnt: 0, user_timeout, rto_max };
            let record: [u64; 6] = Writer::new().settings(None).settings(Some(settings)).finish();
            let mut record = Reader::new(&record);
            assert_eq!(record.settings(), None);
            assert_eq!(record.settings(), Some(settings));
        }
    }

    #[test]
    fn entries_are_read_as_written() {
        let status = Status {
            state: 1,
            probes: 2,
            retransmits: 3,
            unacked: 4,
            last_ack_ms: u32::MAX,
            last_recv_ms: 6,
            last_send_ms: 7,
            rtt_us: 8,
        };
        let timers = [
            None,
            Some(Timer::Retransmit(Duration::from_millis(9), 15)),
            Some(Timer::KeepAlive(Duration::from_secs(32767))),
            Some(Timer::TimeWait),
            Some(Timer::Probe(Duration::from_millis(1))),
        ];
        let mut bytes = Vec::new();
        let all: Vec<_> = timers
            .into_iter()
            .enumerate()
            .map(|(number, timer)| DiagSocket {
                local: "[fe80::1%3]:1".parse().unwrap(),
                peer: (number > 0).then(|| "192.0.2.1:2".parse().unwrap()),
                state: State::Closing,
                timer,
                cookie: u64::MAX,
                inode: u32::MAX,
                cgroup: 1 << 40,
                status: (number != 1).then_some(status),
            })
            .collect();
        for entry in &all {
            put_entry(entry, &mut bytes);
        }
        let again: Vec<_> = entries(&bytes).collect();
        assert_eq!(format!("{again:?}"), format!("{all:?}"));
    }
    #[test]
    fn listings_are_read_as_written() {
        let socket = |comm: Option<&[u8]>, netns: Option<&str>, error: Option<&str>| ListedSocket {
            entry: DiagSocket {
                local: "[fe80::1%3]:1".parse().unwrap(),
                peer: None,
                state: State::Listen,
                timer: None,
                cookie: 7,
                inode: 8,
                cgroup: 9,
                status: None,
            },
            owner: comm.map(|comm| SocketOwner { pid: 12, fd: 3, comm: Some(comm.into()) }),
            others: comm.map_or(Vec::new(), |_| vec![13, i32::MAX]),
            netns: netns.map(Into::into),
            settings: netns.map(|_| Settings {
                enabled: true,
                idle: 60,
                intvl: 10,
                cnt: 6,
                user_timeout: None,
                rto_max: Some(2000),
            }),
            error: error.map(|error| Error::Worker(error.to_owned()).into()),
        };
        let all = Listing {
            sockets: vec![
                socket(None, None, None),
                socket(Some(b""), Some("blue"), None),
                socket(Some(b"a\xff\x1b"), Some("blue"), Some("locked")),
                socket(None, Some("4"), Some("")),
            ],
            incomplete: vec![Error::Worker("a process".to_owned())],
        };
        let mut bytes = Vec::new();
        put_listing(&all, &mut bytes);
        assert_eq!(format!("{:?}", listing(&bytes).unwrap()), format!("{all:?}"));
        for cut in 0..bytes.len() {
            listing(bytes.get(..cut).unwrap()).unwrap_err();
        }
    }
}
