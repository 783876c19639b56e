//! Packs socket data into 64-bit words. Workers pass it to their parent in this form through memory and pipes.

use std::array;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use ka_core::{Settings, Status};
use netlink_packet_sock_diag::inet::Timer;

use crate::diag::{Entry, State};

/// Returns some of the words of a record, from `start`.
pub fn part<const N: usize>(words: &[u64], start: usize) -> [u64; N] {
    array::from_fn(|place| words.get(start + place).copied().unwrap_or(0))
}

/// Concatenates parts to a record. The rest is 0.
pub fn together<const N: usize>(parts: &[&[u64]]) -> [u64; N] {
    let mut words = parts.iter().copied().flatten().copied();
    array::from_fn(|_| words.next().unwrap_or(0))
}

/// Packs two numbers into a word.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// The lower half of an IPv6 address.
fn half(bits: u128) -> u64 {
    u64::try_from(bits & u128::from(u64::MAX)).unwrap_or(0)
}

fn low(word: u64) -> u32 {
    (word & 0xffff_ffff) as u32
}

fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// Packs a socket's address.
pub fn of_address(address: Option<SocketAddr>) -> [u64; 3] {
    let (kind, scope, bits) = match address {
        None => return [0; 3],
        Some(SocketAddr::V4(v4)) => (1_u64, 0, u128::from(v4.ip().to_bits())),
        Some(SocketAddr::V6(v6)) => (2, v6.scope_id(), v6.ip().to_bits()),
    };
    let port = address.map_or(0, |address| address.port());
    [kind | u64::from(port) << 8 | u64::from(scope) << 32, half(bits >> 64), half(bits)]
}

/// Unpacks an address, if there is one.
pub fn address(words: [u64; 3]) -> Option<SocketAddr> {
    let [kind, high, low] = words;
    let bits = u128::from(high) << 64 | u128::from(low);
    let (port, scope) = ((kind >> 8 & 0xffff) as u16, (kind >> 32) as u32);
    match kind & 0xff {
        1 => Some((Ipv4Addr::from_bits(self::low(low)), port).into()),
        2 => Some(SocketAddrV6::new(Ipv6Addr::from_bits(bits), port, 0, scope).into()),
        _ => None,
    }
}

/// Packs the settings of a socket.
pub fn of_settings(settings: &Settings) -> [u64; 3] {
    let Settings { enabled, idle, intvl, cnt, user_timeout } = settings;
    [
        u64::from(*enabled) | u64::from(user_timeout.is_some()) << 1,
        pair(idle.cast_unsigned(), intvl.cast_unsigned()),
        pair(cnt.cast_unsigned(), user_timeout.unwrap_or(0).cast_unsigned()),
    ]
}

pub fn settings(words: [u64; 3]) -> Settings {
    let [flags, times, rest] = words;
    Settings {
        enabled: flags & 1 != 0,
        idle: low(times).cast_signed(),
        intvl: high(times).cast_signed(),
        cnt: low(rest).cast_signed(),
        user_timeout: (flags & 2 != 0).then_some(high(rest).cast_signed()),
    }
}

/// Packs the status of a connection.
pub fn of_status(status: &Status) -> [u64; 4] {
    let Status { state, probes, retransmits, unacked, last_ack_ms, last_recv_ms, last_send_ms, rtt_us } =
        *status;
    [
        pair(state, probes),
        pair(retransmits, unacked),
        pair(last_ack_ms, last_recv_ms),
        pair(last_send_ms, rtt_us),
    ]
}

pub fn status(words: [u64; 4]) -> Status {
    let [first, second, third, fourth] = words;
    Status {
        state: low(first),
        probes: high(first),
        retransmits: low(second),
        unacked: high(second),
        last_ack_ms: low(third),
        last_recv_ms: high(third),
        last_send_ms: low(fourth),
        rtt_us: high(fourth),
    }
}

/// The number of words in an entry of the kernel's list.
const ENTRY: usize = 14;

/// Appends an entry of the kernel's list.
pub fn put_entry(entry: &Entry, bytes: &mut Vec<u8>) {
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
    let words: [u64; ENTRY] = together(&[
        &[pair(flags, expires), entry.cookie, entry.inode.into(), entry.cgroup],
        &of_address(Some(entry.local)),
        &of_address(entry.peer),
        &entry.status.as_ref().map_or([0; 4], of_status),
    ]);
    for word in words {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
}

/// Iterates over the appended entries.
pub fn entries(bytes: &[u8]) -> impl Iterator<Item = Entry> {
    bytes.chunks_exact(8 * ENTRY).filter_map(|record| {
        let mut words = [0; ENTRY];
        for (slot, chunk) in words.iter_mut().zip(record.chunks_exact(8)) {
            *slot = u64::from_ne_bytes(*chunk.first_chunk()?);
        }
        let [first, cookie, inode, cgroup] = part(&words, 0);
        let expires = Duration::from_millis(high(first).into());
        let flags = low(first);
        Some(Entry {
            local: address(part(&words, 4))?,
            peer: address(part(&words, 7)),
            state: State::numbered((flags & 0xff) as u8)?,
            timer: match flags >> 8 & 0xff {
                1 => Some(Timer::Retransmit(expires, (flags >> 16 & 0xff) as u8)),
                2 => Some(Timer::KeepAlive(expires)),
                3 => Some(Timer::TimeWait),
                4 => Some(Timer::Probe(expires)),
                _ => None,
            },
            cookie,
            inode: low(inode),
            cgroup,
            status: (flags >> 24 & 1 != 0).then(|| status(part(&words, 10))),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use ka_core::{Settings, Status};
    use netlink_packet_sock_diag::inet::Timer;

    use super::{address, entries, of_address, of_settings, put_entry, settings};
    use crate::diag::{Entry, State};

    #[test]
    fn addresses_survive_as_words() {
        let texts = ["0.0.0.0:0", "192.0.2.1:65535", "[::]:1", "[fe80::1%7]:443", "[2001:db8::ffff]:8080"];
        for text in texts {
            let parsed: SocketAddr = text.parse().unwrap();
            assert_eq!(address(of_address(Some(parsed))), Some(parsed), "{text}");
        }
        assert_eq!(address(of_address(None)), None);
    }

    #[test]
    fn settings_survive_as_words() {
        for user_timeout in [None, Some(0), Some(i32::MAX)] {
            let all = Settings { enabled: true, idle: -1, intvl: 86400, cnt: 0, user_timeout };
            assert_eq!(settings(of_settings(&all)), all);
        }
    }

    #[test]
    fn entries_survive_as_words() {
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
            .map(|(number, timer)| Entry {
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
}
